// Latent attention of few query heads of one token over cached rows, in tiles of 16 rows from the oldest on,
// with an online softmax in fp32. Keys and values are one vector: of a window ring, then of compressed rows
// (picked or all); sinks. The order depends on the position (and the picks) alone.
#pragma once

#include <deep_gemm/spec/latent.h>

namespace deep_gemm {

constexpr u32 kAttentionThreads = 128;
constexpr u32 kAttentionWarps = kAttentionThreads / 32;
constexpr u32 kAttentionHeads = 4;  // of a CTA
constexpr u32 kAttentionTile = 16;  // rows

struct AttentionSpec {
    Format q = Format::fp32, out = Format::fp32;
    Format rows = Format::fp32;        // window ring (fp8_e4m3: FP8 rows)
    Format compressed = Format::none;  // none: no compressed rows
    u32 d = 512;
    bool picks = false;  // else all visible compressed rows
    bool sinks = false;
    bool rotate = false;  // the output's last channels, back

    friend constexpr bool operator==(const AttentionSpec&, const AttentionSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const AttentionSpec& s) {
    visit("q", s.q);
    visit("out", s.out);
    visit("rows", s.rows);
    visit("compressed", s.compressed);
    visit("d", s.d);
    visit("picks", s.picks);
    visit("sinks", s.sinks);
    visit("rotate", s.rotate);
}

struct AttentionSmem {
    u32 values;   // fp32 [tile, d]
    u32 weights;  // fp32 [heads, tile]: scores, then their exponentials
    u32 factors;  // fp32 [heads]: what the sums so far are scaled by; at the end, what the output is
    u32 bytes;
};
constexpr AttentionSmem plan_smem(const AttentionSpec& s) {
    AttentionSmem p{};
    p.values = 0;
    p.weights = kAttentionTile * s.d * 4;
    p.factors = p.weights + kAttentionHeads * kAttentionTile * 4;
    p.bytes = p.factors + kAttentionHeads * 4;
    return p;
}

struct AttentionParams {
    View q, out;      // [tokens, heads, d]
    LatentView rows;  // the ring
    LatentView compressed;
    const i32* picks;    // [tokens, num_picks]
    const float* sinks;  // [heads]
    const float* frequencies;
    const i32* positions;
    const i32* sequences;  // or null
    u32 tokens, heads, window, ratio, num_picks, dims;
    float scale;
};

}  // namespace deep_gemm
