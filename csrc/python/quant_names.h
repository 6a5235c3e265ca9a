// Names of layouts as Python spells them.
#pragma once

#include <deep_gemm/spec/quant.h>

#include "base/error.h"

#include <string>

namespace deep_gemm::python {

inline Quant quant_of(const std::string& name) {
    for (u32 i = 0; i < kNumQuants; ++i)
        if (name == name_of(static_cast<Quant>(i))) return static_cast<Quant>(i);
    fail(ErrorKind::value,
         "quant: got '{}', expected a name of spec/quant.h such as q8_0, fp8_128x128 or mxfp4", name);
}

inline Activation activation_of(const std::string& name) {
    for (u32 i = 0; i <= static_cast<u32>(Activation::q8); ++i)
        if (name == name_of(static_cast<Activation>(i))) return static_cast<Activation>(i);
    fail(ErrorKind::value, "activations: got '{}', expected bf16, fp16, fp8_128, fp8_32, int8_row or q8",
         name);
}

}  // namespace deep_gemm::python
