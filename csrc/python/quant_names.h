// Names of layouts as Python spells them.
#pragma once

#include <deep_gemm/spec/quant.h>

#include "base/error.h"

#include <string>

namespace deep_gemm::python {

inline Quant quant_of(const std::string& name) {
    std::string names;
    for (u32 i = 0; i < kNumQuants; ++i) {
        const char* one = name_of(static_cast<Quant>(i));
        if (name == one) return static_cast<Quant>(i);
        names += fmt::format("{}{}", i ? ", " : "", one);
    }
    fail(ErrorKind::value, "quant: got '{}', expected one of {}; pass one of them", name, names);
}

inline Activation activation_of(const std::string& name) {
    for (u32 i = 0; i <= static_cast<u32>(Activation::q8); ++i)
        if (name == name_of(static_cast<Activation>(i))) return static_cast<Activation>(i);
    fail(ErrorKind::value,
         "activations: got '{}', expected bf16, fp16, fp8_128, fp8_32, int8_row or q8; pass one of them",
         name);
}

}  // namespace deep_gemm::python
