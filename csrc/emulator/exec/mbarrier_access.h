// An mbarrier in some CTA's shared memory, checked to be initialised, and the operations others need on it.
#pragma once

#include "emulator/async/mbarrier.h"
#include "emulator/exec/memory.h"

namespace deep_gemm::emulator {

// Bytes at `address` as an initialised mbarrier.
[[nodiscard]] SharedPlace mbarrier_place(Warp& w, u32 lane, u64 address, bool cluster);

// Applies `change` to the word; wakes the cluster when the phase completed.
template <typename F>
void update_mbarrier(Cta& cta, u32 offset, F change) {
    u64 word;
    std::memcpy(&word, cta.smem.data() + offset, 8);
    const u64 before = word;
    change(word);
    std::memcpy(cta.smem.data() + offset, &word, 8);
    if (mbarrier::unpack(before).phase != mbarrier::unpack(word).phase) {
        cta.cluster->wake();
        if (cta.cluster->races) cta.cluster->races->mbarrier_complete(cta, offset);
    }
    ++cta.cluster->progress;
}

// The asynchronous proxy is about to use this mbarrier: its init must have been fenced.
void check_mbarrier_fenced(Warp& w, u32 lane, const SharedPlace& place);

}  // namespace deep_gemm::emulator
