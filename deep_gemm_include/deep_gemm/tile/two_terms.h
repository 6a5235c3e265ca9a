// bf16 numbers -> two E4M3 terms under one scale (spec/two_terms.h), four neighbours of a thread at a time.
#pragma once

#include <deep_gemm/spec/two_terms.h>
#include <deep_gemm/tile/quantize.h>
#include <deep_gemm/ptx/convert.h>

namespace deep_gemm::tile {

/// Of a row, and what its elements are multiplied by.
struct TermScale {
    float value, inverse;
};
DG_DEVICE TermScale term_scale_of(float largest) {
    constexpr u32 kSmallest = 1, kInfinite = 0xff, kNan = 0x7fc00000;  // exponent fields; a quiet NaN
    constexpr u32 kDown = 8, kOfMax = 0x600000;                        // E4M3 ends at 1.75 * 2^8
    const u32 bits = ptx::float_bits(largest), field = bits >> 23;
    const u32 up = (bits & 0x7fffff) > kOfMax ? 1 : 0;
    const u32 wanted = field + up > kDown + kSmallest ? field + up - kDown : kSmallest;
    const float scale = ptx::float_of_bits(field == kInfinite ? kNan : wanted << 23);
    return {scale, ptx::float_of_bits((254 - wanted) << 23)};
}

/// Four bytes each.
struct TermWords {
    u32 high, low;
};
DG_DEVICE TermWords terms_of(float a, float b, float c, float d, float inverse) {
    constexpr float kLowUnits = 1 << kLowTermShift;
    const float x[4] = {ptx::mul_rn(a, inverse), ptx::mul_rn(b, inverse), ptx::mul_rn(c, inverse),
                        ptx::mul_rn(d, inverse)};
    const u32 high = ptx::cvt_e4m3x2(x[0], x[1]) | ptx::cvt_e4m3x2(x[2], x[3]) << 16;
    u32 first, second;
    ptx::cvt_f16x2_e4m3(high, first, second);
    const ptx::Float2 p = ptx::cvt_f32_f16x2(first), q = ptx::cvt_f32_f16x2(second);
    const float rest[4] = {(x[0] - p.x) * kLowUnits, (x[1] - p.y) * kLowUnits, (x[2] - q.x) * kLowUnits,
                           (x[3] - q.y) * kLowUnits};
    return {high, ptx::cvt_e4m3x2(rest[0], rest[1]) | ptx::cvt_e4m3x2(rest[2], rest[3]) << 16};
}

}  // namespace deep_gemm::tile
