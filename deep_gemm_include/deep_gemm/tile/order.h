// fp32 values as integers in the same order, for exact selection.
#pragma once

#include <deep_gemm/spec/codec.h>
#include <deep_gemm/ptx/math.h>

namespace deep_gemm::tile {

/// a < b exactly when order_of(a) < order_of(b); both zeros are one; NaN, and nothing else, is 0.
DG_DEVICE u32 order_of(float value) {
    if (value != value) return 0;
    const u32 bits = codec::bits_of_float(value + 0.0f);
    return (bits & codec::kSignBit) != 0 ? ~bits : bits | codec::kSignBit;
}

/// Largest over the warp, in all lanes.
DG_DEVICE u64 warp_max_u64(u64 value) {
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) {
        const u64 other = ptx::shfl_bfly_u64(value, mask);
        value = other > value ? other : value;
    }
    return value;
}

/// A key that sorts by value, then lower index first.
DG_DEVICE u64 ranked(u32 order, u32 index) {
    return static_cast<u64>(order) << 32 | (0xffffffffu - index);
}
DG_DEVICE u32 index_of(u64 ranked) {
    return 0xffffffffu - static_cast<u32>(ranked);
}

}  // namespace deep_gemm::tile
