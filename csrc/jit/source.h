// KernelSource: the whole text NVRTC gets for one kernel, and the entry to ask it for. source_for() makes one
// from a spec value; nothing else in the library concatenates C++. Same spec, same text: the text is the
// cache key.
#pragma once

#include <deep_gemm/spec/types.h>

#include <concepts>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/error.h"

namespace deep_gemm::jit {

struct KernelSource {
    std::string name;  // "sm90_fp8_gemm_nt": in logs and file names
    std::string code;
    std::string entry;  // name expression: "deep_gemm::sm90_fp8_gemm_nt<kSpec>"
    std::string
        replay;  // a command line that shows this kernel again, for errors and logs; not part of the key
};

struct KernelId {
    std::string_view kernel;  // function template in namespace deep_gemm, taking the spec
    std::string_view header;  // "deep_gemm/kernel/sm90_gemm.cuh"
};

// "GemmSpec" of deep_gemm::GemmSpec.
template <typename T>
[[nodiscard]] constexpr std::string_view short_type_name() {
    std::string_view text = __PRETTY_FUNCTION__;
    text.remove_prefix(text.find("T = ") + 4);
    text = text.substr(0, text.find_first_of(";]"));
    return text.substr(text.rfind(':') + 1);
}

template <typename T>
concept HasFields = requires(const T& value) {
    visit_fields([](const char*, const auto&) {}, value);
};

// The C++ text of a value. Enumerators are spelled by name_of(), whose names are the enumerators'.
template <typename T>
[[nodiscard]] std::string literal(const T& value) {
    if constexpr (std::is_same_v<T, bool>) {
        return value ? "true" : "false";
    } else if constexpr (std::is_enum_v<T>) {
        return fmt::format("{}::{}", short_type_name<T>(), name_of(value));
    } else if constexpr (std::integral<T>) {
        return fmt::format("{}", value);
    } else {
        static_assert(HasFields<T>, "a spec holds integers, enums, bools and structs with visit_fields()");
        std::string text;
        visit_fields(
            [&text](const char* name, const auto& field) {
                text += fmt::format("{}.{} = {}", text.empty() ? "" : ", ", name, literal(field));
            },
            value);
        return '{' + text + '}';
    }
}

[[nodiscard]] KernelSource make_source(const KernelId& id, std::string_view spec_type,
                                       std::string_view spec_literal, std::string_view params_type,
                                       size_t params_bytes, u32 smem_bytes);

// The host's shared-memory plan and parameter size are asserted equal on the device.
template <typename Params, typename Spec>
[[nodiscard]] KernelSource source_for(const KernelId& id, const Spec& spec) {
    return make_source(id, short_type_name<Spec>(), literal(spec), short_type_name<Params>(), sizeof(Params),
                       plan_smem(spec).bytes);
}

}  // namespace deep_gemm::jit
