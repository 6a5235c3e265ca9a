// Scales into MN-major layout, as values or as packed exponents (spec/scale_layout.h). A CTA takes 64 rows by
// 32 columns of one batch through shared memory, loads and stores along what is contiguous, and writes every
// element of its part of the output. Called by op/scale_layout.cpp.
#pragma once

#include <deep_gemm/spec/scale_layout.h>
#include <deep_gemm/ptx/global.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm {

namespace scale_layout_detail {

constexpr u32 kWarps = kScaleLayoutThreads / ptx::kWarpThreads;

/// The part of the output that a CTA writes: `PerColumn` columns of sf make one of it.
template <ScaleLayoutSpec S, u32 PerColumn>
class Tile {
  public:
    static constexpr u32 kColumns = kScaleTileColumns / PerColumn;  // of the output
    static_assert(!S.grouped || kColumns == kWarps, "a warp finds the columns of one word");

    DG_DEVICE explicit Tile(const ScaleLayoutParams& params) : p_(params) {
        const u32 tiles_m = ceil_div(p_.mn, kScaleTileRows), tiles_n = ceil_div(p_.out_columns, kColumns);
        const u32 tile = ptx::block_index() % (tiles_m * tiles_n);
        const u64 batch = ptx::block_index() / (tiles_m * tiles_n);
        row_ = tile % tiles_m * kScaleTileRows;
        column_ = tile / tiles_m * kColumns;
        sf_ = p_.sf + batch * p_.sf_stride_batch;
        out_ = p_.out + batch * p_.out_stride_batch;
    }

    DG_DEVICE void load() const {
        if constexpr (S.grouped) {
            find_columns();
            ptx::sync_threads();
        }
        u32 values[kLoads];  // all in flight
#pragma unroll
        for (u32 i = 0; i < kLoads; ++i) values[i] = load_one(row_of(i), slot_of(i));
#pragma unroll
        for (u32 i = 0; i < kLoads; ++i) ptx::st_shared_u32(place(row_of(i), slot_of(i)), values[i]);
        ptx::sync_threads();
    }

    /// `value_of` gets the place of a row's first column in shared memory; the next is kStep bytes on.
    template <typename ValueOf>
    DG_DEVICE void store(const ValueOf& value_of) const {
#pragma unroll
        for (u32 column = warp_; column < kColumns; column += kWarps)
#pragma unroll
            for (u32 row = lane_; row < kScaleTileRows; row += ptx::kWarpThreads) {
                if (row_ + row >= p_.mn || column_ + column >= p_.out_columns) continue;
                ptx::st_global_u32(out_ + (column_ + column) * p_.out_stride_column + row_ + row,
                                   value_of(place(row, column * PerColumn)));
            }
    }

    static constexpr u32 kStep = kScaleTilePitch * 4;  // bytes from a column to the next

  private:
    static constexpr u32 kLoads = kScaleTileRows * kScaleTileColumns / kScaleLayoutThreads;
    static constexpr u32 kTurns = kScaleTileRows / ptx::kWarpThreads;
    static_assert(kScaleTileColumns == ptx::kWarpThreads && kScaleTileRows % ptx::kWarpThreads == 0);

    /// The element of the tile of sf that is this lane's i-th: neighbours of neighbouring lanes.
    DG_DEVICE u32 row_of(u32 i) const {
        return S.rows_are_neighbours ? i % kTurns * ptx::kWarpThreads + lane_ : i * kWarps + warp_;
    }
    DG_DEVICE u32 slot_of(u32 i) const {
        return S.rows_are_neighbours ? i / kTurns * kWarps + warp_ : lane_;
    }

    DG_DEVICE ptx::SharedAddress place(u32 row, u32 slot) const {
        return smem_ + plan_smem(S).tile + slot * kStep + row * 4;
    }

    DG_DEVICE u32 load_one(u32 row, u32 slot) const {
        u32 column = column_ * PerColumn + slot;
        bool present = row_ + row < p_.mn;
        if constexpr (S.grouped) {
            const ptx::UInt2 found = ptx::ld_shared_v2_u32(columns_at(slot / PerColumn));
            column = found.x + slot % PerColumn;
            present = present && slot % PerColumn < found.y;
        }
        if (!present || column >= p_.columns) return 0;
        return ptx::ld_global_u32(sf_ + (row_ + row) * p_.sf_stride_row + column * p_.sf_stride_column);
    }

    DG_DEVICE ptx::SharedAddress columns_at(u32 word) const {
        return smem_ + plan_smem(S).columns + word * static_cast<u32>(sizeof(ScaleColumns));
    }

    /// Each warp finds the group of one word of the output: 32 groups are looked at together. Scope: CTA.
    DG_DEVICE void find_columns() const {
        const u32 word = column_ + warp_;
        ScaleColumns found;
        u32 columns_before = 0, words_before = 0;
        for (u32 base = 0; base < p_.num_groups; base += ptx::kWarpThreads) {
            const u32 group = base + lane_;
            const i32 k = group < p_.num_groups ? ptx::ld_global_s32(p_.group_ks + group) : 0;
            const u32 columns = ceil_div(k < 0 ? 0u : static_cast<u32>(k), p_.gran_k);
            const u32 words = ceil_div(columns, PerColumn);
            const u32 columns_end = columns_before + sum_up_to(columns);
            const u32 words_end = words_before + sum_up_to(words);
            const u32 beyond = ptx::ballot(word < words_end);
            if (beyond != 0) {
                const u32 owner = ptx::lowest_bit(beyond);
                const u32 skipped = (word - ptx::shfl_idx(words_end - words, owner)) * PerColumn;
                const u32 left = ptx::shfl_idx(columns, owner) - skipped;
                found = {ptx::shfl_idx(columns_end - columns, owner) + skipped,
                         left < PerColumn ? left : PerColumn};
                break;
            }
            columns_before = ptx::shfl_idx(columns_end, ptx::kWarpThreads - 1);
            words_before = ptx::shfl_idx(words_end, ptx::kWarpThreads - 1);
        }
        if (lane_ == 0) ptx::st_shared_v2_u32(columns_at(warp_), found.first, found.count);
    }

    /// Sum of a value of the lanes up to this one. Scope: warp.
    static DG_DEVICE u32 sum_up_to(u32 value) {
#pragma unroll
        for (u32 delta = 1; delta < ptx::kWarpThreads; delta *= 2) {
            const u32 below = ptx::shfl_up(value, delta);
            if (ptx::lane_index() >= delta) value += below;
        }
        return value;
    }

    const ScaleLayoutParams& p_;
    const ptx::SharedAddress smem_ = ptx::dynamic_smem();
    const u32 lane_ = ptx::lane_index(), warp_ = ptx::warp_index();
    u32 row_, column_;
    const float* sf_;
    u32* out_;
};

}  // namespace scale_layout_detail

template <ScaleLayoutSpec S>
DG_KERNEL(kScaleLayoutThreads, 4)
transpose_fp32(DG_GRID_CONSTANT const ScaleLayoutParams p) {
    static_assert(!S.grouped);
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const scale_layout_detail::Tile<S, 1> tile(p);
    tile.load();
    tile.store([](ptx::SharedAddress value) { return ptx::ld_shared_u32(value); });
}

template <ScaleLayoutSpec S>
DG_KERNEL(kScaleLayoutThreads, 4)
pack_fp32_into_ue8m0(DG_GRID_CONSTANT const ScaleLayoutParams p) {
    using Tile = scale_layout_detail::Tile<S, kScalesOfWord>;
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const Tile tile(p);
    tile.load();
    tile.store([](ptx::SharedAddress values) {
        u32 word = 0;
#pragma unroll
        for (u32 i = 0; i < kScalesOfWord; ++i)
            word |= (ptx::ld_shared_u32(values + i * Tile::kStep) >> 23 & 0xff) << i * 8;
        return word;
    });
}

}  // namespace deep_gemm
