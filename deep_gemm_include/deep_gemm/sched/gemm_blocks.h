// Which output block a CTA computes next. Pure index arithmetic, the same in every role; every warp walks the
// list on its own, converged. Persistent: cluster c takes work units c, c + clusters, c + 2 * clusters, ...
// A unit is the block (or the pair of blocks that share an operand by multicast) of one cluster.
//
// What the list depends on is the same in all lanes, and the compiler must see that: else it takes the ring's
// cursor for divergent and moves every word of every wgmma descriptor from a vector to a uniform register, in
// the middle of the wgmma chain (4 % of a large GEMM). It sees it where a branch depends on a comparison of
// launch parameters or on a ballot, and next() returns that comparison itself: no early return, which would
// make it a boolean that comes from two places. The scan over masked groups stays opaque to it: see
// kernel/gemm_load.h.
#pragma once

#include <deep_gemm/spec/gemm.h>
#include <deep_gemm/ptx/global.h>
#include <deep_gemm/ptx/math.h>

namespace deep_gemm::sched {

struct Block {
    u32 group = 0;             // matrix of B
    u32 a_group = 0;           // third coordinate of A and D
    u32 m = 0;                 // first row, within a_group
    u32 n = 0;                 // first column
    u32 rows_end = 0;          // rows at and beyond it are not valid
    bool loads = true;         // false: no valid row; the block is written as zeros and nothing is loaded
    u32 begin = 0, end = ~0u;  // rows of the block to compute and write now, in whole waves of 64
};

/// Modes whose blocks are found by a scan over the groups' sizes. The rows of the segmented modes form one
/// rectangle, whose blocks come in the order of a dense matrix: concurrent clusters share the same tiles.
template <GemmSpec S>
constexpr bool scans_groups() {
    return S.groups == GroupMode::masked;
}
template <GemmSpec S>
constexpr bool has_segments() {
    return S.groups == GroupMode::contiguous || S.groups == GroupMode::psum;
}

/// A block whose rows may belong to more than one group of the segmented modes.
template <GemmSpec S>
constexpr bool block_straddles_groups() {
    return has_segments<S>() && kGroupAlignment % S.block_m != 0;
}

/// Units along m that are walked before the next column of units, so that concurrent clusters cover a
/// near-square patch of D and their operand tiles meet in L2.
template <GemmSpec S>
constexpr u32 raster_rows() {
    constexpr u32 kUnitM = S.block_m * S.cluster_m, kUnitN = S.block_n * S.cluster_n;
    // 192 x 256: 1 to 2 % of contiguous groups, whose B is another one every few panels.
    return kUnitN > 2 * kUnitM || S.warpgroups == 3 ? 16 : 8;
}

template <GemmSpec S>
class GemmBlocks {
  public:
    DG_DEVICE explicit GemmBlocks(const GemmParams& params)
        : params_(params),
          rank_(cluster_size_of(S) > 1 ? ptx::cluster_rank() : 0),
          unit_(ptx::block_index() / cluster_size_of(S)),
          num_clusters_(ptx::grid_size() / cluster_size_of(S)),
          units_n_(ceil_div(params.n, S.block_n * S.cluster_n)),
          last_m_(may_overlap_rows() ? last_start(params.m, S.block_m, kRowStep) : ~0u),
          last_n_(may_overlap() ? last_start(params.n, S.block_n, kColumnStep) : ~0u) {
        if constexpr (scans_groups<S>()) {
            load_chunk(0, 0);
        } else {
            const u32 panel_units = raster_rows<S>() * units_n_;
            panel_ = unit_ / panel_units;
            in_panel_ = unit_ % panel_units;
            panel_step_ = num_clusters_ / panel_units;
            in_panel_step_ = num_clusters_ % panel_units;
            if constexpr (S.groups == GroupMode::psum) psum_rows_ = padded_end_of(params.num_groups - 1);
            const u32 units_m = ceil_div(rows(), kUnitRows);
            full_panels_ = units_m / raster_rows<S>();
            last_rows_ = units_m % raster_rows<S>();
            last_reciprocal_ = reciprocal_of(last_rows_ > 0 ? last_rows_ : 1);
            place();
        }
        if constexpr (has_segments<S>()) prefetch_groups();
    }

    /// The next block of this CTA, or false at the end.
    DG_DEVICE bool next(Block& block) {
        const bool found = scans_groups<S>() ? locate_in_groups(block) : locate_in_rectangle(block);
        if constexpr (has_segments<S>()) prefetch_groups();
        return found;
    }

    /// contiguous: first row of the block that next() will find; any row past the last block.
    DG_DEVICE u32 upcoming_row() const { return m_; }

  private:
    static constexpr bool kTwoParts = block_straddles_groups<S>();
    static constexpr u32 kUnitRows = S.block_m * S.cluster_m;

    // TMA fills what lies beyond a matrix at a quarter of the rate at which it loads, and everybody waits for
    // the CTA that has such a block (27 us instead of 17 for 192 rows and blocks of 128). So the last block
    // starts early and computes some of its neighbour's elements as well: the same bits, written twice, which
    // is harmless unless D is also read.
    static constexpr DG_DEVICE bool may_overlap() { return !S.accumulate; }
    static constexpr DG_DEVICE bool may_overlap_rows() {
        return may_overlap() && S.groups == GroupMode::dense;
    }
    // TMA takes no other coordinates of the dimension that is contiguous.
    static constexpr u32 kRowStep = S.a_major == Major::mn ? 16 / bytes_of(S.ab) : 1;
    // Vector stores, and columns that share a scale of B.
    static constexpr u32 kColumnStep = S.scale_b == ScaleB::per_128x128 && scale_b_run_of(S) > kMmaRows
                                           ? scale_b_run_of(S)
                                           : kMmaRows;
    /// Where the last block along a side starts; any place if the side is shorter than a block, or its last
    /// block could start at no multiple of `step`.
    static DG_DEVICE u32 last_start(u32 side, u32 block, u32 step) {
        return side >= block && side % step == 0 ? side - block : ~0u;
    }
    static DG_DEVICE u32 lesser(u32 a, u32 b) { return a < b ? a : b; }

    DG_DEVICE u32 rank_m() const { return rank_ % S.cluster_m; }
    DG_DEVICE u32 rank_n() const { return S.split_k > 1 ? 0 : rank_ / S.cluster_m; }

    /// Makes m_ and n_ the first row and column of this CTA's block in unit `unit_`. This is in the path of
    /// every block: no division, which is some 30 dependent instructions, and no branch.
    DG_DEVICE void place() {
        constexpr u32 kRows = raster_rows<S>();
        const bool full = panel_ < full_panels_;
        const u32 rows = full ? kRows : last_rows_;
        const u32 quotient = ptx::multiply_high(in_panel_, full ? reciprocal_of(kRows) : last_reciprocal_);
        const u32 column = rows > 1 ? quotient : in_panel_;
        u32 row = in_panel_ - column * rows;
        // Where a group's padding fills whole blocks, clusters take turns with the blocks that hold rows.
        if constexpr (has_segments<S>() && S.block_m < kGroupAlignment)
            row = full ? (row + column) % kRows : row;
        m_ = lesser((panel_ * kRows + row) * kUnitRows + rank_m() * S.block_m, last_m_);
        n_ = lesser((column * S.cluster_n + rank_n()) * S.block_n, last_n_);
    }

    /// 2^32 / rows, rounded up: the quotient of a number below 2^28 and up to 16 rows is the high word of
    /// their product. Means nothing for one row.
    static constexpr DG_DEVICE u32 reciprocal_of(u32 rows) { return 0xffffffffu / rows + 1; }

    DG_DEVICE void advance(bool stay) {
        const u32 panel_units = raster_rows<S>() * units_n_;
        unit_ += stay ? 0 : num_clusters_;
        panel_ += stay ? 0 : panel_step_;
        in_panel_ += stay ? 0 : in_panel_step_;
        const bool wraps = in_panel_ >= panel_units;
        panel_ += wraps ? 1 : 0;
        in_panel_ -= wraps ? panel_units : 0;
        place();
    }

    /// Rows that have blocks: those beyond the last group of psum have none.
    DG_DEVICE u32 rows() const { return S.groups == GroupMode::psum ? psum_rows_ : params_.m; }

    /// Groups start at multiples of 128 rows. A block that is no divisor of that may hold the end of one
    /// group and the start of the next: then it comes twice, each time for the rows of one of them.
    DG_DEVICE bool locate_in_rectangle(Block& block) {
        const u32 units = ceil_div(rows(), kUnitRows) * units_n_;
        const bool found = S.groups == GroupMode::psum ? ptx::ballot(unit_ < units) != 0 : unit_ < units;
        block.m = m_;
        block.n = n_;
        block.rows_end = params_.m;
        bool comes_again = false;
        if constexpr (has_segments<S>()) {
            u32 group = groups_[0], end = ends_[0];
            if constexpr (kTwoParts) {
                const u32 boundary = boundary_of(block.m);
                const bool two = groups_[0] != groups_[1];
                // The part of psum beyond the last group is nobody's.
                const bool second = S.groups == GroupMode::contiguous || block.m + boundary < rows();
                comes_again = ptx::ballot(two && second) != 0 && part_ == 0;
                block.begin = part_ == 0 ? 0 : boundary;
                block.end = two && part_ == 0 ? boundary : S.block_m;
                if (part_ != 0) {
                    group = groups_[1];
                    end = ends_[1];
                }
                part_ = comes_again ? 1 : 0;
            }
            if constexpr (S.groups == GroupMode::psum) {
                block.rows_end = end;
                in_use_ = block.m < end;
            }
            block.loads = ptx::ballot(in_use_ && group < params_.num_groups) != 0;
            block.group = block.loads ? group : 0;
        }
        advance(comes_again);
        return found;
    }

    /// Where, within a block that starts at row m, the next group may start.
    static DG_DEVICE u32 boundary_of(u32 m) { return kGroupAlignment - m % kGroupAlignment; }

    /// Starts the loads of the groups of unit `unit_`, a block before they are used: their latency is a few
    /// per cent of one. The first of 128 rows tells the group of all; a block of fewer rows has nothing to do
    /// where all of them are padding.
    DG_DEVICE void prefetch_groups() {
        const u32 m = m_ < params_.m ? m_ : 0;
        if constexpr (S.groups == GroupMode::psum) {
            find_groups(m);
            return;
        }
        groups_[0] = group_of_row(m - m % kGroupAlignment);
        if constexpr (S.block_m < kGroupAlignment) {
            in_use_ = false;
#pragma unroll
            for (u32 turn = 0; turn < ceil_div(S.block_m, ptx::kWarpThreads); ++turn) {
                const u32 row = m + turn * ptx::kWarpThreads + ptx::lane_index();
                if (row < params_.m && row < m + S.block_m)
                    in_use_ = in_use_ || group_of_row(row) < params_.num_groups;
            }
        }
        if constexpr (kTwoParts) {
            const u32 second = m + boundary_of(m);
            groups_[1] = group_of_row(second < params_.m ? second : m);
        }
    }

    DG_DEVICE u32 group_of_row(u32 row) const {
        return static_cast<u32>(ptx::ld_global_s32(params_.group_layout + row));
    }

    /// End of a group's rows with its padding; beyond every row for a group that does not exist.
    DG_DEVICE u32 padded_end_of(u32 group) const {
        const u32 end = align_up(end_of(group), kGroupAlignment);
        return group < params_.num_groups ? end : ~0u;
    }
    /// End of a group's rows; of the last group for one that does not exist.
    DG_DEVICE u32 end_of(u32 group) const {
        const u32 last = params_.num_groups - 1;
        return clamp_rows(ptx::ld_global_s32(params_.group_layout + (group < last ? group : last)));
    }

    /// psum: the group of row m, and of the row where the next one may start.
    DG_DEVICE void find_groups(u32 m) {
        groups_[0] = group_at(m);
        if constexpr (kTwoParts) groups_[1] = group_at(m + boundary_of(m));
#pragma unroll
        for (u32 part = 0; part < (kTwoParts ? 2 : 1); ++part) ends_[part] = end_of(groups_[part]);
    }

    /// The number of groups that end at or before row m: 32 are looked at together, at ever smaller
    /// distances. No loop and no branch: either would hide from the compiler that all lanes agree.
    DG_DEVICE u32 group_at(u32 m) const {
        u32 first = 0;
        first = skip_groups<1 << 15>(first, m);
        first = skip_groups<1 << 10>(first, m);
        first = skip_groups<1 << 5>(first, m);
        return skip_groups<1>(first, m);
    }
    template <u32 Distance>
    DG_DEVICE u32 skip_groups(u32 first, u32 m) const {
        const u32 end = padded_end_of(first + (ptx::lane_index() + 1) * Distance - 1);
        return first + ptx::popc(ptx::ballot(end <= m)) * Distance;
    }

    /// masked: groups are scanned 32 at a time, one a lane: `lane_end_` is the running number of units up to
    /// its group.
    DG_DEVICE void load_chunk(u32 first_group, u32 units_before) {
        chunk_ = first_group;
        const u32 group = first_group + ptx::lane_index();
        u32 units = 0;
        lane_rows_ = 0;
        if (group < params_.num_groups) {
            lane_rows_ = clamp_rows(ptx::ld_global_s32(params_.group_layout + group));
            units = ceil_div(lane_rows_, kUnitRows) * units_n_;
        }
        u32 total = units;
#pragma unroll
        for (u32 delta = 1; delta < ptx::kWarpThreads; delta *= 2) {
            const u32 below = ptx::shfl_up(total, delta);
            if (ptx::lane_index() >= delta) total += below;
        }
        lane_end_ = units_before + total;
        lane_units_ = units;
    }

    DG_DEVICE u32 clamp_rows(i32 value) const {
        const u32 rows = value < 0 ? 0 : static_cast<u32>(value);
        return rows < params_.m ? rows : params_.m;
    }

    DG_DEVICE bool locate_in_groups(Block& block) {
        u32 in_chunk = ptx::ballot(unit_ < lane_end_);
        while (in_chunk == 0) {
            if (chunk_ + ptx::kWarpThreads >= params_.num_groups) return false;
            load_chunk(chunk_ + ptx::kWarpThreads, ptx::shfl_idx(lane_end_, ptx::kWarpThreads - 1));
            in_chunk = ptx::ballot(unit_ < lane_end_);
        }
        const u32 lane = ptx::lowest_bit(in_chunk);
        const u32 units = ptx::shfl_idx(lane_units_, lane);
        const u32 unit = unit_ - (ptx::shfl_idx(lane_end_, lane) - units), units_m = units / units_n_;
        block.group = chunk_ + lane;
        block.a_group = block.group;
        block.m = (unit % units_m) * kUnitRows + rank_m() * S.block_m;
        block.n = lesser(((unit / units_m) * S.cluster_n + rank_n()) * S.block_n, last_n_);
        block.rows_end = ptx::shfl_idx(lane_rows_, lane);
        block.loads = block.m < block.rows_end;
        unit_ += num_clusters_;
        return true;
    }

    const GemmParams& params_;
    u32 rank_, unit_, num_clusters_, units_n_, last_m_, last_n_;
    u32 panel_ = 0, in_panel_ = 0, panel_step_ = 0, in_panel_step_ = 0;
    u32 full_panels_ = 0, last_rows_ = 0, last_reciprocal_ = 0, m_ = 0, n_ = 0;
    u32 groups_[2] = {}, ends_[2] = {}, part_ = 0, psum_rows_ = 0;
    bool in_use_ = true;  // this lane saw a row of a group, or did not look
    u32 chunk_ = 0, lane_rows_ = 0, lane_end_ = 0, lane_units_ = 0;
};

}  // namespace deep_gemm::sched
