// Hyper-connections: a token has `streams` residual streams; before a sublayer they are mixed into one input,
// after it the output is added to all of them. The mixing coefficients come from the streams themselves.
//
//   v = streams, flat; q = 1 / sqrt(mean(v^2) + rms_eps); mix = (fn v) q
//   pre[i]     = sigmoid(mix[i] scale[0] + base[i]) + hc_eps
//   post[i]    = 2 sigmoid(mix[h + i] scale[1] + base[h + i])
//   comb[a, b] = softmax over b of (mix[2h + a h + b] scale[2] + base[2h + a h + b]), + hc_eps, then made
//   doubly
//                stochastic by Sinkhorn's iteration
// A cluster of CTAs shares a token: each has a range of channels, of all streams.
#pragma once

#include <deep_gemm/spec/view.h>

namespace deep_gemm {

constexpr u32 kHcThreads = 128;
constexpr u32 kHcCluster = 8;

struct HcSpec {
    Format x = Format::fp32, y = Format::fp32;
    Format weight = Format::none;  // of the norm that follows; none: no norm
    u32 streams = 4;
    bool head = false;  // only pre: before the output head

    friend constexpr bool operator==(const HcSpec&, const HcSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const HcSpec& s) {
    visit("x", s.x);
    visit("y", s.y);
    visit("weight", s.weight);
    visit("streams", s.streams);
    visit("head", s.head);
}

constexpr u32 mixes_of(const HcSpec& s) {
    return s.head ? s.streams : (2 + s.streams) * s.streams;
}

struct HcSmem {
    u32 sums;      // a float a warp
    u32 partials;  // this CTA's share of the mixes, then of the squares; read by the cluster
    u32 norm;      // its share of the squares of y; read by the cluster
    u32 pre;       // [streams]
    u32 bytes;
};
constexpr HcSmem plan_smem(const HcSpec& s) {
    HcSmem p{};
    const u32 sums = (mixes_of(s) + 1) * (kHcThreads / 32) * 4;
    p.sums = 0;
    p.partials = align_up(sums, 16u);
    p.norm = p.partials + align_up((mixes_of(s) + 1) * 4, 16u);
    p.pre = p.norm + 16;
    p.bytes = p.pre + s.streams * 4;
    return p;
}

struct HcParams {
    View x;             // [rows, streams, d]
    const float* fn;    // [mixes, streams * d]
    const float* base;  // [mixes]
    const float* scale;
    const void* weight;  // [d]
    View y;              // [rows, d]
    float* post;         // [rows, streams]
    float* comb;         // [rows, streams, streams]
    u32 d, sinkhorn_iterations;
    float hc_eps, rms_eps;
};

struct HcPostParams {
    View x, out;        // [rows, streams, d]
    View y;             // [rows, d]
    const float* post;  // [rows, streams]
    const float* comb;  // [rows, streams, streams], source stream first
    u32 d;
};

}  // namespace deep_gemm
