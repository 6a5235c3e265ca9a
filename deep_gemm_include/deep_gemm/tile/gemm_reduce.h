// From accumulators to D for the kernel whose weights are rows of wgmma: every warpgroup stages its fp32 partial sums,
// transposed back to [token][column]; then each CTA of the cluster adds the partials of its share of tokens, always in
// the order rank 0 ... last, k-warpgroup 0 ... last, adds C and writes D. No atomics: the same input gives the same bits.
#pragma once

#include <deep_gemm/tile/gemm_store.h>

namespace deep_gemm::tile {

/// Accumulator i of lane l, warp w is weight row 16 w + l / 4 + 8 * (i / 2 % 2), token 8 * (i / 4) + 2 * (l % 4) + i % 2.
template <GemmSpec S, u32 Count>
DG_DEVICE void stage_partial(GemmSmem<S> smem, u32 n_warpgroup, u32 k_warpgroup, const float (&sum)[Count]) {
    const u32 lane = ptx::lane_index(), warp = ptx::warp_index() % 4;
    const u32 column = n_warpgroup * kMmaRows + warp * 16 + lane / 4, token = (lane % 4) * 2;
    const ptx::SharedAddress at =
        smem.d() + ((k_warpgroup * S.block_m + token) * partial_pitch_of(S) + column) * 4;
#pragma unroll
    for (u32 i = 0; i < Count; ++i)
        ptx::st_shared_f32(at + ((i / 4 * 8 + i % 2) * partial_pitch_of(S) + i / 2 % 2 * 8) * 4, sum[i]);
}

template <GemmSpec S>
DG_DEVICE void store_four(const GemmParams& p, u64 index, u32 columns, ptx::Float4 v) {
    u8* d = static_cast<u8*>(p.d_data) + index * bytes_of(S.d);
    const bool aligned = (reinterpret_cast<u64>(d) & (4 * bytes_of(S.d) - 1)) == 0;
    if (columns >= 4 && aligned) {
        if constexpr (S.d == Format::fp32) ptx::st_global_v4_f32(d, v.x, v.y, v.z, v.w);
        else ptx::st_global_v2_u32(d, ptx::cvt_bf16x2(v.x, v.y), ptx::cvt_bf16x2(v.z, v.w));
        return;
    }
    const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        if (i >= columns) return;
        if constexpr (S.d == Format::fp32) ptx::st_global_f32(d + i * 4, values[i]);
        else ptx::st_global_u16(d + i * 2, static_cast<u16>(ptx::cvt_bf16x2(values[i], 0)));
    }
}

/// Adds the staged partials of this CTA's share of tokens and writes them. `math_thread` counts the math threads.
template <GemmSpec S>
DG_DEVICE void reduce_and_store(const GemmParams& p, const sched::Block& block, GemmSmem<S> smem, u32 rank,
                                u32 math_thread) {
    constexpr u32 kQuads = S.block_n / 4, kThreads = S.warpgroups * kWarpgroup;
    const u32 left = p.m - block.m, limit = S.groups == GroupMode::masked ? block.rows_end - block.m : left;
    const u32 tokens = limit < S.block_m ? limit : S.block_m;
    const u32 mine = tokens > rank ? (tokens - rank + S.split_k - 1) / S.split_k : 0;
    for (u32 item = math_thread; item < mine * kQuads; item += kThreads) {
        const u32 token = item / kQuads * S.split_k + rank, column = item % kQuads * 4;
        if (block.n + column >= p.n) continue;
        const u32 row = block.m + token;
        ptx::Float4 sum{0, 0, 0, 0};
        if (block.loads && (S.groups == GroupMode::dense || row_is_valid<S>(p, block, row))) {
            const ptx::SharedAddress at = smem.d() + (token * partial_pitch_of(S) + column) * 4;
#pragma unroll
            for (u32 source = 0; source < S.split_k; ++source) {
                const ptx::SharedAddress peer = S.split_k > 1 ? ptx::map_to_rank(at, source) : at;
#pragma unroll
                for (u32 kw = 0; kw < S.k_warpgroups; ++kw) {
                    const ptx::SharedAddress from = peer + kw * S.block_m * partial_pitch_of(S) * 4;
                    const ptx::Float4 v = S.split_k > 1 ? ptx::ld_cluster_v4_f32(from) : ptx::ld_shared_v4_f32(from);
                    sum.x += v.x;
                    sum.y += v.y;
                    sum.z += v.z;
                    sum.w += v.w;
                }
            }
        }
        const u32 columns = p.n - block.n - column;
        const u64 index = block.a_group * p.d_stride_group + static_cast<u64>(row) * p.d_stride_m + block.n + column;
        if constexpr (S.accumulate) {
            sum.x += load_c<S>(p, index);
            if (columns > 1) sum.y += load_c<S>(p, index + 1);
            if (columns > 2) sum.z += load_c<S>(p, index + 2);
            if (columns > 3) sum.w += load_c<S>(p, index + 3);
        }
        store_four<S>(p, index, columns, sum);
    }
}

}  // namespace deep_gemm::tile
