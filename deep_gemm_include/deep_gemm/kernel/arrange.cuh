// Puts activations in the order that the wide FP4 GEMM reads (spec/arrange.h): a CTA takes 32 rows by 1024
// bytes of K, a warp four of the rows. Bound by memory: every row that a list gathers is written once. A
// thread waits three times: for the list, for the rows it names, and for all of its tokens and its scale at
// once. Launched by op/fp4_arrange.cpp.
#pragma once

#include <deep_gemm/spec/arrange.h>
#include <deep_gemm/ptx/global.h>
#include <deep_gemm/ptx/narrow.h>

namespace deep_gemm {
namespace arrange_detail {

/// Bits below `count`.
DG_DEVICE u32 below(u32 count) {
    return count >= 32 ? 0xffffffffu : (1u << count) - 1;
}

/// Bit i: row first + i belongs to an entry of the list. Scope: warp, converged.
template <ArrangeSpec S>
DG_DEVICE u32 rows_listed(const ArrangeParams& p, u32 first) {
    constexpr u32 kTurns = 8, kTurn = ptx::kWarpThreads;  // entries in flight
    const i32 found = ptx::ld_global_s32(&p.list->num_entries);
    const u32 entries = found < 0 ? 0 : static_cast<u32>(found);
    const u32 listed = entries < p.num_groups ? entries : p.num_groups;
    u32 mine = 0;
    for (u32 base = 0; base < listed; base += kTurns * kTurn) {
        u32 starts[kTurns], counts[kTurns];
#pragma unroll
        for (u32 turn = 0; turn < kTurns; ++turn) {
            const u32 index = base + turn * kTurn + ptx::lane_index();
            starts[turn] = counts[turn] = 0;
            if (index >= listed) continue;
            const Fp4Entry* const entry = reinterpret_cast<const Fp4Entry*>(p.group_layout) + index;
            starts[turn] = static_cast<u32>(ptx::ld_global_s32(&entry->first));
            counts[turn] = static_cast<u32>(ptx::ld_global_s32(&entry->count));
        }
#pragma unroll
        for (u32 turn = 0; turn < kTurns; ++turn) {
            const u32 start = starts[turn], end = start + counts[turn];
            if (start < first + kArrangeRows && end > first)
                mine |= below(end - first) & ~below(start > first ? start - first : 0);
        }
    }
    u32 all = 0;
    for (u32 lanes = ptx::ballot(mine != 0); lanes != 0; lanes &= lanes - 1)
        all |= ptx::shfl_idx(mine, ptx::lowest_bit(lanes));
    return all;
}

/// Bit i: row first + i is some product's. Scope: warp, converged.
template <ArrangeSpec S>
DG_DEVICE u32 rows_in_use(const ArrangeParams& p, u32 group, u32 first) {
    u32 limit = p.rows;
    if constexpr (S.groups == GroupMode::masked) {
        const i32 count = ptx::ld_global_s32(p.group_layout + group);
        const u32 rows = count < 0 ? 0 : static_cast<u32>(count);
        limit = rows < limit ? rows : limit;
    }
    const u32 used = below(limit > first ? limit - first : 0);
    if constexpr (S.groups == GroupMode::gathered) return used & rows_listed<S>(p, first);
    return used;
}

/// One of 32 rows for each lane.
template <ArrangeSpec S>
class Block {
  public:
    DG_DEVICE Block(const ArrangeParams& params, u32 group, u32 first, u32 first_blob)
        : p_(params), group_(group), first_(first), first_blob_(first_blob) {
        used_ = rows_in_use<S>(p_, group, first);
        source_ = first + lane_;
        if constexpr (S.groups == GroupMode::gathered) {
            if (p_.a_rows != nullptr && in_use(lane_)) {
                const u32 row = static_cast<u32>(ptx::ld_global_s32(p_.a_rows + source_));
                source_ = row < p_.a_num_rows ? row : 0;
            }
        }
    }

    DG_DEVICE void run() const {
        u32 words[kRowsOfWarp][kTurns][4];
        load_tokens(words);
        float scale = 0;
        if constexpr (S.a != Format::bf16) scale = load_scale();
        store_tokens(words);
        if constexpr (S.a != Format::bf16) store_scale(scale);
    }

  private:
    static constexpr u32 kRowsOfWarp = kArrangeRows / (kArrangeThreads / 32), kTurns = kArrangeBytesK / 512;
    static constexpr u32 kElementBytes = bytes_of(S.a);
    static constexpr u32 kChunks = 8 * kElementBytes;  // of 16 bytes, of a blob

    DG_DEVICE bool in_use(u32 row) const { return used_ >> row & 1; }
    DG_DEVICE u32 row_of_warp(u32 i) const { return warp_ * kRowsOfWarp + i; }
    /// Where along K the blob of this lane's words of a turn starts: those of one 16-byte chunk.
    DG_DEVICE u32 k_of(u32 turn) const {
        return (first_blob_ + (turn * ptx::kWarpThreads + lane_) / kChunks) * kFp4BlockK;
    }

    DG_DEVICE void load_tokens(u32 (&words)[kRowsOfWarp][kTurns][4]) const {
        u32 sources[kRowsOfWarp];
#pragma unroll
        for (u32 i = 0; i < kRowsOfWarp; ++i) sources[i] = ptx::shfl_idx(source_, row_of_warp(i));
#pragma unroll
        for (u32 i = 0; i < kRowsOfWarp; ++i) {
            const bool used = in_use(row_of_warp(i));
            const u8* const row =
                p_.a + group_ * p_.a_stride_group + static_cast<u64>(sources[i]) * p_.a_stride_m;
#pragma unroll
            for (u32 turn = 0; turn < kTurns; ++turn) {
                const u32 at = k_of(turn) * kElementBytes + lane_ % kChunks * 4;  // in bytes
                const u8* const from = row + at;
                const u32 left = p_.k * kElementBytes > at ? p_.k * kElementBytes - at : 0;
                const u32 present = used ? left : 0;
#pragma unroll
                for (u32 q = 0; q < 4; ++q) {
                    const u32 further = arranged_word(0, q, kElementBytes) * 4;
                    words[i][turn][q] = further < present ? ptx::ld_global_u32(from + further) : 0;
                }
            }
        }
    }

    DG_DEVICE void store_tokens(const u32 (&words)[kRowsOfWarp][kTurns][4]) const {
#pragma unroll
        for (u32 i = 0; i < kRowsOfWarp; ++i) {
            if (!in_use(row_of_warp(i))) continue;
            u8* const out = p_.out + (static_cast<u64>(group_) * p_.rows + first_ + row_of_warp(i)) *
                                         p_.padded_k * kElementBytes;
#pragma unroll
            for (u32 turn = 0; turn < kTurns; ++turn) {
                const u32(&w)[4] = words[i][turn];
                if (k_of(turn) < p_.padded_k)
                    ptx::st_global_v4_u32(out + k_of(turn) * kElementBytes + lane_ % kChunks * 16, w[0], w[1],
                                          w[2], w[3]);
            }
        }
    }

    /// Scales have rows along lanes and blobs along warps, so that stores are dense.
    DG_DEVICE u32 blob() const {
        return first_blob_ + warp_;
    }

    DG_DEVICE float load_scale() const {
        if (!in_use(lane_) || blob() * kFp4BlockK >= p_.k) return 0;
        return ptx::ld_global_f32(p_.scale_a + group_ * p_.scale_a_stride_group +
                                  static_cast<u64>(source_) * p_.scale_a_stride_m +
                                  static_cast<u64>(blob()) * p_.scale_a_stride_k);
    }

    DG_DEVICE void store_scale(float scale) const {
        if (!in_use(lane_) || blob() >= p_.scale_rows) return;
        ptx::st_global_f32(p_.scales + (static_cast<u64>(group_) * p_.scale_rows + blob()) * p_.scale_stride +
                               first_ + lane_,
                           scale);
    }

    const ArrangeParams& p_;
    const u32 group_, first_, first_blob_, lane_ = ptx::lane_index(), warp_ = ptx::warp_index();
    u32 used_, source_;  // of all rows; of this lane's
};

}  // namespace arrange_detail

template <ArrangeSpec S>
DG_KERNEL(kArrangeThreads, 4)
arrange(DG_GRID_CONSTANT const ArrangeParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 blocks_k = arrange_blocks_k(S, p.padded_k),
              of_group = arrange_blocks_of_group(S, p.rows, p.padded_k);
    constexpr u32 kBlobs = kArrangeBytesK / (kFp4BlockK * bytes_of(S.a));
    const u32 group = ptx::block_index() / of_group, block = ptx::block_index() % of_group;
    arrange_detail::Block<S>(p, group, block / blocks_k * kArrangeRows, block % blocks_k * kBlobs).run();
}

}  // namespace deep_gemm
