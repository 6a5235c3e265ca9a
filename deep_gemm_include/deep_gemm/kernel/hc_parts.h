// What hc_sums, hc_apply and hc_few share (spec/hc_sums.h): the arithmetic, in which their bits must not differ.
#pragma once

#include <deep_gemm/spec/hc_sums.h>
#include <deep_gemm/kernel/hc_coefficients.h>
#include <deep_gemm/tile/real.h>
#include <deep_gemm/tile/reduce.h>
#include <deep_gemm/ptx/convert.h>

namespace deep_gemm::hc_detail {

constexpr u32 kFnTiles = kHcMixes / 8, kFnParts = 3;  // of eight mixes; bf16 whose sum is fn

/// fn of four channels of a mix as the right operand of mma.sync: a part's words are those of a step of 16.
DG_DEVICE void split_fn(u32 (&parts)[kFnParts][2], const tile::Float4& fn) {
    const auto split = [&](u32 half, float x, float y) {
#pragma unroll
        for (u32 part = 0; part < kFnParts; ++part) {
            const u32 pair = ptx::cvt_bf16x2(x, y);
            parts[part][half] = pair;
            x = ptx::add_rn_f32(x, -ptx::bf16_low(pair)), y = ptx::add_rn_f32(y, -ptx::bf16_high(pair));
        }
    };
    split(0, fn.x, fn.y);
    split(1, fn.z, fn.w);
}

/// Four channels of each stream of a token, and of the output that they take in.
struct Loaded {
    u32 x[kHcStreams][2], y[2];
};

/// The streams of a token after that: pairs of bf16.
struct Taken {
    u32 pair[kHcStreams][2];

    [[nodiscard]] DG_DEVICE float squares() const {
        float sum = 0;
#pragma unroll
        for (u32 b = 0; b < kHcStreams; ++b)
#pragma unroll
            for (u32 i = 0; i < 2; ++i) {
                const float low = ptx::bf16_low(pair[b][i]), high = ptx::bf16_high(pair[b][i]);
                sum = ptx::fma_rn_f32(high, high, ptx::fma_rn_f32(low, low, sum));
            }
        return tile::warp_sum<4>(sum);
    }
};

/// comb_of(a): comb of source stream a, one for each stream that takes in.
template <typename CombOf>
DG_DEVICE void take_in(Taken& taken, const Loaded& loaded, const tile::Float4& post, CombOf comb_of) {
    float v[kHcStreams][4];
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        const float y[2] = {ptx::bf16_low(loaded.y[i]), ptx::bf16_high(loaded.y[i])};
#pragma unroll
        for (u32 j = 0; j < 2; ++j) {
            v[0][i * 2 + j] = ptx::mul_rn_f32(post.x, y[j]);
            v[1][i * 2 + j] = ptx::mul_rn_f32(post.y, y[j]);
            v[2][i * 2 + j] = ptx::mul_rn_f32(post.z, y[j]);
            v[3][i * 2 + j] = ptx::mul_rn_f32(post.w, y[j]);
        }
    }
#pragma unroll
    for (u32 a = 0; a < kHcStreams; ++a) {
        const tile::Float4 comb = comb_of(a);
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            const float x[2] = {ptx::bf16_low(loaded.x[a][i]), ptx::bf16_high(loaded.x[a][i])};
#pragma unroll
            for (u32 j = 0; j < 2; ++j) {
                const u32 c = i * 2 + j;
                v[0][c] = ptx::fma_rn_f32(comb.x, x[j], v[0][c]);
                v[1][c] = ptx::fma_rn_f32(comb.y, x[j], v[1][c]);
                v[2][c] = ptx::fma_rn_f32(comb.z, x[j], v[2][c]);
                v[3][c] = ptx::fma_rn_f32(comb.w, x[j], v[3][c]);
            }
        }
    }
#pragma unroll
    for (u32 b = 0; b < kHcStreams; ++b)
#pragma unroll
        for (u32 i = 0; i < 2; ++i) taken.pair[b][i] = ptx::cvt_bf16x2(v[b][i * 2], v[b][i * 2 + 1]);
}

/// Of a mix or a lane's number of it, which of the scales it has.
DG_DEVICE u32 scale_of(u32 mix) {
    return mix < kHcStreams ? 0 : mix < 2 * kHcStreams ? 1 : 2;
}
/// z of a mix: from what fn makes of the streams, and the sum of their squares.
DG_DEVICE float z_of(const HcParams& p, float total, float square, float scale, float base) {
    const float q = 1.0f / ptx::sqrt_rn_f32(square / static_cast<float>(kHcStreams * p.d) + p.rms_eps);
    return total * q * scale + base;
}

/// One stream's share of the sublayer's input, of four channels.
DG_DEVICE void mix_in(tile::Float4& u, float pre, u32 x, u32 y) {
    u = {ptx::fma_rn_f32(pre, ptx::bf16_low(x), u.x), ptx::fma_rn_f32(pre, ptx::bf16_high(x), u.y),
         ptx::fma_rn_f32(pre, ptx::bf16_low(y), u.z), ptx::fma_rn_f32(pre, ptx::bf16_high(y), u.w)};
}
/// The squares of a warp's 128 channels.
DG_DEVICE float squares_of(const tile::Float4& u) {
    float sum = ptx::mul_rn_f32(u.x, u.x);
    sum = ptx::fma_rn_f32(u.y, u.y, sum);
    sum = ptx::fma_rn_f32(u.z, u.z, sum);
    return tile::warp_sum(ptx::fma_rn_f32(u.w, u.w, sum));
}
/// What the norm multiplies by; lane i has the squares of 128 channels i, i + 32, .., added up.
DG_DEVICE float norm_of(const HcParams& p, float squares_of_lane) {
    return 1.0f / ptx::sqrt_rn_f32(tile::warp_sum(squares_of_lane) / static_cast<float>(p.d) + p.rms_eps);
}
DG_DEVICE tile::Float4 normed(const tile::Float4& u, float factor, const tile::Float4& w) {
    return {u.x * factor * w.x, u.y * factor * w.y, u.z * factor * w.z, u.w * factor * w.w};
}

}  // namespace deep_gemm::hc_detail
