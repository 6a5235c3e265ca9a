// Latent attention on tensor cores: bf16 queries over FP8 cache rows (spec/latent.h) of 512 channels. A CTA
// has 16 heads of a token, or 32, which share the rows that it decodes. The rows a token sees, from the
// oldest on, are cut into chunks of 64:
//
//   of a chunk   scores by mma.sync over channels in order; their maximum m; weights exp(score - m), summed in
//                fp32, rounded to bf16; the weighted sum of the rows by mma.sync over rows in order
//   of a token   chunks are merged in order: (m, sum, rows) and the next one's, each scaled to the larger m
//
// `split`: every chunk has a CTA of its own and latent_merge adds up the records; else a CTA goes through all
// chunks of a token. latent_few: every chunk has a CTA, those of a token and 16 heads are a cluster, which
// merges by itself. The numbers are the same, so that the choice may follow the number of tokens.
#pragma once

#include <deep_gemm/spec/attention.h>

namespace deep_gemm {

constexpr u32 kLatentMmaThreads = 256;
constexpr u32 kLatentMmaHeads = 16;
constexpr u32 kLatentChunk = 64;                   // rows
constexpr u32 kLatentPitch = kFp8RowChannels + 8;  // bf16 of a row in shared memory: no bank conflicts
constexpr u32 kLatentWeightPitch = kLatentChunk + 8;
constexpr u32 kLatentRecord = kFp8RowChannels + 4;  // fp32 of a (head, chunk): the sums, m, the weights' sum

struct LatentMmaSpec {
    bool compressed = false;
    bool picks = false;  // else all visible compressed rows
    bool sinks = false;
    bool rotate = false;  // the output's last channels, back
    bool split = false;
    u32 tiles = 1;       // of 16 heads in a CTA: 1 or 2; 1 with split
    bool wide = false;   // latent_wide: 64 heads in a CTA
    bool raw = false;    // latent_few: queries as projected; their norm and rotation come first
    bool alone = false;  // latent_few: no two CTAs on a multiprocessor

    friend constexpr bool operator==(const LatentMmaSpec&, const LatentMmaSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const LatentMmaSpec& s) {
    visit("compressed", s.compressed);
    visit("picks", s.picks);
    visit("sinks", s.sinks);
    visit("rotate", s.rotate);
    visit("split", s.split);
    visit("tiles", s.tiles);
    visit("wide", s.wide);
    visit("raw", s.raw);
    visit("alone", s.alone);
}

// latent_wide: two warpgroups multiply on wgmma, all scores each and half of the channels of the weighted
// sum; two more load rows.
constexpr u32 kLatentWideHeads = 64;
constexpr u32 kLatentWideMathThreads = 256, kLatentWideThreads = kLatentWideMathThreads + 128;
constexpr u32 kLatentWideMathRegisters = 208, kLatentWideLoadRegisters = 88;
constexpr u32 kLatentWideStages = 2;
constexpr u32 kLatentSlabBytes = 64 * 128;  // 64 rows or heads of 64 channels, in swizzle atoms
constexpr u32 kLatentSlabs = kFp8RowChannels / 64;
struct LatentWideSmem {
    u32 queries;   // [slabs]
    u32 rows;      // [stages][slabs]
    u32 weights;   // a slab for each warpgroup
    u32 present;   // u16 [stages][4 warps]: a bit a row
    u32 barriers;  // [stages]: full, empty
    u32 bytes;
};
constexpr LatentWideSmem plan_latent_wide() {
    LatentWideSmem p{};
    p.queries = 0;
    p.rows = p.queries + kLatentSlabs * kLatentSlabBytes;
    p.weights = p.rows + kLatentWideStages * kLatentSlabs * kLatentSlabBytes;
    p.present = p.weights + 2 * kLatentSlabBytes;
    p.barriers = p.present + kLatentWideStages * 8;
    p.bytes = p.barriers + kLatentWideStages * 16;
    return p;
}

constexpr u32 kLatentAloneBytes = 120 * 1024;  // more than half of a multiprocessor's shared memory
struct LatentMmaSmem {
    u32 rows;     // bf16 [chunk, pitch]
    u32 queries;  // bf16 [heads, pitch]
    u32 scores;   // fp32 [heads, weight pitch]
    u32 weights;  // bf16 [heads, weight pitch]
    u32 stats;    // fp32 [heads, 2]: m and the sum
    u32 present;  // u32 [chunk]
    u32 bytes;
};
constexpr u32 latent_heads_of(const LatentMmaSpec& s) {
    return s.wide ? kLatentWideHeads : s.tiles * kLatentMmaHeads;
}
constexpr LatentMmaSmem plan_smem(const LatentMmaSpec& s) {
    LatentMmaSmem p{};
    if (s.wide) {
        p.bytes = plan_latent_wide().bytes;
        return p;
    }
    const u32 heads = latent_heads_of(s);
    p.rows = 0;
    p.queries = p.rows + kLatentChunk * kLatentPitch * 2;
    p.scores = p.queries + heads * kLatentPitch * 2;
    p.weights = p.scores + heads * kLatentWeightPitch * 4;
    p.stats = p.weights + heads * kLatentWeightPitch * 2;
    p.present = p.stats + heads * 8;
    p.bytes = p.present + kLatentChunk * 4;
    if (s.alone && p.bytes < kLatentAloneBytes) p.bytes = kLatentAloneBytes;
    return p;
}

struct LatentMmaParams {
    AttentionParams attention;
    float* records;  // split: [tokens, ceil(heads / 16), chunks, 16, record]
    u32 chunks;      // split: room for a token; latent_few: CTAs of a cluster
    float eps;       // of the queries' norm
};

// latent_few: chunks of a token at most, and fp32 of a head's sums in shared memory, where the rows were.
constexpr u32 kLatentFewChunks = 16;
constexpr u32 kLatentSumsPitch = kFp8RowChannels + 8;
static_assert(kLatentMmaHeads * kLatentSumsPitch * 4 <= kLatentChunk * kLatentPitch * 2);

// latent_merge: the fields of the attention whose records it adds up.
struct LatentMergeSpec {
    bool compressed = false, picks = false, sinks = false, rotate = false;

    friend constexpr bool operator==(const LatentMergeSpec&, const LatentMergeSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const LatentMergeSpec& s) {
    visit("compressed", s.compressed);
    visit("picks", s.picks);
    visit("sinks", s.sinks);
    visit("rotate", s.rotate);
}
constexpr LatentMmaSmem plan_smem(const LatentMergeSpec&) {
    return {};
}

}  // namespace deep_gemm
