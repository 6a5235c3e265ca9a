// Puts activations in the order that the wide FP4 GEMM reads (spec/arrange.h): a CTA takes 32 rows by 1024 of
// K, a warp four of the rows. Bound by memory: every row that a list gathers is written once. Launched by
// op/fp4_gemm.cpp.
#pragma once

#include <deep_gemm/spec/arrange.h>
#include <deep_gemm/ptx/global.h>
#include <deep_gemm/ptx/narrow.h>

namespace deep_gemm {
namespace arrange_detail {

/// Bit i: row first + i is some product's. Scope: warp, converged.
template <ArrangeSpec S>
DG_DEVICE u32 rows_in_use(const ArrangeParams& p, u32 group, u32 first) {
    const auto below = [](u32 count) { return count >= 32 ? 0xffffffffu : (1u << count) - 1; };
    u32 limit = p.rows;
    if constexpr (S.groups == GroupMode::masked) {
        const i32 count = ptx::ld_global_s32(p.group_layout + group);
        const u32 rows = count < 0 ? 0 : static_cast<u32>(count);
        limit = rows < limit ? rows : limit;
    }
    u32 used = below(limit > first ? limit - first : 0);
    if constexpr (S.groups == GroupMode::gathered) {
        u32 listed = static_cast<u32>(ptx::ld_global_s32(&p.list->num_entries)), found = 0;
        listed = listed < p.num_groups ? listed : p.num_groups;
        for (u32 base = 0; base < listed; base += ptx::kWarpThreads) {
            u32 mine = 0;
            if (base + ptx::lane_index() < listed) {
                const ptx::UInt4 entry = ptx::ld_global_v4_u32(
                    reinterpret_cast<const Fp4Entry*>(p.group_layout) + base + ptx::lane_index());
                const u32 start = entry.y, end = entry.y + entry.z;
                if (start < first + kArrangeRows && end > first)
                    mine = below(end - first) & ~below(start > first ? start - first : 0);
            }
            for (u32 lanes = ptx::ballot(mine != 0); lanes != 0; lanes &= lanes - 1)
                found |= ptx::shfl_idx(mine, ptx::lowest_bit(lanes));
        }
        used &= found;
    }
    return used;
}

template <ArrangeSpec S>
DG_DEVICE u32 source_row(const ArrangeParams& p, u32 row) {
    if constexpr (S.groups == GroupMode::gathered) {
        if (p.a_rows != nullptr) return static_cast<u32>(ptx::ld_global_s32(p.a_rows + row));
    }
    return row;
}

/// This warp's rows: a lane gathers the four words of one 16-byte chunk.
template <ArrangeSpec S>
DG_DEVICE void arrange_rows(const ArrangeParams& p, u32 group, u32 first, u32 first_k, u32 used) {
    constexpr u32 kRowsOfWarp = kArrangeRows / (kArrangeThreads / 32), kTurns = kArrangeBlobs / 4;
    const u32 lane = ptx::lane_index(), chunk = lane % 8, warp = ptx::warp_index();
#pragma unroll
    for (u32 i = 0; i < kRowsOfWarp; ++i) {
        const u32 in_block = warp * kRowsOfWarp + i, row = first + in_block;
        if (!(used >> in_block & 1)) continue;
        const u8* const source = p.a + group * p.a_stride_group +
                                 static_cast<u64>(source_row<S>(p, row)) * p.a_stride_m;
        u8* const out = p.out + (static_cast<u64>(group) * p.rows + row) * p.padded_k;
#pragma unroll
        for (u32 turn = 0; turn < kTurns; ++turn) {
            const u32 k = first_k + (turn * 4 + lane / 8) * kFp4BlockK;
            if (k >= p.padded_k) continue;
            u32 words[4];
#pragma unroll
            for (u32 q = 0; q < 4; ++q) {
                const u32 at = k + arranged_word(chunk, q) * 4;
                words[q] = at < p.k ? ptx::ld_global_u32(source + at) : 0;
            }
            ptx::st_global_v4_u32(out + k + chunk * 16, words[0], words[1], words[2], words[3]);
        }
    }
}

/// A thread's scale: rows along lanes, blobs along warps, so that stores are dense.
template <ArrangeSpec S>
DG_DEVICE void arrange_scale(const ArrangeParams& p, u32 group, u32 first, u32 first_blob, u32 used) {
    const u32 lane = ptx::lane_index(), row = first + lane, blob = first_blob + ptx::warp_index();
    if (!(used >> lane & 1) || blob * kFp4BlockK >= p.padded_k) return;
    float scale = 0;
    if (blob * kFp4BlockK < p.k)
        scale = ptx::ld_global_f32(p.scale_a + group * p.scale_a_stride_group +
                                   static_cast<u64>(source_row<S>(p, row)) * p.scale_a_stride_m +
                                   static_cast<u64>(blob) * p.scale_a_stride_k);
    const u64 line = static_cast<u64>(group) * (p.padded_k / kFp4BlockK) + blob;
    ptx::st_global_f32(p.scales + line * p.scale_stride + row, scale);
}

}  // namespace arrange_detail

template <ArrangeSpec S>
DG_KERNEL(kArrangeThreads, 4)
arrange(DG_GRID_CONSTANT const ArrangeParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 blocks_k = arrange_blocks_k(p.padded_k), of_group = arrange_blocks_of_group(p.rows, p.padded_k);
    const u32 group = ptx::block_index() / of_group, block = ptx::block_index() % of_group;
    const u32 first = block / blocks_k * kArrangeRows, first_blob = block % blocks_k * kArrangeBlobs;
    const u32 used = arrange_detail::rows_in_use<S>(p, group, first);
    arrange_detail::arrange_rows<S>(p, group, first, first_blob * kFp4BlockK, used);
    arrange_detail::arrange_scale<S>(p, group, first, first_blob, used);
}

}  // namespace deep_gemm
