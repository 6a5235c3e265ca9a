// Sums and maxima over a warp or a CTA in a fixed order: the same bits in every thread, every time.
#pragma once

#include <deep_gemm/ptx/narrow.h>
#include <deep_gemm/ptx/shared.h>

namespace deep_gemm::tile {

/// Over groups of `Lanes` neighbouring lanes.
template <u32 Lanes = 32>
DG_DEVICE float warp_sum(float value) {
#pragma unroll
    for (u32 mask = Lanes / 2; mask > 0; mask /= 2)
        value = ptx::add_rn_f32(value, ptx::shfl_bfly_f32(value, mask));
    return value;
}
template <u32 Lanes = 32>
DG_DEVICE float warp_max(float value) {
#pragma unroll
    for (u32 mask = Lanes / 2; mask > 0; mask /= 2)
        value = ptx::max_nan_f32(value, ptx::shfl_bfly_f32(value, mask));
    return value;
}

/// Over the CTA's first `Threads` threads, which all call, of some values at once; `smem` holds one float a warp for
/// each and may be used again at once.
template <u32 Threads, u32 Values>
DG_DEVICE void cta_sums(ptx::SharedAddress smem, float (&values)[Values]) {
    constexpr u32 kWarps = Threads / 32;
#pragma unroll
    for (u32 i = 0; i < Values; ++i) values[i] = warp_sum(values[i]);
    if constexpr (kWarps == 1) return;
    const u32 thread = ptx::thread_index();
    if (thread % 32 == 0) {
#pragma unroll
        for (u32 i = 0; i < Values; ++i) ptx::st_shared_f32(smem + (i * kWarps + thread / 32) * 4, values[i]);
    }
    ptx::named_barrier_sync(0, Threads);
#pragma unroll
    for (u32 i = 0; i < Values; ++i) {
        values[i] = ptx::ld_shared_f32(smem + i * kWarps * 4);
#pragma unroll
        for (u32 warp = 1; warp < kWarps; ++warp)
            values[i] = ptx::add_rn_f32(values[i], ptx::ld_shared_f32(smem + (i * kWarps + warp) * 4));
    }
    ptx::named_barrier_sync(0, Threads);
}
template <u32 Threads>
DG_DEVICE float cta_sum(ptx::SharedAddress smem, float value) {
    float values[1] = {value};
    cta_sums<Threads>(smem, values);
    return values[0];
}

/// The largest over the CTA, as cta_sum().
template <u32 Threads>
DG_DEVICE float cta_max(ptx::SharedAddress smem, float value) {
    value = warp_max(value);
    const u32 thread = ptx::thread_index();
    if (thread % 32 == 0) ptx::st_shared_f32(smem + thread / 32 * 4, value);
    ptx::named_barrier_sync(0, Threads);
    float largest = ptx::ld_shared_f32(smem);
#pragma unroll
    for (u32 warp = 1; warp < Threads / 32; ++warp)
        largest = ptx::max_nan_f32(largest, ptx::ld_shared_f32(smem + warp * 4));
    ptx::named_barrier_sync(0, Threads);
    return largest;
}

}  // namespace deep_gemm::tile
