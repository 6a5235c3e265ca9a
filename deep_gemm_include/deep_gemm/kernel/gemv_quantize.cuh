// Quantises activations, one warp for each block of a row: a row's result depends on this row alone.
//
//   q8       d = amax / 127, q = clamp(rint(x * (1 / d)), -128, 127); an all-zero block has d = 0
//   fp8_*    d = max(amax, 1e-4) / 448, q = E4M3(x * (1 / d)), to nearest even, as
//   utils.per_token_cast_to_fp8
//
// A NaN or infinity in a block makes its scale NaN or infinite, and thereby every product of the block NaN:
// nothing is hidden. Launched by op/linear.cpp.
#pragma once

#include <deep_gemm/kernel/gemv_store.h>
#include <deep_gemm/spec/gemv_quantize.h>

namespace deep_gemm {
namespace gemv_quantize_detail {

/// E4M3 of a finite number, to nearest even, largest 448; no conversion instruction before sm_89 does it.
DG_DEVICE u32 e4m3_of(float value) {
    const u32 bits = ptx::float_bits(value), sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffff;
    constexpr u32 kSmallestNormal = 121u << 23;  // 2^-6
    if (magnitude < kSmallestNormal)             // multiples of 2^-9: the last bits of a sum with 2^14
        return sign | (ptx::float_bits(ptx::add_rn(ptx::float_of_bits(magnitude), 16384.0f)) & 0xf);
    const u32 rounded = (magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20;
    const u32 code = rounded - (120u << 3);
    return sign | (code < 0x7e ? code : 0x7e);
}

template <GemvQuantizeSpec S>
DG_DEVICE void run(const GemvQuantizeParams& p) {
    static_assert(why_illegal(S) == nullptr, "no such kernel");
    constexpr u32 kBlock = block_k_of(S.to), kLaneElements = kBlock / 32;
    constexpr bool kInteger = S.to == Activation::q8;
    if constexpr (S.dependent_launch) {
        ptx::grid_dependency_launch();
        ptx::grid_dependency_wait();
    }
    const u32 blocks = ceil_div(p.k, kBlock), lane = ptx::lane_index();
    const u64 mine = u64{ptx::block_index()} * (kGemvQuantizeThreads / 32) + ptx::warp_index();
    if (mine >= u64{p.m} * blocks) return;
    const u64 row = mine / blocks;
    const u32 block = static_cast<u32>(mine % blocks);
    float value[kLaneElements];
    u32 largest = 0;  // as bits: NaN is above infinity
#pragma unroll
    for (u32 i = 0; i < kLaneElements; ++i) {
        const u32 column = block * kBlock + lane * kLaneElements + i;
        value[i] = column < p.k ? kernel::load_value<S.x>(p.x + row * p.x_stride, column) : 0.0f;
        const u32 magnitude = ptx::float_bits(value[i]) & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
#pragma unroll
    for (u32 distance = 16; distance > 0; distance /= 2) {
        const u32 other = ptx::float_bits(ptx::shfl_xor_f32(ptx::float_of_bits(largest), distance));
        largest = other > largest ? other : largest;
    }
    const float amax = ptx::float_of_bits(largest);
    constexpr float kSmallestAmax = 1e-4f;
    const float scale = kInteger ? ptx::div_rn(amax, 127.0f)
                                 : ptx::div_rn(amax < kSmallestAmax ? kSmallestAmax : amax, 448.0f);
    const float inverse = scale == 0 ? 0.0f : ptx::div_rn(1.0f, scale);
    if (lane == 0) ptx::st_global_f32(p.scales + row * p.scales_stride + block, scale);
#pragma unroll
    for (u32 i = 0; i < kLaneElements; ++i) {
        const u32 column = block * kBlock + lane * kLaneElements + i;
        const float quotient = ptx::mul_rn(value[i], inverse);
        u8* address = p.values + row * p.values_stride + column;
        if constexpr (kInteger) {
            i32 q = ptx::cvt_s32_rni(quotient);
            q = q < -128 ? -128 : q > 127 ? 127 : q;
            ptx::st_global_u8(address, static_cast<u32>(q) & 0xff);
        } else if (column < p.k) {
            ptx::st_global_u8(address, e4m3_of(quotient));
        }
    }
}

}  // namespace gemv_quantize_detail

template <GemvQuantizeSpec S>
DG_KERNEL(kGemvQuantizeThreads, 4)
gemv_quantize(DG_GRID_CONSTANT const GemvQuantizeParams p) {
    gemv_quantize_detail::run<S>(p);
}

}  // namespace deep_gemm
