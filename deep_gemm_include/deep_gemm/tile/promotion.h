// FP8 accumulation along K in two levels: the tensor core sums one block of 128, the math warps add it,
// scaled, to fp32. While one block is being promoted the next one is already multiplying, so the tensor core
// never waits for a promotion.
#pragma once

#include <deep_gemm/ptx/wgmma.h>

namespace deep_gemm::tile {

/// `launch(partial)` starts one committed group of wgmma into `partial` and returns its stage;
/// `finish(partial, stage)` promotes a completed one. Called `count` times each, in the same order.
template <u32 Registers, typename Launch, typename Finish>
DG_DEVICE void promote_overlapped(u32 count, Launch&& launch, Finish&& finish) {
    float even[Registers], odd[Registers];
    const auto complete = [&](float(&partial)[Registers], u32 stage) {
        ptx::wgmma_keep(partial);
        finish(partial, stage);
    };
    if (count == 0) return;
    u32 stage = launch(even);
    // NOTE: the tail is written out. With a shared tail or a way out in the middle, ptxas serialises the
    // wgmma (C7514).
    for (; count >= 3; count -= 2) {
        const u32 next = launch(odd);
        ptx::wgmma_wait<1>();
        complete(even, stage);
        stage = launch(even);
        ptx::wgmma_wait<1>();
        complete(odd, next);
    }
    if (count == 2) {
        const u32 next = launch(odd);
        ptx::wgmma_wait<1>();
        complete(even, stage);
        ptx::wgmma_wait<0>();
        complete(odd, next);
    } else {
        ptx::wgmma_wait<0>();
        complete(even, stage);
    }
}

}  // namespace deep_gemm::tile
