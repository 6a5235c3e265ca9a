// A finished row of bf16 also in a narrow form: the bits that kernel/quantize.cuh makes of the stored row. A
// thread has four columns, a warp 128 neighbouring ones; all of its lanes call.
#pragma once

#include <deep_gemm/spec/quantize.h>
#include <deep_gemm/tile/quantize.h>
#include <deep_gemm/tile/real.h>
#include <deep_gemm/tile/reduce.h>
#include <deep_gemm/ptx/narrow.h>

namespace deep_gemm::tile {

DG_DEVICE float amax_of_four(const Float4& v) {
    return ptx::max_nan_f32(ptx::max_nan_f32(ptx::abs_f32(v.x), ptx::abs_f32(v.y)),
                            ptx::max_nan_f32(ptx::abs_f32(v.z), ptx::abs_f32(v.w)));
}

/// E4M3 with a scale for the warp's 128 columns, of which a lane has four.
struct Fp8Columns {
    u32 codes;
    float scale;
};
template <ScaleRule Rule>
DG_DEVICE Fp8Columns to_fp8_columns(const Float4& v) {
    const float amax = ptx::max_nan_f32(warp_max<32>(amax_of_four(v)), kFp8SmallestAmax);
    const float scale = scale_of_amax<Rule>(amax);
    const float factor = ptx::div_rn_f32(1.0f, scale);
    const auto times = [factor](float x) { return ptx::mul_rn_f32(x, factor); };
    return {ptx::cvt_e4m3x2(times(v.x), times(v.y)) | ptx::cvt_e4m3x2(times(v.z), times(v.w)) << 16, scale};
}
template <ScaleRule Rule>
DG_DEVICE void store_fp8_copy(u8* codes, float* scales, u32 column, const Float4& v) {
    const Fp8Columns out = to_fp8_columns<Rule>(v);
    ptx::st_global_u32(codes + column, out.codes);
    if (ptx::lane_index() == 0) ptx::st_global_f32(scales + column / 128, out.scale);
}

/// E2M1 with the scale of `Columns` neighbouring columns, a byte, whose value's inverse is `factor`.
template <u32 Columns>
DG_DEVICE void store_e2m1(u8* codes, u8* scales, u32 column, const Float4& v, float factor, u32 scale) {
    const auto code = [factor](float x) { return codec::f32_to_e2m1(ptx::mul_rn_f32(x, factor)); };
    ptx::st_global_u16(codes + column / 2,
                       static_cast<u16>(code(v.x) | code(v.y) << 4 | code(v.z) << 8 | code(v.w) << 12));
    if (column % Columns == 0) ptx::st_global_b8(scales + column / Columns, scale);
}

/// MXFP4: a UE8M0 scale for 32 columns.
template <ScaleRule Rule>
DG_DEVICE void store_mxfp4_copy(u8* codes, u8* scales, u32 column, const Float4& v) {
    const float amax = ptx::max_nan_f32(warp_max<8>(amax_of_four(v)), kMxSmallestAmax);
    const float ratio = ptx::div_rn_f32(amax, codec::kE2m1Max);
    const u32 scale =
        Rule == ScaleRule::up ? codec::f32_to_e2m1_scale_up(ratio) : codec::f32_to_ue8m0_nearest(ratio);
    store_e2m1<32>(codes, scales, column, v, ptx::div_rn_f32(1.0f, codec::ue8m0_to_f32(scale)), scale);
}

/// NVFP4: an E4M3 scale for 16 columns, relative to the row's `global`.
DG_DEVICE void store_nvfp4_copy(u8* codes, u8* scales, u32 column, const Float4& v, float global) {
    const float ratio =
        ptx::div_rn_f32(warp_max<4>(amax_of_four(v)), ptx::mul_rn_f32(codec::kE2m1Max, global));
    const u32 scale = ptx::cvt_e4m3x2(ratio, 0.0f);
    const float value = codec::e4m3_to_f32(scale);
    const float factor = value == 0 ? 0.0f : ptx::div_rn_f32(1.0f, ptx::mul_rn_f32(value, global));
    store_e2m1<16>(codes, scales, column, v, factor, scale);
}

/// Columns `column` to `column + 3` of row `row` of d in the recipe's form, as they are when stored in bf16.
/// `global`: of NVFP4.
template <Recipe R, ScaleRule Rule>
DG_DEVICE void store_copy(u8* codes, void* scales, u32 row, u32 d, u32 column, const Float4& value,
                          float global = 0) {
    const Float4 v = through_bf16(value);
    const u64 columns = static_cast<u64>(row) * d;
    if constexpr (R == Recipe::fp8_128)
        store_fp8_copy<Rule>(codes + columns, static_cast<float*>(scales) + columns / 128, column, v);
    else if constexpr (R == Recipe::mxfp4)
        store_mxfp4_copy<Rule>(codes + columns / 2, static_cast<u8*>(scales) + columns / 32, column, v);
    else
        store_nvfp4_copy(codes + columns / 2, static_cast<u8*>(scales) + columns / 16, column, v, global);
}

}  // namespace deep_gemm::tile
