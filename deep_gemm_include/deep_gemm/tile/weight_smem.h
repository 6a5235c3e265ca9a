// The named regions of a weight-only GEMM's shared memory, as addresses. All offsets come from plan_smem(S).
#pragma once

#include <deep_gemm/spec/weight_gemm.h>
#include <deep_gemm/ptx/mbarrier.h>

namespace deep_gemm::tile {

template <WeightGemmSpec S>
struct WeightSmem {
    static constexpr WeightGemmSmemPlan kPlan = plan_smem(S);
    ptx::SharedAddress base;

    DG_DEVICE ptx::SharedAddress weights(u32 stage) const {
        return base + kPlan.weights + stage * kPlan.weight_stage_bytes;
    }
    DG_DEVICE ptx::SharedAddress tokens(u32 stage) const {
        return base + kPlan.tokens + stage * kPlan.token_stage_bytes;
    }
    DG_DEVICE ptx::SharedAddress staging(u32 warp) const {
        return base + kPlan.staging + warp * kStagedBytes;
    }
    DG_DEVICE ptx::SharedAddress weights_full(u32 stage) const {
        return base + kPlan.weights_full + stage * 8;
    }
    DG_DEVICE ptx::SharedAddress weights_empty(u32 stage) const {
        return base + kPlan.weights_empty + stage * 8;
    }
    DG_DEVICE ptx::SharedAddress tokens_full(u32 stage) const { return base + kPlan.tokens_full + stage * 8; }
    DG_DEVICE ptx::SharedAddress tokens_empty(u32 stage) const {
        return base + kPlan.tokens_empty + stage * 8;
    }
};

}  // namespace deep_gemm::tile
