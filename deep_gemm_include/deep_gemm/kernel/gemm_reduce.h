// From accumulators to D when several warpgroups or CTAs hold partial sums of a block. Each CTA of the
// cluster owns an equal share of the block's tokens. Everyone stages its fp32 sums in shared memory, sends
// each owner its share with one bulk copy, and adds what it owns, always in the order rank 0 ... last,
// k-warpgroup 0 ... last; then it adds C and writes D. No atomics: the same input gives the same bits. The
// copy signals the owner's mbarrier itself: a cluster-scope release by the threads would cost a full memory
// fence.
#pragma once

#include <deep_gemm/kernel/gemm_store.h>
#include <deep_gemm/ptx/element.h>

namespace deep_gemm::kernel {

/// Tokens that one CTA of the cluster adds up.
template <GemmSpec S>
constexpr u32 share_of() {
    return S.block_m / S.split_k;
}

/// Bytes of one CTA's partial sums for one owner.
template <GemmSpec S>
constexpr u32 share_bytes_of() {
    return plan_smem(S).d_bytes / S.split_k;
}

/// Offset of a token's row of one k-warpgroup in the staging buffer.
template <GemmSpec S>
DG_DEVICE u32 staged_offset(u32 token, u32 k_warpgroup) {
    const u32 owner = token / share_of<S>(), row = token % share_of<S>();
    return owner * share_bytes_of<S>() + (k_warpgroup * share_of<S>() + row) * S.block_n * 4;
}

/// Moves one block's partial sums to their owners; all math warps call each step. `partial_full` of a CTA
/// completes when its peers' copies have landed; `partial_empty` when all math warps of the cluster have
/// read.
template <GemmSpec S>
class PartialExchange {
  public:
    DG_DEVICE explicit PartialExchange(tile::GemmSmem<S> smem) : smem_(smem) {}

    /// One thread, before the launch-wide synchronisation.
    static DG_DEVICE void init(tile::GemmSmem<S> smem) {
        ptx::mbarrier_init(smem.partial_full(), 1);
        ptx::mbarrier_init(smem.partial_empty(), S.warpgroups * 4 * S.split_k);
    }
    /// The staging buffer and the peers' receive buffers are free: everyone has read the previous block's.
    DG_DEVICE void begin() {
        if constexpr (S.split_k == 1)
            sync_math();
        else if (round_ > 0)
            ptx::mbarrier_wait(smem_.partial_empty(), (round_ - 1) & 1);
    }
    /// This warp has staged; returns when all that this CTA owns is there.
    DG_DEVICE void publish(u32 rank) {
        if constexpr (S.split_k == 1) {
            sync_math();
        } else {
            ptx::fence_proxy_async();  // the copies read what these threads wrote
            sync_math();
            if (round_ == 0) ptx::cluster_wait();  // the peers' barriers exist
            if (ptx::warp_index() == 0 && ptx::elect_one()) send(rank);
            ptx::mbarrier_wait(smem_.partial_full(), round_ & 1);
        }
    }
    /// This warp has read all it needs.
    DG_DEVICE void consumed() {
        if constexpr (S.split_k > 1) {
            ptx::sync_warp();
            const u32 lane = ptx::lane_index();
            if (lane < S.split_k) ptx::mbarrier_arrive_remote(ptx::map_to_rank(smem_.partial_empty(), lane));
        }
        ++round_;
    }
    /// After the last block: completes the cluster barrier if no block did.
    DG_DEVICE void end() {
        if constexpr (S.split_k > 1) {
            if (round_ == 0) ptx::cluster_wait();
        }
    }
    /// Where this CTA finds `source`'s partial sums for the tokens it owns.
    static DG_DEVICE ptx::SharedAddress share_of_source(tile::GemmSmem<S> smem, u32 rank, u32 source) {
        if (source == rank) return smem.d() + rank * share_bytes_of<S>();
        return smem.received() + received_slot(rank, source) * share_bytes_of<S>();
    }

  private:
    static DG_DEVICE u32 received_slot(u32 rank, u32 source) { return source < rank ? source : source - 1; }
    static DG_DEVICE void sync_math() { ptx::named_barrier_sync(1, S.warpgroups * kWarpgroup); }

    DG_DEVICE void send(u32 rank) {
        ptx::mbarrier_arrive_expect_tx(smem_.partial_full(), (S.split_k - 1) * share_bytes_of<S>());
#pragma unroll
        for (u32 turn = 1; turn < S.split_k; ++turn) {
            const u32 owner = (rank + turn) % S.split_k;
            const ptx::SharedAddress to = smem_.received() + received_slot(owner, rank) * share_bytes_of<S>();
            ptx::copy_to_cluster(ptx::map_to_rank(to, owner), smem_.d() + owner * share_bytes_of<S>(),
                                 share_bytes_of<S>(), ptx::map_to_rank(smem_.partial_full(), owner));
        }
    }

    tile::GemmSmem<S> smem_;
    u32 round_ = 0;
};

/// swap_ab: accumulator i of lane l, warp w is weight row 16 w + l / 4 + 8 * (i / 2 % 2), token 8 * (i / 4) +
/// 2 * (l % 4) + i % 2. The warpgroup's weights are columns n_warpgroup * 64 ... of the block.
template <GemmSpec S, u32 Count>
DG_DEVICE void stage_weight_rows(tile::GemmSmem<S> smem, u32 n_warpgroup, u32 k_warpgroup,
                                 const float (&sum)[Count]) {
    const u32 lane = ptx::lane_index(), warp = ptx::warp_index() % 4, first = (lane % 4) * 2;
    const u32 column = n_warpgroup * kMmaRows + warp * 16 + lane / 4;
    // Eight tokens in a row have one owner where shares are that long: then their offset is a constant.
    constexpr bool kWholeEights = share_of<S>() % 8 == 0;
    const u32 swizzle = partial_swizzle_of(S, first), rest = kWholeEights ? 0 : first;
    const ptx::SharedAddress row = smem.d() + (first - rest) * S.block_n * 4;
    const ptx::SharedAddress at[2] = {row + (column ^ swizzle) * 4, row + (column + 8 ^ swizzle) * 4};
#pragma unroll
    for (u32 i = 0; i < Count; ++i)
        ptx::st_shared_f32(at[i / 2 % 2] + staged_offset<S>(i / 4 * 8 + i % 2 + rest, k_warpgroup), sum[i]);
}

/// Tokens as rows, see gemm_store.h; `first_row` is the wave's first row in the block.
template <GemmSpec S, u32 Count>
DG_DEVICE void stage_token_rows(tile::GemmSmem<S> smem, u32 first_row, const float (&sum)[Count]) {
    const u32 lane = ptx::lane_index(), row = first_row + ptx::warp_index() % 4 * 16 + lane / 4;
    const u32 swizzle = partial_swizzle_of(S, row);  // the same eight rows below
    const ptx::SharedAddress at[2] = {smem.d() + staged_offset<S>(row, 0),
                                      smem.d() + staged_offset<S>(row + 8, 0)};
#pragma unroll
    for (u32 i = 0; i < Count; i += 2) {
        const u32 column = i / 4 * 8 + (lane % 4) * 2;
        ptx::st_shared_v2_f32(at[i / 2 % 2] + (column ^ swizzle) * 4, sum[i], sum[i + 1]);
    }
}

/// Adds up to four neighbouring elements of C.
template <GemmSpec S>
DG_DEVICE void add_four(const GemmParams& p, u64 index, u32 columns, ptx::Float4& sum) {
    const u8* c = static_cast<const u8*>(p.c_data) + index * bytes_of(S.d);
    const bool aligned = (reinterpret_cast<u64>(c) & (4 * bytes_of(S.d) - 1)) == 0;
    float values[4] = {0, 0, 0, 0};
    if (columns >= 4 && aligned) {
        if constexpr (S.d == Format::fp32) {
            const ptx::Float4 v = ptx::ld_global_v4_f32(c);
            values[0] = v.x, values[1] = v.y, values[2] = v.z, values[3] = v.w;
        } else {
            const ptx::Word2 v = ptx::ld_global_v2_u32(c);
            values[0] = ptx::bf16_low(v.x), values[1] = ptx::bf16_high(v.x);
            values[2] = ptx::bf16_low(v.y), values[3] = ptx::bf16_high(v.y);
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; ++i)
            if (i < columns)
                values[i] =
                    S.d == Format::fp32 ? ptx::ld_global_f32(c + i * 4) : ptx::ld_global_bf16(c + i * 2);
    }
    sum.x += values[0];
    sum.y += values[1];
    sum.z += values[2];
    sum.w += values[3];
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
    const u32 tokens = limit < S.block_m ? limit : S.block_m, first = rank * share_of<S>();
    const u32 owned = tokens <= first ? 0 : tokens - first < share_of<S>() ? tokens - first : share_of<S>();
    for (u32 item = math_thread; item < owned * kQuads; item += kThreads) {
        const u32 share_row = item / kQuads, column = item % kQuads * 4;
        if (block.n + column >= p.n) continue;
        const u32 row = block.m + first + share_row;
        ptx::Float4 sum{0, 0, 0, 0};
        if (block.loads && (S.groups == GroupMode::dense || row_is_valid<S>(p, block, row))) {
            const u32 swizzle = partial_swizzle_of(S, first + share_row),
                      offset = (share_row * S.block_n + (column ^ swizzle)) * 4;
#pragma unroll
            for (u32 source = 0; source < S.split_k; ++source) {
                const ptx::SharedAddress from =
                    PartialExchange<S>::share_of_source(smem, rank, source) + offset;
#pragma unroll
                for (u32 kw = 0; kw < S.k_warpgroups; ++kw) {
                    const ptx::Float4 v = ptx::ld_shared_v4_f32(from + kw * share_of<S>() * S.block_n * 4);
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
        if constexpr (S.accumulate) add_four<S>(p, index, columns, sum);
        store_four<S>(p, index, columns, sum);
    }
}

}  // namespace deep_gemm::kernel
