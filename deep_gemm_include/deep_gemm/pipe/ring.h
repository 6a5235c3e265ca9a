// A ring of stages between the warps that load tiles and the warps that multiply them. Each stage has two
// mbarriers: `full` (data has landed) and `empty` (all readers are done). A cursor walks the ring; its phase
// is the parity of the trip. Readers wait full[stage] with `phase`, writers wait empty[stage] with `phase ^
// 1`: the first trip of a writer passes at once.
#pragma once

#include <deep_gemm/ptx/base.h>
#include <deep_gemm/ptx/mbarrier.h>

namespace deep_gemm::pipe {

template <u32 Stages>
struct Cursor {
    u32 stage = 0;
    u32 phase = 0;

    /// Moves `count` stages ahead; `count` is at most Stages.
    DG_DEVICE void advance(u32 count = 1) {
        stage += count;
        if (stage >= Stages) {
            stage -= Stages;
            phase ^= 1;
        }
    }
    /// `stage`, broadcast: for loops in which the compiler cannot see that all lanes agree on it.
    DG_DEVICE u32 uniform_stage() const { return ptx::shfl_idx(stage, 0); }
};

}  // namespace deep_gemm::pipe
