// Exact sums over a CTA, random numbers, and a draw from weights (spec/sample.h).
#pragma once

#include <deep_gemm/spec/sample.h>
#include <deep_gemm/tile/order.h>
#include <deep_gemm/ptx/global.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm::tile {

constexpr u32 kSampleWarps = kSampleThreads / 32;

/// Sum over the CTA, in all threads.
DG_DEVICE u64 cta_sum_u64(ptx::SharedAddress warps, u64 value) {
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) value += ptx::shfl_bfly_u64(value, mask);
    const u32 thread = ptx::thread_index();
    if (thread % 32 == 0) ptx::st_shared_u64(warps + thread / 32 * 8, value);
    ptx::sync_threads();
    u64 total = 0;
    for (u32 warp = 0; warp < kSampleWarps; ++warp) total += ptx::ld_shared_u64(warps + warp * 8);
    ptx::sync_threads();
    return total;
}
/// Maximum over the CTA, in all threads.
DG_DEVICE u64 cta_max_u64(ptx::SharedAddress warps, u64 value) {
    value = warp_max_u64(value);
    const u32 thread = ptx::thread_index();
    if (thread % 32 == 0) ptx::st_shared_u64(warps + thread / 32 * 8, value);
    ptx::sync_threads();
    u64 largest = 0;
    for (u32 warp = 0; warp < kSampleWarps; ++warp) {
        const u64 other = ptx::ld_shared_u64(warps + warp * 8);
        largest = other > largest ? other : largest;
    }
    ptx::sync_threads();
    return largest;
}

struct Random {
    u32 words[4];
    [[nodiscard]] DG_DEVICE u64 bits64() const { return words[0] | static_cast<u64>(words[1]) << 32; }
    /// In [0, 1), a multiple of 2^-24.
    [[nodiscard]] DG_DEVICE float uniform() const { return static_cast<float>(words[0] >> 8) * 0x1p-24f; }
};

/// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
DG_DEVICE Random philox(u32 seed_low, u32 seed_high, u32 position, u32 purpose) {
    u32 c[4] = {position, purpose, 0, 0}, k0 = seed_low, k1 = seed_high;
    for (u32 round = 0; round < 10; ++round) {
        const u64 a = static_cast<u64>(0xd2511f53u) * c[0], b = static_cast<u64>(0xcd9e8d57u) * c[2];
        const u32 next[4] = {static_cast<u32>(b >> 32) ^ c[1] ^ k0, static_cast<u32>(b),
                             static_cast<u32>(a >> 32) ^ c[3] ^ k1, static_cast<u32>(a)};
        for (u32 i = 0; i < 4; ++i) c[i] = next[i];
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return {{c[0], c[1], c[2], c[3]}};
}
DG_DEVICE Random random_of(const i32* seed, i32 position, u32 purpose) {
    return philox(static_cast<u32>(ptx::ld_global_s32(seed)), static_cast<u32>(ptx::ld_global_s32(seed + 1)),
                  static_cast<u32>(position), purpose);
}

/// The token in which the share `random` of all weights ends; -1 if every weight is 0. weight(i) is an
/// integer; a thread has a run of neighbouring tokens. All threads get the token.
template <typename Weight>
DG_DEVICE i32 draw(ptx::SharedAddress smem, u32 v, u64 random, const Weight& weight) {
    constexpr SampleSmem kPlan = plan_smem(SampleSpec{});
    const u32 run = ceil_div(v, kSampleThreads), thread = ptx::thread_index(), lane = thread % 32;
    const u32 begin = thread * run < v ? thread * run : v, end = begin + run < v ? begin + run : v;
    u64 mine = 0;
    for (u32 i = begin; i < end; ++i) mine += weight(i);
    u64 through = mine;
#pragma unroll
    for (u32 delta = 1; delta < 32; delta *= 2) {
        const u64 lower = ptx::shfl_up_u64(through, delta);
        if (lane >= delta) through += lower;
    }
    if (lane == 31) ptx::st_shared_u64(smem + kPlan.warps + thread / 32 * 8, through);
    if (thread == 0) ptx::st_shared_u32(smem + kPlan.found, 0xffffffffu);
    ptx::sync_threads();
    u64 total = 0, before = 0;
    for (u32 warp = 0; warp < kSampleWarps; ++warp) {
        const u64 sum = ptx::ld_shared_u64(smem + kPlan.warps + warp * 8);
        if (warp < thread / 32) before += sum;
        total += sum;
    }
    const u64 target = ptx::mul_hi_u64(random, total);  // below total
    u64 reached = before + through - mine;
    if (target >= reached && target - reached < mine) {
        u32 i = begin;
        for (reached += weight(i); reached <= target; reached += weight(i)) ++i;
        ptx::st_shared_u32(smem + kPlan.found, i);
    }
    ptx::sync_threads();
    const i32 token = static_cast<i32>(ptx::ld_shared_u32(smem + kPlan.found));
    ptx::sync_threads();
    return token;
}

}  // namespace deep_gemm::tile
