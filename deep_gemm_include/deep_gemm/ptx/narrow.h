// What quantisers are made of: wide loads, fp32 arithmetic whose roundings are fixed, conversions to FP8.
#pragma once

#include <deep_gemm/ptx/global.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm::ptx {

DG_DEVICE void st_global_v4_u32(void* address, u32 x, u32 y, u32 z, u32 w) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}
DG_DEVICE void st_global_s32(i32* address, i32 value) {
    asm volatile("st.global.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
/// The low byte.
DG_DEVICE void st_global_b8(void* address, u32 value) {
    asm volatile("st.global.u8 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

DG_DEVICE u32 ld_shared_b32(SharedAddress address) {
    u32 value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address));
    return value;
}
DG_DEVICE void st_shared_b32(SharedAddress address, u32 value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
/// popc.
DG_DEVICE u32 count_bits(u32 mask) {
    return static_cast<u32>(__popc(mask));
}

/// shfl.sync.bfly. Scope: warp. The value of lane `lane ^ mask`.
DG_DEVICE float shfl_bfly_f32(float value, u32 mask) {
    return __shfl_xor_sync(kFullWarp, value, static_cast<int>(mask));
}

/// mul.rn.f32: never part of an fma, whatever the compiler's flags. So with the next ones.
DG_DEVICE float mul_rn_f32(float a, float b) {
    return __fmul_rn(a, b);
}
DG_DEVICE float add_rn_f32(float a, float b) {
    return __fadd_rn(a, b);
}
DG_DEVICE float fma_rn_f32(float a, float b, float c) {
    return __fmaf_rn(a, b, c);
}
DG_DEVICE float div_rn_f32(float a, float b) {
    return __fdiv_rn(a, b);
}
/// max.NaN.f32: NaN when either is.
DG_DEVICE float max_nan_f32(float a, float b) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
}
/// min.NaN.f32: NaN when either is.
DG_DEVICE float min_nan_f32(float a, float b) {
    float smaller;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(smaller) : "f"(a), "f"(b));
    return smaller;
}
/// abs.f32.
DG_DEVICE float abs_f32(float a) {
    float magnitude;
    asm("abs.f32 %0, %1;" : "=f"(magnitude) : "f"(a));
    return magnitude;
}

/// cvt.rn.satfinite.e4m3x2.f32: `low` in bits 0 to 7. Round to nearest even; needs sm_89.
DG_DEVICE u32 cvt_e4m3x2(float low, float high) {
    u16 packed;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
    return packed;
}
/// The two bf16 of a word; exact.
DG_DEVICE float bf16_low(u32 pair) {
    return __uint_as_float(pair << 16);
}
DG_DEVICE float bf16_high(u32 pair) {
    return __uint_as_float(pair & 0xffff0000u);
}

}  // namespace deep_gemm::ptx
