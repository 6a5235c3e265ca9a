// Memory that a launch brings to L2 for the ones after it: weights, while kernels that read little run.
// Blocks beyond those that do the launch's own work ask for it, before they wait for anything: nobody writes
// it.
#pragma once

#include <deep_gemm/spec/types.h>

namespace deep_gemm {

constexpr u32 kAheadRanges = 24;
constexpr u32 kAheadPieceBytes = 4096;  // that a thread asks for at once

struct AheadRange {
    const u8* address;  // multiples of 16, both
    u64 bytes;
};
struct Ahead {
    AheadRange ranges[kAheadRanges];
    u32 count, blocks;  // blocks: of the grid, the last ones
};

}  // namespace deep_gemm
