// Blocks that bring memory to L2 (spec/ahead.h).
#pragma once

#include <deep_gemm/spec/ahead.h>
#include <deep_gemm/ptx/base.h>
#include <deep_gemm/ptx/stream.h>

namespace deep_gemm::tile {

/// Block `block` of ahead.blocks, of `threads` threads. L2 is where writes land: nothing can become stale.
DG_DEVICE void bring_ahead(const Ahead& ahead, u32 block, u32 threads) {
    const u64 first = u64{ptx::thread_index()} * ahead.blocks + block, step = u64{ahead.blocks} * threads;
    for (u32 i = 0; i < ahead.count; ++i) {
        const AheadRange range = ahead.ranges[i];
        for (u64 at = first * kAheadPieceBytes; at < range.bytes; at += step * kAheadPieceBytes) {
            const u64 left = range.bytes - at;
            ptx::prefetch_l2(range.address + at,
                             left < kAheadPieceBytes ? static_cast<u32>(left) : kAheadPieceBytes);
        }
    }
}

}  // namespace deep_gemm::tile
