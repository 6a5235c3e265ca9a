// What cuTensorMapEncodeTiled refuses, refused earlier and with a sentence: got, expected, remedy.
// Pure; both devices call it, so a map that is legal on the emulated GPU is legal on the real one.
#pragma once

#include <deep_gemm/spec/tensor_map.h>

namespace deep_gemm::driver {

constexpr u32 swizzle_span_bytes(Swizzle swizzle) {
    switch (swizzle) {
        case Swizzle::none: return 16;
        case Swizzle::bytes_32: return 32;
        case Swizzle::bytes_64: return 64;
        case Swizzle::bytes_128: return 128;
    }
    return 0;
}

// Throws Error(ErrorKind::value) when `desc` is illegal.
void check_tensor_map(const TensorMapDesc& desc);

}  // namespace deep_gemm::driver
