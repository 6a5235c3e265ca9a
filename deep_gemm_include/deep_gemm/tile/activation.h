// exp and SwiGLU in fp32 from additions, multiplications and divisions that round once each: the same bits on
// every device, which the hardware's approximations would not give.
#pragma once

#include <deep_gemm/spec/codec.h>
#include <deep_gemm/ptx/narrow.h>

namespace deep_gemm::tile {

/// 2^n for n in -126 to 127.
DG_DEVICE float power_of_two(i32 n) {
    return codec::float_of_bits(static_cast<u32>(n + 127) << 23);
}

/// e^x within 2 ulp; 0 below about -104, infinity above 88.7, NaN for NaN.
DG_DEVICE float exp_f32(float x) {
    x = ptx::min_nan_f32(ptx::max_nan_f32(x, -110.0f), 100.0f);
    // x = n ln 2 + r, |r| <= ln 2 / 2; ln 2 in two parts, the first of 15 bits. The large number rounds to
    // integers.
    constexpr float kToInteger = 12582912.0f;
    const float shifted = ptx::fma_rn_f32(x, 1.44269504f, kToInteger);
    const float n = ptx::add_rn_f32(shifted, -kToInteger);
    float r = ptx::fma_rn_f32(n, -0.693145752f, x);
    r = ptx::fma_rn_f32(n, -1.42860677e-6f, r);
    float sum = 1.0f / 5040;
    constexpr float kTerms[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
#pragma unroll
    for (const float term : kTerms) sum = ptx::fma_rn_f32(sum, r, term);
    // 2^n in two factors: n goes down to -159.
    const i32 exponent =
        static_cast<i32>(codec::bits_of_float(shifted)) - static_cast<i32>(codec::bits_of_float(kToInteger));
    if (x != x) return x;
    const i32 half = exponent >> 1;
    return ptx::mul_rn_f32(ptx::mul_rn_f32(sum, power_of_two(half)), power_of_two(exponent - half));
}

/// gate / (1 + e^-gate) * up.
DG_DEVICE float swiglu(float gate, float up) {
    const float denominator = ptx::add_rn_f32(1.0f, exp_f32(-gate));
    return ptx::mul_rn_f32(ptx::div_rn_f32(gate, denominator), up);
}

}  // namespace deep_gemm::tile
