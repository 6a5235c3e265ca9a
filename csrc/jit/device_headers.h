// The device headers (deep_gemm_include/) as text inside the library: what NVRTC compiles, from memory. The
// bodies are a generated .cpp (third-party/embed_headers.cmake). Sorted by name, so their hash is stable.
#pragma once

#include <span>
#include <string_view>

namespace deep_gemm::jit {

struct DeviceHeader {
    std::string_view name;  // as included: "deep_gemm/spec/types.h"
    std::string_view text;
};

[[nodiscard]] std::span<const DeviceHeader> device_headers();

}  // namespace deep_gemm::jit
