// An operand tile of one stage as wgmma reads it, whichever of its dimensions is contiguous: the descriptor,
// and what a step along K adds to it. Both orders give 64 rows the same kMmaRows * kBlockKBytes bytes, so
// that a wave or a warpgroup finds its rows at one offset.
#pragma once

#include <deep_gemm/spec/gemm.h>
#include <deep_gemm/ptx/wgmma.h>

namespace deep_gemm::tile {

/// 1 where wgmma has to transpose the operand.
constexpr u32 transpose_of(Major major) {
    return major == Major::mn ? 1 : 0;
}

template <Major M>
DG_DEVICE u64 operand_descriptor(ptx::SharedAddress tile) {
    if constexpr (M == Major::k)
        return ptx::wgmma_descriptor(tile);
    else
        return ptx::wgmma_descriptor_mn_major(tile, kMmaRows * kBlockKBytes);
}

/// What the k of one wgmma add to a descriptor: 32 bytes of a row, or 16 rows of 128 bytes.
template <Major M>
constexpr u32 step_of() {
    return (M == Major::k ? 32 : 16 * kBlockKBytes) / 16;
}

}  // namespace deep_gemm::tile
