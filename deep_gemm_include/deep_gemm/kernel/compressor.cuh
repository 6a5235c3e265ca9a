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

namespace compressor_detail {

template <CompressorSpec S>
using Pools = Pool[pools_of(S)];
constexpr u32 kClosed = 0, kNext = 1;
template <CompressorSpec S>
constexpr u32 kOwn = pools_of(S) - 1;  // without overlap there is only this one

template <CompressorSpec S>
DG_DEVICE void push_token(const CompressorParams& p, Pools<S>& pools, u32 token, u32 position, u32 channel) {
    constexpr u32 kHalves = S.overlap ? 2 : 1;
    const u32 slot = position % p.ratio;
    const float* ape = p.ape + static_cast<u64>(slot) * kHalves * p.dim + channel;
    const auto push = [&](Pool& pool, u32 half) {
        const Float4 k = ptx::ld_global_v4_f32(p.kv + token * p.kv_stride + half * p.dim + channel);
        const Float4 g = ptx::ld_global_v4_f32(p.gate + token * p.gate_stride + half * p.dim + channel);
        pool.push(slot == 0, k, sum_of(g, ptx::ld_global_v4_f32(ape + half * p.dim)));
    };
    if constexpr (S.overlap) {
        // Nobody reads the closed window of a sequence's first one; equal texts shall leave equal states.
        if (position == 0) pools[kClosed] = {};
        push(pools[kNext], 0);
    }
    push(pools[kOwn<S>], kHalves - 1);
}

/// The row of a window that its last token closes, before the norm.
template <CompressorSpec S>
DG_DEVICE Float4 close_window(Pools<S>& pools, u32 window) {
    Pool all = pools[kOwn<S>];
    if constexpr (S.overlap) {
        if (window > 0) all.merge(pools[kClosed]);
        pools[kClosed] = pools[kNext];
    }
    return all.mean();
}

/// A token into the pools; `Writes`: what it leaves in rows and journal as well. All threads call.
template <CompressorSpec S, bool Writes>
DG_DEVICE void take_token(const CompressorParams& p, Pools<S>& pools, u32 sequence, u32 token, u32 position,
                          u32 channel) {
    const bool active = channel < p.dim;
    const u32 window = position / p.ratio;
    if (active) push_token<S>(p, pools, token, position, channel);
    if (position % p.ratio == p.ratio - 1) {
        Float4 row{};
        if (active) row = close_window<S>(pools, window);
        if constexpr (Writes) {
            tile::normalize<kLatentThreads, S.weight>(row, ptx::dynamic_smem() + plan_smem(S).sums, p.weight,
                                                      channel, p.dim, p.eps);
            tile::rotate4<RopePairs::interleaved>(row, channel, p.dim, p.dims, p.frequencies,
                                                  static_cast<i32>(window * p.ratio), false);
            tile::finish_row<S.finish, S.rows>(row, channel, p.dim, p.dims);
            if (window < p.rows.rows)
                tile::write_latent<S.rows>(p.rows, sequence, window, channel, p.dim, row);
        }
    }
    if constexpr (Writes && S.journal) {
        float* entry = p.journal + static_cast<u64>(token) * 3 * pools_of(S) * p.dim + channel;
        if (active)
            for (u32 i = 0; i < pools_of(S); ++i) pools[i].store(entry + i * 3 * p.dim, p.dim);
    }
}

/// The sequence's tokens of [begin, end); 32 at a time are looked at.
template <CompressorSpec S, bool Writes>
DG_DEVICE void take_tokens(const CompressorParams& p, Pools<S>& pools, u32 sequence, u32 begin, u32 end,
                           u32 channel) {
    for (u32 base = begin; base < end; base += 32) {
        const u32 mine = base + ptx::lane_index();
        i32 at = -1;
        if (mine < end && tile::sequence_of(p.sequences, mine) == sequence)
            at = ptx::ld_global_s32(p.positions + mine);
        for (u32 left = ptx::ballot(at >= 0); left != 0; left &= left - 1) {
            const u32 lane = ptx::lowest_bit(left);
            take_token<S, Writes>(p, pools, sequence, base + lane, ptx::shfl_idx(static_cast<u32>(at), lane),
                                  channel);
        }
    }
}

/// Tokens before `token` without which its pools would differ: back to where all of them started anew.
template <CompressorSpec S>
DG_DEVICE u32 tokens_before(const CompressorParams& p, u32 token) {
    const u32 slot = static_cast<u32>(ptx::ld_global_s32(p.positions + token)) % p.ratio;
    return slot + (S.overlap ? p.ratio : 0);
}

}  // namespace compressor_detail

template <CompressorSpec S>
DG_DEVICE void compressor_block(const CompressorParams& p, u32 block) {
    using namespace compressor_detail;
    const u32 sequence = block / p.segments, segment = block % p.segments;
    const u32 channel = ptx::thread_index() * 4;
    const bool active = channel < p.dim;
    float* state = p.state + static_cast<u64>(sequence) * 3 * pools_of(S) * p.dim + channel;
    Pools<S> pools = {};
    const u32 begin = segment * p.segment_rows;
    if (segment == 0) {
        if (active)
            for (u32 i = 0; i < pools_of(S); ++i) pools[i].load(state + i * 3 * p.dim, p.dim);
    } else {
        take_tokens<S, false>(p, pools, sequence, begin - tokens_before<S>(p, begin), begin, channel);
    }
    const u32 end = begin + p.segment_rows < p.tokens ? begin + p.segment_rows : p.tokens;
    take_tokens<S, true>(p, pools, sequence, begin, end, channel);
    if (segment != 0) return;
    // The first CTA, which alone has read the state, writes the new one.
    if (p.segments > 1) {
        const u32 last = p.tokens - 1;
        take_tokens<S, false>(p, pools, sequence, last - tokens_before<S>(p, last), p.tokens, channel);
    }
    if (active)
        for (u32 i = 0; i < pools_of(S); ++i) pools[i].store(state + i * 3 * p.dim, p.dim);
}

template <CompressorSpec S>
DG_KERNEL(kLatentThreads, 4)
compressor_update(DG_GRID_CONSTANT const CompressorParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    compressor_block<S>(p, ptx::block_index());
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
