// Elementary functions of fp32, and integers that scans and random numbers need.
#pragma once

#include <deep_gemm/ptx/base.h>

namespace deep_gemm::ptx {

/// e^x within 2 ulp; 0 for -infinity.
DG_DEVICE float exp_f32(float x) {
    return expf(x);
}
/// log(1 + x) within 1 ulp.
DG_DEVICE float log1p_f32(float x) {
    return log1pf(x);
}
/// sqrt.rn.f32.
DG_DEVICE float sqrt_rn_f32(float x) {
    return __fsqrt_rn(x);
}
/// cvt.rni.f32.f32: the nearest integer, ties to even.
DG_DEVICE float rint_f32(float x) {
    return rintf(x);
}
/// sin(pi x) and cos(pi x) within 1 ulp.
DG_DEVICE float sin_pi_f32(float x) {
    return sinpif(x);
}
DG_DEVICE float cos_pi_f32(float x) {
    return cospif(x);
}

/// shfl.sync.bfly. Scope: warp.
DG_DEVICE u32 shfl_bfly_u32(u32 value, u32 mask) {
    return __shfl_xor_sync(kFullWarp, value, static_cast<int>(mask));
}
/// shfl.sync.bfly and shfl.sync.up, two 32-bit shuffles each. Scope: warp.
DG_DEVICE u64 shfl_bfly_u64(u64 value, u32 mask) {
    return __shfl_xor_sync(kFullWarp, value, static_cast<int>(mask));
}
DG_DEVICE u64 shfl_up_u64(u64 value, u32 delta) {
    return __shfl_up_sync(kFullWarp, value, delta);
}
/// popc.b32.
DG_DEVICE u32 popc(u32 mask) {
    return static_cast<u32>(__popc(mask));
}
/// mul.hi.u64.
DG_DEVICE u64 mul_hi_u64(u64 a, u64 b) {
    return __umul64hi(a, b);
}
/// cvt.rzi.u64.f32: truncates; negative values and NaN give 0.
DG_DEVICE u64 cvt_u64_f32(float x) {
    return __float2ull_rz(x);
}
/// cvt.rn.f32.u64.
DG_DEVICE float cvt_f32_u64(u64 x) {
    return __ull2float_rn(x);
}

}  // namespace deep_gemm::ptx
