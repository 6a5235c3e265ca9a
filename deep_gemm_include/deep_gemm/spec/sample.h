// From logits to tokens: argmax, truncated distributions, draws, and what becomes of a window of drafts.
//
// Sums of probabilities are sums of integers (units of 2^-44 of the largest), so they are exact and do not
// depend on an order. Random numbers are Philox 4x32-10 of (seed, position, purpose).
#pragma once

#include <deep_gemm/spec/view.h>

namespace deep_gemm {

constexpr u32 kSampleThreads = 256;
constexpr u32 kArgmaxThreads = 1024;
constexpr u32 kArgmaxCluster = 8;  // CTAs of a row
constexpr u32 kArgmaxUnroll = 8;   // logits of a thread that are on their way at once
constexpr float kSampleUnits = 0x1p44f;
constexpr u32 kPurposeDraw = 0, kPurposeAccept = 1, kPurposeResidual = 2;

struct SampleSpec {
    bool sampled = false;  // accept_drafts: by distributions, else by argmax

    friend constexpr bool operator==(const SampleSpec&, const SampleSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const SampleSpec& s) {
    visit("sampled", s.sampled);
}

struct SampleSmem {
    u32 bins;    // 256 sums
    u32 found;   // bin and what lies above it, a pair of u64
    u32 warps;   // a u64 a warp
    u32 counts;  // a word a warp
    u32 bytes;
};
constexpr SampleSmem plan_smem(const SampleSpec&) {
    constexpr u32 kWarps = kSampleThreads / 32;
    SampleSmem p{};
    p.bins = 0;
    p.found = 256 * 8;
    p.warps = p.found + 16;
    p.counts = p.warps + kWarps * 8;
    p.bytes = p.counts + kWarps * 4;
    return p;
}

struct ArgmaxParams {
    const float* logits;  // [rows, v]
    u64 stride;
    i32* tokens;
    u32 v;
};

struct DistributionParams {
    const float* logits;  // [rows, v]
    float* probabilities;
    u64 stride, out_stride;
    const float* temperature;
    const i32* top_k;
    const float* top_p;
    const float* min_p;
    u32 v;
};

struct DrawParams {
    const float* probabilities;  // [rows, v]
    u64 stride;
    const i32* seed;
    const i32* positions;
    i32* tokens;
    u32 v, purpose;
};

struct AcceptParams {
    const i32* tokens;   // [n]
    const i32* targets;  // [n]
    const float* p;      // [n, v]
    const float* q;      // [n - 1, v]
    u64 p_stride, q_stride;
    const i32* seed;
    const i32* positions;
    i32* record;
    u32 n, v;
};

struct PositionsParams {
    const i32* base;
    const i32* count;  // or null
    i32* positions;
    i32 offset;
    u32 n;
};

}  // namespace deep_gemm
