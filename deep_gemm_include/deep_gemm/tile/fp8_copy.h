// A finished row of bf16 also as E4M3 with a scale for 128 columns: the bits that kernel/quantize.cuh makes
// of the stored row.
#pragma once

#include <deep_gemm/spec/quantize.h>
#include <deep_gemm/tile/quantize.h>
#include <deep_gemm/tile/real.h>
#include <deep_gemm/tile/reduce.h>
#include <deep_gemm/ptx/narrow.h>

namespace deep_gemm::tile {

/// Columns `column` to `column + 3` of a row, 128 neighbouring ones in a warp, all of whose lanes call.
template <ScaleRule Rule>
DG_DEVICE void store_fp8_copy(u8* codes, float* scales, u32 column, const Float4& value) {
    const Float4 v = through_bf16(value);
    float amax = ptx::max_nan_f32(ptx::max_nan_f32(ptx::abs_f32(v.x), ptx::abs_f32(v.y)),
                                  ptx::max_nan_f32(ptx::abs_f32(v.z), ptx::abs_f32(v.w)));
    amax = ptx::max_nan_f32(warp_max<32>(amax), kFp8SmallestAmax);
    const float scale = scale_of_amax<Rule>(amax);
    const float factor = ptx::div_rn_f32(1.0f, scale);
    const auto times = [factor](float x) { return ptx::mul_rn_f32(x, factor); };
    ptx::st_global_u32(codes + column, ptx::cvt_e4m3x2(times(v.x), times(v.y)) |
                                           ptx::cvt_e4m3x2(times(v.z), times(v.w)) << 16);
    if (ptx::lane_index() == 0) ptx::st_global_f32(scales + column / 128, scale);
}

}  // namespace deep_gemm::tile
