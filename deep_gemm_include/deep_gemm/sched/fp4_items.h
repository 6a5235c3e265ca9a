// Which part of an FP4 GEMM a CTA computes next. An item is up to block_m tokens of one expert times the rows
// of weights that the CTA's warpgroups hold; the CTAs of a cluster have the same tokens and neighbouring
// rows. One warp finds items and hands them to the others through shared memory (kernel/fp4_load.h). Items of
// an expert and the same weights follow each other, so that their second reader finds them in L2.
#pragma once

#include <deep_gemm/spec/fp4_gemm.h>
#include <deep_gemm/ptx/global.h>

namespace deep_gemm::sched {

struct Fp4Item {
    u32 expert = 0;
    u32 n_block = 0;  // in units of the CTA's rows of weights
    u32 first = 0;    // slot or row of the first token
    u32 count = 0;    // tokens to compute
    u32 rows = 0;     // rows of D to write: zeros beyond count
};
constexpr u32 kFp4NoItem = 0xffffffff;  // in place of the expert: the list is over

template <Fp4GemmSpec S>
class Fp4Items {
  public:
    /// Scope: warp, converged, as for next().
    DG_DEVICE explicit Fp4Items(const Fp4GemmParams& params)
        : params_(params),
          blocks_n_(ceil_div(params.n, fp4_block_n_of(S) * S.cluster)),
          unit_(ptx::block_index() / S.cluster) {
        num_entries_ = S.groups == GroupMode::dense        ? 1
                       : S.groups == GroupMode::contiguous ? ceil_div(params.m, kGroupAlignment)
                                                           : params.num_groups;
        ahead_ = read_entry(0);
        if constexpr (S.groups == GroupMode::gathered) {
            const i32 listed = ptx::ld_global_s32(&params.list->num_entries);
            num_entries_ = listed < 0 ? 0 : smaller(static_cast<u32>(listed), num_entries_);
        }
        next_chunk(0, 0);
    }

    /// The item of the current unit, or false at the end; the unit does not change.
    DG_DEVICE bool find(Fp4Item& item) {
        u32 in_chunk = ptx::ballot(unit_ < lane_end_);
        while (in_chunk == 0) {
            if (chunk_ + ptx::kWarpThreads >= num_entries_) return false;
            next_chunk(chunk_ + ptx::kWarpThreads, ptx::shfl_idx(lane_end_, ptx::kWarpThreads - 1));
            in_chunk = ptx::ballot(unit_ < lane_end_);
        }
        const u32 lane = ptx::lowest_bit(in_chunk);
        const u32 rows = ptx::shfl_idx(lane_.rows, lane), count = ptx::shfl_idx(lane_.count, lane);
        const u32 tiles = ceil_div(rows, S.block_m);
        const u32 unit = unit_ - (ptx::shfl_idx(lane_end_, lane) - tiles * blocks_n_);
        // Wide items of an expert are about equal; a full one and a small rest would leave SMs idle.
        const u32 tile = S.wide ? align_up(ceil_div(rows, tiles), kFp4BoxRows / S.token_terms) : S.block_m;
        const u32 token = unit % tiles * tile;
        item.expert = ptx::shfl_idx(lane_.expert, lane);
        item.n_block = unit / tiles * S.cluster + (S.cluster > 1 ? ptx::cluster_rank() : 0);
        item.first = ptx::shfl_idx(lane_.first, lane) + token;
        item.count = smaller(count > token ? count - token : 0, tile);
        item.rows = smaller(rows - token, tile);
        return true;
    }

    /// Asks for the unit after the current one; its number arrives while the current item is being served.
    DG_DEVICE void request() {
        if constexpr (S.queue) {
            if (ptx::lane_index() == 0) requested_ = ptx::atomic_add_global(&params_.list->next_unit, 1);
        }
    }
    DG_DEVICE void advance() {
        if constexpr (S.queue)
            unit_ = ptx::grid_size() + ptx::shfl_idx(requested_, 0);
        else
            unit_ += ptx::grid_size() / S.cluster;
    }
    /// After the last item: the last CTA to come here leaves the counters as it found them.
    DG_DEVICE void finish() {
        if constexpr (S.queue) {
            if (ptx::lane_index() == 0 &&
                ptx::atomic_add_global(&params_.list->finished_ctas, 1) == ptx::grid_size() - 1) {
                ptx::st_global_u32(&params_.list->next_unit, 0);
                ptx::st_global_u32(&params_.list->finished_ctas, 0);
            }
        }
    }

  private:
    struct Entry {
        u32 expert = 0, first = 0, count = 0, rows = 0;
    };

    static DG_DEVICE u32 smaller(u32 a, u32 b) { return a < b ? a : b; }
    DG_DEVICE u32 clamp_rows(i32 value) const {
        return value < 0 ? 0 : smaller(static_cast<u32>(value), params_.m);
    }

    /// Entry `chunk` + lane; nothing beyond the end.
    DG_DEVICE Entry read_entry(u32 chunk) const {
        const u32 index = chunk + ptx::lane_index();
        if constexpr (S.groups == GroupMode::contiguous) return read_segment(chunk);
        if (index >= num_entries_) return {};
        if constexpr (S.groups == GroupMode::dense) {
            return {0, 0, params_.m, params_.m};
        } else if constexpr (S.groups == GroupMode::gathered) {
            const ptx::UInt4 entry =
                ptx::ld_global_v4_u32(reinterpret_cast<const Fp4Entry*>(params_.group_layout) + index);
            if (entry.x >= params_.num_groups || entry.y >= params_.m) return {};
            const u32 count = smaller(clamp_rows(static_cast<i32>(entry.z)), params_.m - entry.y);
            return {entry.x, entry.y, count, count};
        } else if constexpr (S.groups == GroupMode::masked) {
            const u32 rows = clamp_rows(ptx::ld_global_s32(params_.group_layout + index));
            return {index, 0, rows, rows};
        } else {
            const i32 previous = index == 0 ? 0 : ptx::ld_global_s32(params_.group_layout + index - 1);
            const u32 start = align_up(clamp_rows(previous), kGroupAlignment);
            const u32 end = clamp_rows(ptx::ld_global_s32(params_.group_layout + index));
            if (end <= start) return {};
            return {index, start, end - start, smaller(align_up(end, kGroupAlignment), params_.m) - start};
        }
    }

    /// contiguous: 128 rows that share a matrix; rows of no group at their end are not computed.
    DG_DEVICE Entry read_segment(u32 chunk) const {
        constexpr u32 kRowsOfLane = kGroupAlignment / ptx::kWarpThreads;
        Entry mine;
        for (u32 i = 0; i < ptx::kWarpThreads && chunk + i < num_entries_; ++i) {
            const u32 first = (chunk + i) * kGroupAlignment, row = first + ptx::lane_index() * kRowsOfLane;
            u32 valid = 0, group = 0;
#pragma unroll
            for (u32 j = 0; j < kRowsOfLane; ++j) {
                const u32 of_row = row + j < params_.m
                                       ? static_cast<u32>(ptx::ld_global_s32(params_.group_layout + row + j))
                                       : params_.num_groups;
                if (j == 0) group = of_row;
                if (of_row < params_.num_groups) valid = j + 1;
            }
            const u32 lanes = ptx::ballot(valid != 0);
            u32 count = 0;
            if (lanes != 0) {
                const u32 last = ptx::highest_bit(lanes);
                count = last * kRowsOfLane + ptx::shfl_idx(valid, last);
            }
            const u32 expert = ptx::shfl_idx(group, 0);
            if (ptx::lane_index() == i)
                mine = {expert, first, expert < params_.num_groups ? count : 0,
                        smaller(params_.m - first, kGroupAlignment)};
        }
        return mine;
    }

    /// Makes entries `chunk` to chunk + 31 the lanes', and starts to load those that follow.
    DG_DEVICE void next_chunk(u32 chunk, u32 units_before) {
        chunk_ = chunk;
        lane_ = ahead_;
        if (chunk + ptx::lane_index() >= num_entries_) lane_ = {};
        ahead_ = read_entry(chunk + ptx::kWarpThreads);
        u32 total = ceil_div(lane_.rows, S.block_m) * blocks_n_;
#pragma unroll
        for (u32 delta = 1; delta < ptx::kWarpThreads; delta *= 2) {
            const u32 below = ptx::shfl_up(total, delta);
            if (ptx::lane_index() >= delta) total += below;
        }
        lane_end_ = units_before + total;
    }

    const Fp4GemmParams& params_;
    u32 blocks_n_, num_entries_, unit_;
    u32 requested_ = 0, chunk_ = 0, lane_end_ = 0;
    Entry lane_, ahead_;
};

}  // namespace deep_gemm::sched
