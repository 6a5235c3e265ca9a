// From accumulators to D when several warpgroups or CTAs hold partial sums of a block: each stages its fp32
// sums in shared memory as [token][column]; then each CTA of the cluster adds the partials of its share of
// tokens, always in the order rank 0 ... last, k-warpgroup 0 ... last, adds C and writes D. No atomics: the
// same input gives the same bits.
#pragma once

#include <deep_gemm/kernel/gemm_store.h>

namespace deep_gemm::kernel {

/// The meeting points of one block's partial sums, for the math warps. With one CTA a named barrier; in a
/// cluster two mbarriers at which every math warp of every CTA arrives.
template <GemmSpec S>
class PartialExchange {
  public:
    DG_DEVICE explicit PartialExchange(tile::GemmSmem<S> smem) : smem_(smem) {}

    /// One thread, before the launch-wide synchronisation.
    static DG_DEVICE void init(tile::GemmSmem<S> smem) {
        ptx::mbarrier_init(smem.partial_full(), S.warpgroups * 4 * S.split_k);
        ptx::mbarrier_init(smem.partial_empty(), S.warpgroups * 4 * S.split_k);
    }
    /// The staging buffer is free: everyone has read the previous block's partials.
    DG_DEVICE void begin() {
        if constexpr (S.split_k == 1)
            sync_math();
        else if (round_ > 0)
            ptx::mbarrier_wait_cluster(smem_.partial_empty(), (round_ - 1) & 1);
    }
    /// This warp has staged; returns when all have.
    DG_DEVICE void publish() {
        if constexpr (S.split_k == 1) {
            sync_math();
        } else {
            if (round_ == 0) ptx::cluster_wait();  // the peers' barriers exist
            signal(smem_.partial_full());
            ptx::mbarrier_wait_cluster(smem_.partial_full(), round_ & 1);
        }
    }
    /// This warp has read all it needs.
    DG_DEVICE void consumed() {
        if constexpr (S.split_k > 1) signal(smem_.partial_empty());
        ++round_;
    }
    /// After the last block: completes the cluster barrier if no block did.
    DG_DEVICE void end() {
        if constexpr (S.split_k > 1) {
            if (round_ == 0) ptx::cluster_wait();
        }
    }

  private:
    static DG_DEVICE void sync_math() { ptx::named_barrier_sync(1, S.warpgroups * kWarpgroup); }
    static DG_DEVICE void signal(ptx::SharedAddress barrier) {
        ptx::sync_warp();
        const u32 lane = ptx::lane_index();
        if (lane < S.split_k) ptx::mbarrier_arrive_release_remote(ptx::map_to_rank(barrier, lane));
    }

    tile::GemmSmem<S> smem_;
    u32 round_ = 0;
};

/// swap_ab: accumulator i of lane l, warp w is weight row 16 w + l / 4 + 8 * (i / 2 % 2), token 8 * (i / 4) +
/// 2 * (l % 4) + i % 2. The warpgroup's weights are columns n_warpgroup * 64 ... of the block.
template <GemmSpec S, u32 Count>
DG_DEVICE void stage_weight_rows(tile::GemmSmem<S> smem, u32 n_warpgroup, u32 k_warpgroup,
                                 const float (&sum)[Count]) {
    const u32 lane = ptx::lane_index(), warp = ptx::warp_index() % 4;
    const u32 column = n_warpgroup * kMmaRows + warp * 16 + lane / 4, token = (lane % 4) * 2;
    const ptx::SharedAddress at =
        smem.d() + ((k_warpgroup * S.block_m + token) * partial_pitch_of(S) + column) * 4;
#pragma unroll
    for (u32 i = 0; i < Count; ++i)
        ptx::st_shared_f32(at + ((i / 4 * 8 + i % 2) * partial_pitch_of(S) + i / 2 % 2 * 8) * 4, sum[i]);
}

/// Tokens as rows, see gemm_store.h; `first_row` is the wave's first row in the block.
template <GemmSpec S, u32 Count>
DG_DEVICE void stage_token_rows(tile::GemmSmem<S> smem, u32 first_row, const float (&sum)[Count]) {
    const u32 lane = ptx::lane_index(), row = first_row + ptx::warp_index() % 4 * 16 + lane / 4;
    const ptx::SharedAddress at = smem.d() + (row * partial_pitch_of(S) + (lane % 4) * 2) * 4;
#pragma unroll
    for (u32 i = 0; i < Count; i += 2)
        ptx::st_shared_v2_f32(at + (i / 2 % 2 * 8 * partial_pitch_of(S) + i / 4 * 8) * 4, sum[i], sum[i + 1]);
}

template <GemmSpec S>
DG_DEVICE void store_four(const GemmParams& p, u64 index, u32 columns, ptx::Float4 v) {
    u8* d = static_cast<u8*>(p.d_data) + index * bytes_of(S.d);
    const bool aligned = (reinterpret_cast<u64>(d) & (4 * bytes_of(S.d) - 1)) == 0;
    if (columns >= 4 && aligned) {
        if constexpr (S.d == Format::fp32)
            ptx::st_global_v4_f32(d, v.x, v.y, v.z, v.w);
        else
            ptx::st_global_v2_u32(d, ptx::cvt_bf16x2(v.x, v.y), ptx::cvt_bf16x2(v.z, v.w));
        return;
    }
    const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        if (i >= columns) return;
        if constexpr (S.d == Format::fp32)
            ptx::st_global_f32(d + i * 4, values[i]);
        else
            ptx::st_global_u16(d + i * 2, static_cast<u16>(ptx::cvt_bf16x2(values[i], 0)));
    }
}

/// Adds the staged partials of this CTA's share of tokens and writes them. `math_thread` counts the math
/// threads.
template <GemmSpec S>
DG_DEVICE void reduce_and_store(const GemmParams& p, const sched::Block& block, tile::GemmSmem<S> smem,
                                u32 rank, u32 math_thread) {
    constexpr u32 kQuads = S.block_n / 4, kThreads = S.warpgroups * kWarpgroup;
    const u32 left = block.m < p.m ? p.m - block.m : 0,
              limit = S.groups == GroupMode::masked ? block.rows_end - block.m : left;
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
                    const ptx::Float4 v =
                        S.split_k > 1 ? ptx::ld_cluster_v4_f32(from) : ptx::ld_shared_v4_f32(from);
                    sum.x += v.x;
                    sum.y += v.y;
                    sum.z += v.z;
                    sum.w += v.w;
                }
            }
        }
        const u32 columns = p.n - block.n - column;
        const u64 index =
            block.a_group * p.d_stride_group + static_cast<u64>(row) * p.d_stride_m + block.n + column;
        if constexpr (S.accumulate) {
            sum.x += load_c<S>(p, index);
            if (columns > 1) sum.y += load_c<S>(p, index + 1);
            if (columns > 2) sum.z += load_c<S>(p, index + 2);
            if (columns > 3) sum.w += load_c<S>(p, index + 3);
        }
        store_four<S>(p, index, columns, sum);
    }
}

}  // namespace deep_gemm::kernel
