// Conversions and small arithmetic of narrow formats. All of it exists since sm_80, but for what says
// otherwise.
#pragma once

#include <deep_gemm/ptx/base.h>

namespace deep_gemm::ptx {

/// prmt: four bytes picked from (a, b); selector nibble i names the byte of b:a that becomes byte i.
DG_DEVICE u32 prmt(u32 a, u32 b, u32 selector) {
    return __byte_perm(a, b, selector);
}
/// mul.lo.u32, which the compiler leaves a multiplication: of a constant with two bits it would make shifts.
DG_DEVICE u32 mul_lo(u32 a, u32 b) {
    u32 d;
    asm("mul.lo.u32 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
DG_DEVICE u32 float_bits(float value) {
    return __float_as_uint(value);
}
DG_DEVICE float float_of_bits(u32 bits) {
    return __uint_as_float(bits);
}
/// fma.rn.bf16x2 a * b + c.
DG_DEVICE u32 fma_bf16x2(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
/// a * b of two bf16 pairs; adding -0 keeps the sign of a zero. (mul.bf16x2 is younger than sm_80.)
DG_DEVICE u32 mul_bf16x2(u32 a, u32 b) {
    return fma_bf16x2(a, b, 0x80008000u);
}
/// mul.rn.f16x2.
DG_DEVICE u32 mul_f16x2(u32 a, u32 b) {
    u32 d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
/// cvt.rn.f16x2.e4m3x2 of four bytes: two pairs, in order; exact, NaN stays NaN. Since sm_89.
DG_DEVICE void cvt_f16x2_e4m3(u32 bytes, u32& low, u32& high) {
    asm("{\n"
        ".reg .b16 l, h;\n"
        "mov.b32 {l, h}, %2;\n"
        "cvt.rn.f16x2.e4m3x2 %0, l;\n"
        "cvt.rn.f16x2.e4m3x2 %1, h;\n"
        "}"
        : "=r"(low), "=r"(high)
        : "r"(bytes));
}
/// The same of two bytes, bits 0 to 15.
DG_DEVICE u32 cvt_f16x2_e4m3x2(u32 bytes) {
    u32 pair;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"(static_cast<u16>(bytes)));
    return pair;
}
/// cvt.f32.f16 of both halves; exact.
DG_DEVICE Float2 cvt_f32_f16x2(u32 pair) {
    Float2 v;
    asm("{\n"
        ".reg .b16 l, h;\n"
        "mov.b32 {l, h}, %2;\n"
        "cvt.f32.f16 %0, l;\n"
        "cvt.f32.f16 %1, h;\n"
        "}"
        : "=f"(v.x), "=f"(v.y)
        : "r"(pair));
    return v;
}
/// fma.rn.f32, never contracted, never split.
DG_DEVICE float fma_rn(float a, float b, float c) {
    return __fmaf_rn(a, b, c);
}
/// mul.rn.f32, never contracted into an fma.
DG_DEVICE float mul_rn(float a, float b) {
    return __fmul_rn(a, b);
}
/// add.rn.f32, never contracted into an fma.
DG_DEVICE float add_rn(float a, float b) {
    return __fadd_rn(a, b);
}
/// div.rn.f32, whatever the compiler's flags.
DG_DEVICE float div_rn(float a, float b) {
    return __fdiv_rn(a, b);
}
/// ex2.approx.ftz.f32: 2^x within 2 ulp.
DG_DEVICE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/// rcp.approx.ftz.f32: 1 / x within 1 ulp.
DG_DEVICE float rcp_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/// dp4a.s32: c plus the four products of signed bytes.
DG_DEVICE i32 dp4a(u32 a, u32 b, i32 c) {
    return __dp4a(static_cast<int>(a), static_cast<int>(b), c);
}
/// cvt.f32.f16 of the low 16 bits; exact.
DG_DEVICE float cvt_f32_f16(u32 bits) {
    float value;
    asm("{\n.reg .b16 h;\ncvt.u16.u32 h, %1;\ncvt.f32.f16 %0, h;\n}" : "=f"(value) : "r"(bits));
    return value;
}
/// cvt.rn.f16.f32: round to nearest even.
DG_DEVICE u16 cvt_f16_f32(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
/// cvt.rn.bf16x2.f32 of one value: the bits of its bf16.
DG_DEVICE u16 cvt_bf16_f32(float value) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(0.0f), "f"(value));
    return static_cast<u16>(packed);
}
/// cvt.rni.s32.f32: the nearest integer, ties to even.
DG_DEVICE i32 cvt_s32_rni(float value) {
    i32 result;
    asm("cvt.rni.s32.f32 %0, %1;" : "=r"(result) : "f"(value));
    return result;
}

}  // namespace deep_gemm::ptx
