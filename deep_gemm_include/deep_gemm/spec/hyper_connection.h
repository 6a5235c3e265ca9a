// Hyper-connections: a token has `streams` residual streams; before a sublayer they are mixed into one input,
// after it the output is added to all of them. The mixing coefficients come from the streams themselves.
//
//   v = streams, flat; q = 1 / sqrt(mean(v^2) + rms_eps); mix = (fn v) q
//   pre[i]     = sigmoid(mix[i] scale[0] + base[i]) + hc_eps
//   post[i]    = 2 sigmoid(mix[h + i] scale[1] + base[h + i])
//   comb[a, b] = softmax over b of (mix[2h + a h + b] scale[2] + base[2h + a h + b]), + hc_eps, then made
//   doubly
//                stochastic by Sinkhorn's iteration
// A cluster of CTAs shares a token, or rounds of a few: each has a range of channels, of all streams; a
// thread has four channels of a stream, its neighbours those of the others. One more warp of the CTA whose
// rank is the token's place finds post and comb.
#pragma once

#include <deep_gemm/spec/quantize.h>
#include <deep_gemm/spec/view.h>

namespace deep_gemm {

constexpr u32 kHcThreads = 128;      // hc_post
constexpr u32 kHcMixThreads = 512;   // hc_mix, where they have all channels in one step
constexpr u32 kHcManyThreads = 256;  // else: with registers for more steps
constexpr u32 kHcMixWarps = kHcMixThreads / 32;
constexpr u32 kHcCluster = 8;
constexpr u32 kMaxHcSteps = 4;
constexpr u32 kHcHeldMixes = 9;  // whose fn a thread with one step holds in registers
constexpr u32 kMaxHcTokens = 8;  // of a cluster at a time: each has a CTA that finds its post and comb

struct HcSpec {
    Format x = Format::fp32, y = Format::fp32;
    Format weight = Format::none;  // of the norm that follows; none: no norm
    Format add = Format::none;     // of a sublayer's output that the streams take in first; none: nothing
    u32 streams = 4;
    u32 threads = kHcMixThreads;
    u32 steps = 1;        // times that the threads go over a CTA's channels
    u32 tokens = 1;       // of a cluster at a time; any number gives the same bits
    bool head = false;    // only pre: before the output head
    bool narrow = false;  // y also in a narrow form, with scales rounded up where they are powers of two
    Recipe recipe = Recipe::fp8_128;

    friend constexpr bool operator==(const HcSpec&, const HcSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const HcSpec& s) {
    visit("x", s.x);
    visit("y", s.y);
    visit("weight", s.weight);
    visit("add", s.add);
    visit("streams", s.streams);
    visit("threads", s.threads);
    visit("steps", s.steps);
    visit("tokens", s.tokens);
    visit("head", s.head);
    visit("narrow", s.narrow);
    visit("recipe", s.recipe);
}

constexpr u32 mixes_of(const HcSpec& s) {
    return s.head ? s.streams : (2 + s.streams) * s.streams;
}

// Threads of a CTA, with those that find post and comb.
constexpr u32 hc_cta_of(const HcSpec& s) {
    return s.threads + 32;
}
// Mixes whose fn is read early: into registers, into shared memory.
constexpr u32 hc_held_of(const HcSpec& s) {
    return s.steps > 1 ? 0 : mixes_of(s) < kHcHeldMixes ? mixes_of(s) : kHcHeldMixes;
}
constexpr u32 hc_late_of(const HcSpec& s) {
    return s.steps > 1 ? 0 : mixes_of(s) - hc_held_of(s);
}

// Whether codes need the largest of a whole row: then the cluster meets once more.
constexpr bool hc_row_amax(const HcSpec& s) {
    return s.narrow && s.recipe == Recipe::nvfp4;
}

// Of all tokens that the cluster has at a time.
struct HcSmem {
    u32 sums;      // a float a warp and mix, then one a warp
    u32 partials;  // this CTA's share of the mixes, then of the squares; read by the cluster
    u32 norm;      // its share of the squares of y; read by the cluster
    u32 pre;       // [streams]
    u32 mixed;     // fp32: this CTA's channels of y before the norm
    u32 streams;   // fp32: four channels of a thread and step
    u32 late;      // fp32: what a thread multiplies in the mixes that registers do not hold
    u32 amax;      // of NVFP4: this CTA's largest of y; read by the cluster
    u32 bytes;
};
// Channels of a CTA, of which there are as many as threads have at most.
constexpr u32 hc_share_of(u32 d) {
    return ceil_div(d / 4, kHcCluster) * 4;
}
constexpr u32 hc_threads_of(u32 d, u32 streams) {
    return hc_share_of(d) / 4 * streams <= kHcMixThreads ? kHcMixThreads : kHcManyThreads;
}
constexpr u32 hc_steps_of(u32 d, u32 streams) {
    return ceil_div(hc_share_of(d) / 4 * streams, hc_threads_of(d, streams));
}
constexpr HcSmem plan_smem(const HcSpec& s) {
    HcSmem p{};
    const u32 mixes = mixes_of(s) + 1;
    p.sums = 0;
    p.partials = align_up(s.tokens * mixes * kHcMixWarps * 4, 16u);
    p.norm = p.partials + align_up(s.tokens * mixes * 4, 16u);
    p.pre = p.norm + align_up(s.tokens * 4, 16u);
    p.mixed = p.pre + align_up(s.tokens * s.streams * 4, 16u);
    p.streams = p.mixed + s.tokens * s.threads / s.streams * s.steps * 16;
    p.late = p.streams + s.tokens * s.threads * s.steps * 16;
    p.amax = p.late + hc_late_of(s) * s.threads * 16;
    p.bytes = p.amax + (hc_row_amax(s) ? align_up(s.tokens * 4, 16u) : 0);
    return p;
}

struct HcParams {
    View x;             // [rows, streams, d]
    const float* fn;    // [mixes, streams * d]
    const float* base;  // [mixes]
    const float* scale;
    const void* weight;  // [d]
    View y;              // [rows, d]
    View add;            // [rows, d]
    u8* codes;           // [rows, d] or [rows, d / 2]
    void* scales;        // [rows, ..], of the recipe
    float* global;       // [rows], of NVFP4
    float* post;         // [rows, streams]; with `add` also read
    float* comb;         // [rows, streams, streams]
    u32 rows, d, sinkhorn_iterations, clusters;
    float hc_eps, rms_eps;
};

struct HcPostSpec {
    Format x = Format::fp32, y = Format::fp32;  // of streams and of the sublayer's output
    u32 streams = 4;

    friend constexpr bool operator==(const HcPostSpec&, const HcPostSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const HcPostSpec& s) {
    visit("x", s.x);
    visit("y", s.y);
    visit("streams", s.streams);
}
constexpr NoSmem plan_smem(const HcPostSpec&) {
    return {};
}
struct HcPostParams {
    View x, out;        // [rows, streams, d]
    View y;             // [rows, d]
    const float* post;  // [rows, streams]
    const float* comb;  // [rows, streams, streams], source stream first
    u32 d;
};

}  // namespace deep_gemm
