// Latent attention over cached rows (spec/attention.h): a CTA has four heads of one token. Per tile: each
// warp loads rows, keeps their values in shared memory and their scores with all heads; two warps turn scores
// into weights; then every thread adds its channels. Called by op/attention.cpp.
#pragma once

#include <deep_gemm/spec/attention.h>
#include <deep_gemm/tile/latent_row.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm {

namespace attention_detail {

using tile::Float4;

constexpr float kNothing = codec::float_of_bits(codec::kSignBit | codec::kInfinityBits);

DG_DEVICE float dot4(const Float4& a, const Float4& b, float sum) {
    sum = ptx::fma_rn_f32(a.x, b.x, sum);
    sum = ptx::fma_rn_f32(a.y, b.y, sum);
    sum = ptx::fma_rn_f32(a.z, b.z, sum);
    return ptx::fma_rn_f32(a.w, b.w, sum);
}

/// The rows that one token sees, in order.
template <AttentionSpec S>
struct Rows {
    u32 sequence, first, in_window, total, visible, token;

    DG_DEVICE Rows(const AttentionParams& p, u32 row, i32 position) : token(row) {
        sequence = tile::sequence_of(p.sequences, row);
        const u32 end = static_cast<u32>(position) + 1;
        first = end > p.window ? end - p.window : 0;
        in_window = end - first;
        total = in_window;
        visible = 0;
        if constexpr (S.compressed != Format::none) {
            visible = end / p.ratio < p.compressed.rows ? end / p.ratio : p.compressed.rows;
            total += S.picks ? p.num_picks : visible;
        }
    }

    /// Four channels of row `index`; false where there is none.
    DG_DEVICE bool read(const AttentionParams& p, u32 index, u32 channel, Float4& row_channels) const {
        if (index >= total) return false;
        if (index < in_window) {
            row_channels =
                tile::read_latent<S.rows>(p.rows, sequence, (first + index) % p.rows.rows, channel);
            return true;
        }
        if constexpr (S.compressed != Format::none) {
            u32 row = index - in_window;
            if constexpr (S.picks)
                row = static_cast<u32>(
                    ptx::ld_global_s32(p.picks + static_cast<u64>(token) * p.num_picks + row));
            if (row >= visible) return false;
            row_channels = tile::read_latent<S.compressed>(p.compressed, sequence, row, channel);
            return true;
        }
        return false;
    }
};

/// Softmax state of a head, the same in the 16 lanes that have its tile.
struct Running {
    float max = kNothing, sum = 0;

    /// Takes a tile's score of this lane; gives its weight and the factor for the sums so far.
    DG_DEVICE float push(float score, float& factor) {
        const float largest = ptx::max_nan_f32(max, tile::warp_max<kAttentionTile>(score));
        const bool empty = largest == kNothing;
        factor = empty ? 1.0f : ptx::exp_f32(max - largest);
        const float weight = empty ? 0.0f : ptx::exp_f32(score - largest);
        sum = ptx::fma_rn_f32(sum, factor, tile::warp_sum<kAttentionTile>(weight));
        max = largest;
        return weight;
    }
    /// 1 / (sum + e^(sink - max)).
    [[nodiscard]] DG_DEVICE float normalizer(float sink) const {
        if (max == kNothing) return 0;
        const float largest = ptx::max_nan_f32(max, sink);
        if (largest == -kNothing) return 0;
        const float mine = ptx::exp_f32(max - largest);
        return mine / ptx::fma_rn_f32(sum, mine, ptx::exp_f32(sink - largest));
    }
};

}  // namespace attention_detail

template <AttentionSpec S>
DG_KERNEL(kAttentionThreads, 2)
attention(DG_GRID_CONSTANT const AttentionParams p) {
    using attention_detail::Float4;
    constexpr AttentionSmem kPlan = plan_smem(S);
    constexpr u32 H = kAttentionHeads, kTile = kAttentionTile, kChunks = S.d / 4;
    constexpr u32 kKeys = ceil_div(S.d, 128u);                        // chunks of a row in a lane
    constexpr u32 kUnits = ceil_div(H * kChunks, kAttentionThreads);  // (head, chunk) pairs of a thread
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 thread = ptx::thread_index(), lane = ptx::lane_index(), warp = ptx::warp_index();
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 groups = ceil_div(p.heads, H), token = ptx::block_index() / groups;
    const u32 first_head = ptx::block_index() % groups * H;
    const u32 num_heads = p.heads - first_head < H ? p.heads - first_head : H;
    const i32 position = ptx::ld_global_s32(p.positions + token);
    const bool idle = position < 0 || tile::sequence_of(p.sequences, token) >= p.rows.sequences;

    Float4 sums[kUnits] = {};
    if (!idle) {
        const attention_detail::Rows<S> rows(p, token, position);
        Float4 q[H][kKeys] = {};
#pragma unroll
        for (u32 h = 0; h < H; ++h)
#pragma unroll
            for (u32 i = 0; i < kKeys; ++i) {
                const u32 channel = lane * 4 + i * 128;
                if (h < num_heads && channel < S.d)
                    q[h][i] = tile::load4<S.q>(
                        p.q.data, token * p.q.stride + (first_head + h) * p.q.inner_stride + channel);
            }
        attention_detail::Running running;
        for (u32 base = 0; base < rows.total; base += kTile) {
            for (u32 r = warp; r < kTile; r += kAttentionWarps) {
                float scores[H] = {};
                bool present = false;
#pragma unroll
                for (u32 i = 0; i < kKeys; ++i) {
                    const u32 channel = lane * 4 + i * 128;
                    Float4 key{};
                    if (channel < S.d) {
                        present = rows.read(p, base + r, channel, key);
                        ptx::st_shared_v4_f32(smem + kPlan.values + (r * S.d + channel) * 4, key.x, key.y,
                                              key.z, key.w);
                    }
#pragma unroll
                    for (u32 h = 0; h < H; ++h) scores[h] = attention_detail::dot4(q[h][i], key, scores[h]);
                }
#pragma unroll
                for (u32 h = 0; h < H; ++h) {
                    const float score = ptx::mul_rn_f32(tile::warp_sum(scores[h]), p.scale);
                    if (lane == 0)
                        ptx::st_shared_f32(smem + kPlan.weights + (h * kTile + r) * 4,
                                           present ? score : attention_detail::kNothing);
                }
            }
            ptx::sync_threads();
            if (warp < H * kTile / 32) {
                float factor;
                const ptx::SharedAddress at = smem + kPlan.weights + thread * 4;
                ptx::st_shared_f32(at, running.push(ptx::ld_shared_f32(at), factor));
                if (thread % kTile == 0)
                    ptx::st_shared_f32(smem + kPlan.factors + thread / kTile * 4, factor);
            }
            ptx::sync_threads();
#pragma unroll
            for (u32 u = 0; u < kUnits; ++u) {
                const u32 unit = thread + u * kAttentionThreads, h = unit / kChunks, chunk = unit % kChunks;
                if (h >= H) continue;
                const float factor = ptx::ld_shared_f32(smem + kPlan.factors + h * 4);
                Float4 sum{sums[u].x * factor, sums[u].y * factor, sums[u].z * factor, sums[u].w * factor};
                for (u32 r = 0; r < kTile; ++r) {
                    const float weight = ptx::ld_shared_f32(smem + kPlan.weights + (h * kTile + r) * 4);
                    const Float4 v = ptx::ld_shared_v4_f32(smem + kPlan.values + (r * S.d + chunk * 4) * 4);
                    sum = {ptx::fma_rn_f32(weight, v.x, sum.x), ptx::fma_rn_f32(weight, v.y, sum.y),
                           ptx::fma_rn_f32(weight, v.z, sum.z), ptx::fma_rn_f32(weight, v.w, sum.w)};
                }
                sums[u] = sum;
            }
            ptx::sync_threads();
        }
        const u32 h = thread / kTile;
        if (thread < H * kTile && thread % kTile == 0) {
            float sink = attention_detail::kNothing;
            if constexpr (S.sinks)
                if (h < num_heads) sink = ptx::ld_global_f32(p.sinks + first_head + h);
            ptx::st_shared_f32(smem + kPlan.factors + h * 4, running.normalizer(sink));
        }
        ptx::sync_threads();
    }
#pragma unroll
    for (u32 u = 0; u < kUnits; ++u) {
        const u32 unit = thread + u * kAttentionThreads, h = unit / kChunks, channel = unit % kChunks * 4;
        if (h >= num_heads) continue;
        Float4 o = sums[u];
        if (!idle) {
            const float factor = ptx::ld_shared_f32(smem + kPlan.factors + h * 4);
            o = {o.x * factor, o.y * factor, o.z * factor, o.w * factor};
            if constexpr (S.rotate)
                tile::rotate4<RopePairs::interleaved>(o, channel, S.d, p.dims, p.frequencies, position, true);
        }
        tile::store4<S.out>(p.out.data,
                            token * p.out.stride + (first_head + h) * p.out.inner_stride + channel, o);
    }
}

}  // namespace deep_gemm
