// Eight neighbouring elements of a thread to codes of a narrow format. The lanes whose elements share a scale
// are neighbours; all of them call together. fp32, each operation rounded once, in the order of
// docs/formats.md.
#pragma once

#include <deep_gemm/spec/codec.h>
#include <deep_gemm/spec/quantize.h>
#include <deep_gemm/ptx/narrow.h>
#include <deep_gemm/ptx/shared.h>

namespace deep_gemm::tile {

using Chunk = float[kQuantizeChunk];

/// Eight elements from global memory, 16 or 32 bytes, aligned to 16.
template <Format X>
DG_DEVICE void load_chunk(const void* x, u64 index, Chunk& v) {
    const u8* at = static_cast<const u8*>(x) + index * bytes_of(X);
    if constexpr (X == Format::bf16) {
        const ptx::UInt4 w = ptx::ld_global_v4_u32(at);
        const u32 pairs[] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            v[2 * i] = ptx::bf16_low(pairs[i]);
            v[2 * i + 1] = ptx::bf16_high(pairs[i]);
        }
    } else {
        const ptx::Float4 low = ptx::ld_global_v4_f32(at), high = ptx::ld_global_v4_f32(at + 16);
        const float all[] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (u32 i = 0; i < kQuantizeChunk; ++i) v[i] = all[i];
    }
}

DG_DEVICE float amax_of(const Chunk& v) {
    float amax = 0;
#pragma unroll
    for (u32 i = 0; i < kQuantizeChunk; ++i) amax = ptx::max_nan_f32(amax, ptx::abs_f32(v[i]));
    return amax;
}

/// The largest over `Lanes` neighbouring lanes, in all of them.
template <u32 Lanes>
DG_DEVICE float amax_over(float amax) {
#pragma unroll
    for (u32 mask = 1; mask < Lanes; mask *= 2) amax = ptx::max_nan_f32(amax, ptx::shfl_bfly_f32(amax, mask));
    return amax;
}

/// The largest of a CTA's values, in all threads. `smem`: a float for each warp.
template <u32 Threads>
DG_DEVICE float amax_over_cta(ptx::SharedAddress smem, float amax) {
    amax = amax_over<ptx::kWarpThreads>(amax);
    const u32 thread = ptx::thread_index();
    if (thread % ptx::kWarpThreads == 0) ptx::st_shared_f32(smem + thread / ptx::kWarpThreads * 4, amax);
    ptx::sync_threads();
    float all = 0;
#pragma unroll
    for (u32 warp = 0; warp < Threads / ptx::kWarpThreads; ++warp)
        all = ptx::max_nan_f32(all, ptx::ld_shared_f32(smem + warp * 4));
    return all;
}

struct Fp8Chunk {
    u32 words[2];
    float scale;
};

/// The scale of E4M3 codes whose largest stands for amax.
template <ScaleRule Rule>
DG_DEVICE float scale_of_amax(float amax) {
    const float scale = ptx::div_rn_f32(amax, codec::kE4m3Max);
    if constexpr (Rule == ScaleRule::up) return codec::ue8m0_to_f32(codec::f32_to_ue8m0_up(scale));
    if constexpr (Rule == ScaleRule::nearest) return codec::ue8m0_to_f32(codec::f32_to_ue8m0_nearest(scale));
    return scale;
}

template <ScaleRule Rule>
DG_DEVICE float fp8_scale_of(float amax) {
    return scale_of_amax<Rule>(ptx::max_nan_f32(amax, kFp8SmallestAmax));
}

/// E4M3 with one scale for all elements whose largest is `amax`.
template <ScaleRule Rule>
DG_DEVICE Fp8Chunk to_fp8(const Chunk& v, float amax) {
    const float scale = fp8_scale_of<Rule>(amax);
    const float factor = ptx::div_rn_f32(1.0f, scale);
    Fp8Chunk out{.words = {}, .scale = scale};
#pragma unroll
    for (u32 i = 0; i < kQuantizeChunk; i += 2)
        out.words[i / 4] |= ptx::cvt_e4m3x2(ptx::mul_rn_f32(v[i], factor), ptx::mul_rn_f32(v[i + 1], factor))
                            << (i % 4 * 8);
    return out;
}

/// E4M3 with one scale for 128 elements (16 lanes).
template <ScaleRule Rule>
DG_DEVICE Fp8Chunk to_fp8(const Chunk& v) {
    return to_fp8<Rule>(v, amax_over<16>(amax_of(v)));
}

/// Eight E2M1 codes of v * factor, the first in the lowest nibble.
DG_DEVICE u32 to_e2m1(const Chunk& v, float factor) {
    u32 word = 0;
#pragma unroll
    for (u32 i = 0; i < kQuantizeChunk; ++i)
        word |= codec::f32_to_e2m1(ptx::mul_rn_f32(v[i], factor)) << (4 * i);
    return word;
}

struct Fp4Chunk {
    u32 word;
    u32 scale;  // a byte
};

/// MXFP4: a UE8M0 scale for 32 elements (4 lanes).
template <ScaleRule Rule>
DG_DEVICE Fp4Chunk to_mxfp4(const Chunk& v) {
    const float amax = ptx::max_nan_f32(amax_over<4>(amax_of(v)), kMxSmallestAmax);
    const float ratio = ptx::div_rn_f32(amax, codec::kE2m1Max);
    const u32 scale =
        Rule == ScaleRule::up ? codec::f32_to_e2m1_scale_up(ratio) : codec::f32_to_ue8m0_nearest(ratio);
    return {to_e2m1(v, ptx::div_rn_f32(1.0f, codec::ue8m0_to_f32(scale))), scale};
}

/// NVFP4: an E4M3 scale for 16 elements (2 lanes), relative to the global one.
DG_DEVICE Fp4Chunk to_nvfp4(const Chunk& v, float global) {
    const float ratio = ptx::div_rn_f32(amax_over<2>(amax_of(v)), ptx::mul_rn_f32(codec::kE2m1Max, global));
    const u32 scale = ptx::cvt_e4m3x2(ratio, 0.0f);
    const float value = codec::e4m3_to_f32(scale);
    const float factor = value == 0 ? 0.0f : ptx::div_rn_f32(1.0f, ptx::mul_rn_f32(value, global));
    return {to_e2m1(v, factor), scale};
}

/// The global scale of NVFP4 from an amax.
DG_DEVICE float nvfp4_global(float amax) {
    return amax == 0 ? 1.0f : ptx::div_rn_f32(amax, codec::kE4m3Max * codec::kE2m1Max);
}

}  // namespace deep_gemm::tile
