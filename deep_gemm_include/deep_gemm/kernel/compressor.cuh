// Compressor (spec/compressor.h): a CTA a sequence, tokens in order, four channels a thread. Called by
// op/compressor.cpp.
#pragma once

#include <deep_gemm/spec/compressor.h>
#include <deep_gemm/tile/latent_row.h>

namespace deep_gemm {

namespace compressor_detail {

using tile::Float4;

/// Softmax pool of four channels.
struct Pool {
    float max[4], sum[4], weighted[4];

    DG_DEVICE void start(const Float4& k, const Float4& g) {
        const float values[] = {k.x, k.y, k.z, k.w}, gates[] = {g.x, g.y, g.z, g.w};
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            max[i] = gates[i];
            sum[i] = 1;
            weighted[i] = values[i];
        }
    }
    /// Adds the other's candidates.
    DG_DEVICE void merge(const Pool& other) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const float largest = ptx::max_nan_f32(max[i], other.max[i]);
            const float mine = ptx::exp_f32(max[i] - largest), theirs = ptx::exp_f32(other.max[i] - largest);
            max[i] = largest;
            sum[i] = ptx::fma_rn_f32(other.sum[i], theirs, ptx::mul_rn_f32(sum[i], mine));
            weighted[i] = ptx::fma_rn_f32(other.weighted[i], theirs, ptx::mul_rn_f32(weighted[i], mine));
        }
    }
    DG_DEVICE void push(bool first, const Float4& k, const Float4& g) {
        Pool one;
        one.start(k, g);
        if (first)
            *this = one;
        else
            merge(one);
    }
    [[nodiscard]] DG_DEVICE Float4 mean() const {
        return {weighted[0] / sum[0], weighted[1] / sum[1], weighted[2] / sum[2], weighted[3] / sum[3]};
    }
    DG_DEVICE void load(const float* at, u32 dim) {
        float* parts[] = {max, sum, weighted};
#pragma unroll
        for (u32 part = 0; part < 3; ++part) {
            const Float4 v = ptx::ld_global_v4_f32(at + part * dim);
            parts[part][0] = v.x;
            parts[part][1] = v.y;
            parts[part][2] = v.z;
            parts[part][3] = v.w;
        }
    }
    DG_DEVICE void store(float* at, u32 dim) const {
        const float* parts[] = {max, sum, weighted};
#pragma unroll
        for (u32 part = 0; part < 3; ++part)
            ptx::st_global_v4_f32(at + part * dim, parts[part][0], parts[part][1], parts[part][2],
                                  parts[part][3]);
    }
};

DG_DEVICE Float4 sum_of(const Float4& a, const Float4& b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

}  // namespace compressor_detail

template <CompressorSpec S>
DG_KERNEL(kLatentThreads, 4)
compressor_update(DG_GRID_CONSTANT const CompressorParams p) {
    using compressor_detail::Pool;
    constexpr u32 kPools = pools_of(S), kHalves = S.overlap ? 2 : 1;
    constexpr u32 kClosed = 0, kNext = 1, kOwn = kPools - 1;  // without overlap there is only kOwn
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 sequence = ptx::block_index(), channel = ptx::thread_index() * 4;
    const bool active = channel < p.dim;
    float* state = p.state + static_cast<u64>(sequence) * 3 * kPools * p.dim + channel;
    Pool pools[kPools] = {};
    if (active)
        for (u32 i = 0; i < kPools; ++i) pools[i].load(state + i * 3 * p.dim, p.dim);

    for (u32 token = 0; token < p.tokens; ++token) {
        const i32 at = ptx::ld_global_s32(p.positions + token);
        if (at < 0 || tile::sequence_of(p.sequences, token) != sequence) continue;
        const u32 position = static_cast<u32>(at), slot = position % p.ratio, window = position / p.ratio;
        if (active) {
            const float* ape = p.ape + static_cast<u64>(slot) * kHalves * p.dim + channel;
            const auto push = [&](Pool& pool, u32 half) {
                const tile::Float4 k =
                    ptx::ld_global_v4_f32(p.kv + token * p.kv_stride + half * p.dim + channel);
                const tile::Float4 g =
                    ptx::ld_global_v4_f32(p.gate + token * p.gate_stride + half * p.dim + channel);
                pool.push(slot == 0, k,
                          compressor_detail::sum_of(g, ptx::ld_global_v4_f32(ape + half * p.dim)));
            };
            if constexpr (S.overlap) push(pools[kNext], 0);
            push(pools[kOwn], kHalves - 1);
        }
        if (slot == p.ratio - 1) {
            tile::Float4 row{};
            if (active) {
                Pool all = pools[kOwn];
                if constexpr (S.overlap) {
                    if (window > 0) all.merge(pools[kClosed]);
                    pools[kClosed] = pools[kNext];
                }
                row = all.mean();
            }
            tile::normalize<kLatentThreads, S.weight>(row, ptx::dynamic_smem() + plan_smem(S).sums, p.weight,
                                                      channel, p.dim, p.eps);
            tile::rotate4<RopePairs::interleaved>(row, channel, p.dim, p.dims, p.frequencies,
                                                  static_cast<i32>(window * p.ratio), false);
            tile::finish_row<S.finish>(row, channel, p.dim, p.dims);
            if (window < p.rows.rows)
                tile::write_latent<S.rows>(p.rows, sequence, window, channel, p.dim, row);
        }
        if constexpr (S.journal) {
            float* entry = p.journal + static_cast<u64>(token) * 3 * kPools * p.dim + channel;
            if (active)
                for (u32 i = 0; i < kPools; ++i) pools[i].store(entry + i * 3 * p.dim, p.dim);
        }
    }
    if (active)
        for (u32 i = 0; i < kPools; ++i) pools[i].store(state + i * 3 * p.dim, p.dim);
}

template <CompressorSpec S>
DG_KERNEL(kLatentThreads, 8)
compressor_restore(DG_GRID_CONSTANT const CompressorRestoreParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 row = static_cast<u32>(ptx::ld_global_s32(p.row));
    const u32 i = (ptx::block_index() * kLatentThreads + ptx::thread_index()) * 4;
    if (row >= p.tokens || i >= p.count) return;
    const tile::Float4 v = ptx::ld_global_v4_f32(p.journal + static_cast<u64>(row) * p.count + i);
    ptx::st_global_v4_f32(p.state + i, v.x, v.y, v.z, v.w);
}

}  // namespace deep_gemm
