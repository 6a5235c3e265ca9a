// Which block of y a CTA of a weight-only GEMM computes next. Persistent: cluster c takes units c, c +
// clusters, ... A unit is the block, or the two blocks side by side, of one cluster.
#pragma once

#include <deep_gemm/spec/weight_gemm.h>
#include <deep_gemm/ptx/base.h>

namespace deep_gemm::sched {

struct WeightBlock {
    u32 token = 0;  // first
    u32 row = 0;    // first row of W
};

/// Units along m that are walked before the next rows of W: the operands of concurrent blocks meet in L2.
constexpr u32 kWeightPanel = 8;

template <WeightGemmSpec S>
class WeightBlocks {
  public:
    DG_DEVICE explicit WeightBlocks(const WeightGemmParams& p)
        : rank_(S.cluster > 1 ? ptx::cluster_rank() : 0),
          unit_(ptx::block_index() / S.cluster),
          clusters_(ptx::grid_size() / S.cluster),
          units_m_(ceil_div(p.m, S.block_m)),
          units_n_(ceil_div(p.n, matrix_rows_of(S) * S.cluster)) {}

    DG_DEVICE bool next(WeightBlock& block) {
        if (unit_ >= units_m_ * units_n_) return false;
        const u32 panel = unit_ / (kWeightPanel * units_n_), in_panel = unit_ % (kWeightPanel * units_n_);
        const u32 remaining = units_m_ - panel * kWeightPanel;
        const u32 wide = remaining < kWeightPanel ? remaining : kWeightPanel;
        block.token = (panel * kWeightPanel + in_panel % wide) * S.block_m;
        block.row = (in_panel / wide * S.cluster + rank_) * matrix_rows_of(S);
        unit_ += clusters_;
        return true;
    }

  private:
    u32 rank_, unit_, clusters_, units_m_, units_n_;
};

}  // namespace deep_gemm::sched
