// The named regions of a GEMM's shared memory, as addresses. All offsets come from plan_smem(S).
#pragma once

#include <deep_gemm/spec/gemm.h>
#include <deep_gemm/ptx/mbarrier.h>

namespace deep_gemm::tile {

template <GemmSpec S>
struct GemmSmem {
    static constexpr SmemPlan kPlan = plan_smem(S);
    ptx::SharedAddress base;

    DG_DEVICE ptx::SharedAddress a(u32 stage) const { return base + kPlan.a + stage * kPlan.a_stage_bytes; }
    DG_DEVICE ptx::SharedAddress b(u32 stage) const { return base + kPlan.b + stage * kPlan.b_stage_bytes; }
    DG_DEVICE ptx::SharedAddress d() const { return base + kPlan.d; }
    DG_DEVICE ptx::SharedAddress received() const { return base + kPlan.received; }
    DG_DEVICE ptx::SharedAddress scales(u32 stage) const {
        return base + kPlan.scales + stage * kPlan.scale_stage_bytes;
    }
    DG_DEVICE ptx::SharedAddress scale_a(u32 stage, u32 row) const { return scales(stage) + row * 4; }
    DG_DEVICE ptx::SharedAddress scale_b(u32 stage, u32 run) const {
        return scales(stage) + (S.block_m + run) * 4;
    }
    DG_DEVICE ptx::SharedAddress full(u32 stage) const { return base + kPlan.full + stage * 8; }
    DG_DEVICE ptx::SharedAddress empty(u32 stage) const { return base + kPlan.empty + stage * 8; }
    DG_DEVICE ptx::SharedAddress partial_full() const { return base + kPlan.partial_full; }
    DG_DEVICE ptx::SharedAddress partial_empty() const { return base + kPlan.partial_empty; }
    DG_DEVICE ptx::SharedAddress c_full(u32 warpgroup) const { return base + kPlan.c_full + warpgroup * 8; }
};

}  // namespace deep_gemm::tile
