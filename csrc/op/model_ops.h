// The operations that chain matrix products into DeepSeek-V4 and Qwen3-MoE, over plain views of device
// memory.
//
// Rules that hold for all of them
// - `t` is the number of rows (tokens) of a call. It is a host value; whatever varies from step to step
//   (positions, token ids, sequence numbers, sampling parameters) is read from device memory, so a call can
//   be captured in a CUDA graph once and replayed. No call allocates, synchronises or copies to the host. A
//   kernel is compiled the first time its formats are seen: run each call once before a capture.
// - Row i of a result depends on row i of the inputs (and the caches it names) alone, bit for bit: not on t,
// not
//   on its neighbours, not on the number of multiprocessors. No floating-point atomics.
// - "real" means fp32 or bf16, chosen per tensor; all arithmetic is fp32. The last dimension is contiguous;
//   others may have any stride. Vectors are packed.
// - positions: int32 [t], the absolute position of a row in its sequence, from 0. A negative position marks
// an
//   idle row: nothing is read or written for it, except where an operation says what it writes.
// - sequences: int32 [t] or absent: which entry of a cache's first dimension a row belongs to; absent: entry
// 0.
//   Rows of one sequence have ascending positions. Values outside the cache make the row idle.
// - Errors: Error(value) for shapes, strides, ranges; Error(type) for formats; both with got, expected,
// remedy,
//   before anything is launched. t = 0 does nothing. All calls are safe to use from several threads.
// - `stream` is a CUstream; null: the default stream. The device is the tensors'.
#pragma once

#include "op/api.h"

#include <deep_gemm/spec/quantize.h>
#include <deep_gemm/spec/latent.h>
#include <deep_gemm/spec/router.h>

#include <span>

namespace deep_gemm::op {

// Weights that a launch brings to L2 for later ones while it has little to read itself; packed, of any shape.
// A hint: nothing depends on it. No launch may write them.
using AheadViews = std::span<const TensorView>;

// ---- Projections (op/project.cpp). To quantise x: deep_gemm::quantize (op/quantize.h), recipe fp8_128.

// y = add + x w^T. With groups: y[:, g] = add[:, g] + x[:, g] w[g]^T.
//   x        [t, k] or [t, g, k]: real; or fp8_e4m3 with x_scale fp32 [t, k / 128] or [t, g, k / 128]
//   w        [n, k] or [g, n, k]:
//              fp32, bf16   any k that is a multiple of 4; no w_scale
//              fp8_e4m3     k multiple of 128, n any; w_scale [ceil(n / 128), k / 128] (with groups
//                           [g, ...]), fp32 or fp8_ue8m0
//              fp4_e2m1     as int8 [n, k / 2], the bytes of checkpoints, k multiple of 128; w_scale [n, k /
//              32]
//                           fp8_ue8m0
//   y, add   real [t, n] or [t, g, n]; add may be absent or y itself
// w and w_scale are read before preceding launches of the stream have finished: no launch may write them.
// fp8 x goes with fp8 or fp4 w only (the products of a scale's columns are summed, then scaled). Rows of x
// and w start at multiples of four elements.
struct ProjectArguments {
    TensorView x, x_scale, w, w_scale, y, add;
    void* stream = nullptr;
};
void project(const ProjectArguments& arguments);

// The same for several matrices that meet the same x [t, k]: one launch for two kinds (formats of w and y) of
// few rows, where tensor cores serve them (bf16 or fp8 x with bf16 or fp8 w, k a multiple of 128), else one
// each.
//   x, x_scale  what matrices with a w_scale meet
//   wide_x      what the others meet; absent: x
struct ProjectMatrix {
    TensorView w, w_scale, y;
};
struct ProjectManyArguments {
    TensorView x, x_scale, wide_x;
    std::span<const ProjectMatrix> matrices;
    void* stream = nullptr;
};
void project_many(const ProjectManyArguments& arguments);

// ---- Experts (op/expert.cpp, op/router.cpp)

// mid[:, j] = silu(min(x w1[e]^T, limit)) * clamp(x w3[e]^T, -limit, limit) * weights[:, j], e = experts[:,
// j].
//   x         [t, d] as in project, x_scale too
//   w1, w3    [e, i, d] (gate, up), as in project with groups; scales w1_scale, w3_scale. One buffer [e, 2,
//   i, d]
//             is two views with stride 2 i d.
//   experts   int32 [t, j]; an id outside [0, e) leaves zeros. Absent (the shared expert): j = 1, expert 0
//   weights   fp32 [t, j] or absent (1)
//   mid       real [t, j, i]
//   limit     0: no clamp (Qwen3)
struct ExpertUpArguments {
    TensorView x, x_scale, w1, w1_scale, w3, w3_scale, experts, weights, mid;
    float limit = 0;
    void* stream = nullptr;
};
void expert_up(const ExpertUpArguments& arguments);

// y = add + sum over j, in order, of mid[:, j] w2[experts[:, j]]^T. Ids outside [0, e) add nothing.
//   mid [t, j, i] real, or fp8_e4m3 with mid_scale fp32 [t, j, i / 128]; w2 [e, n, i] and w2_scale as in
//   linear weights fp32 [t, j] or absent: applied to each expert's result (what was not applied before w2) y,
//   add real [t, n]; add may be absent or y itself
struct ExpertDownArguments {
    TensorView mid, mid_scale, w2, w2_scale, experts, weights, y, add;
    void* stream = nullptr;
};
void expert_down(const ExpertDownArguments& arguments);

// Experts of each row.
//   logits   fp32 [t, e]
//   score    sqrt_softplus: s = sqrt(softplus(logit)); softmax: over the e logits
//   bias     fp32 [e] or absent: added for the choice only
//   hash     int32 [vocabulary, k] with tokens int32 [t]: the experts of a token id, in that order (no bias);
//   a
//            token outside the table gets experts -1 and weights 0. Absent: the k largest, in descending
//            order, ties to the lower expert; NaN counts as lowest
//   experts  int32 [t, k] out; weights fp32 [t, k] out: s / (sum of the chosen s) * scale, or s * scale
//   unless
//            `normalize`
struct RouterArguments {
    TensorView logits, bias, hash, tokens, experts, weights;
    RouterScore score = RouterScore::sqrt_softplus;
    bool normalize = true;
    float scale = 1;
    void* stream = nullptr;
};
void route(const RouterArguments& arguments);

// ---- Embedding and norms (op/embed.cpp, op/norm.cpp)

// Every stream of x becomes the token's row: tokens int32 [t], table real [v, d], x real [t, d] or [t, h, d].
// A token outside [0, v) gives zeros.
struct EmbedArguments {
    TensorView tokens, table, x;
    void* stream = nullptr;
};
void embed(const EmbedArguments& arguments);

// x[:, i] = value, or x[:, i] + value if `accumulate`: value real [t, d], x real [t, h, d].
struct ExpandArguments {
    TensorView value, x;
    bool accumulate = false;
    void* stream = nullptr;
};
void expand_streams(const ExpandArguments& arguments);

// A result also in a narrow form, as quantize() makes it of the stored (bf16) one; packed. Absent: not
// wanted.
//   fp8_128   codes fp8_e4m3 [t, d], scales fp32 [t, d / 128]
//   mxfp4     codes int8 [t, d / 2], scales int8 [t, d / 32]
//   nvfp4     codes int8 [t, d / 2], scales int8 [t, d / 16], global_scale fp32 [t]: a token's own
// hc_pre() knows ScaleRule::up alone where scales are powers of two; the rule of nvfp4 does not matter.
struct NarrowCopy {
    TensorView codes, scales;
    ScaleRule rule = ScaleRule::up;
    Recipe recipe = Recipe::fp8_128;
    TensorView global_scale = {};
    [[nodiscard]] bool present() const { return codes.present(); }
};

// y = x / sqrt(mean(x^2) + eps) * weight over the last dimension: x, y real [t, d] or [t, r, d] (y may be x);
// weight real [d] or absent. narrow: of rows [t, d] of bf16, d a multiple of 128.
struct RmsNormArguments {
    TensorView x, weight, y;
    float eps = 1e-6f;
    NarrowCopy narrow = {};
    void* stream = nullptr;
};
void rms_norm(const RmsNormArguments& arguments);

// ---- Hyper-connections (op/hyper_connection.cpp); h streams, h = 2 or 4

// From streams to a sublayer's input and the coefficients that put its output back.
//   x       real [t, h, d], d multiple of 4
//   fn      fp32 [(2 + h) h, h d]; base fp32 [(2 + h) h]; scale fp32 [3]
//   weight  real [d] or absent: RMS norm of the input folded in; absent: no norm at all
//   y       real [t, d] out; post fp32 [t, h] out; comb fp32 [t, h, h] out (source stream first)
//   add     real [t, d] or absent: the output of the sublayer before, which x takes in first, in place, as
//           hc_post does with what post and comb hold at the start
//   narrow  of bf16 y, d a multiple of 1024
struct HcPreArguments {
    TensorView x, fn, base, scale, weight, y, post, comb, add = {};
    NarrowCopy narrow = {};
    u32 sinkhorn_iterations = 20;
    float hc_eps = 1e-6f, rms_eps = 1e-6f;
    AheadViews ahead = {};
    void* stream = nullptr;
};
void hc_pre(const HcPreArguments& arguments);

// out[:, b] = post[:, b] y + sum over a of comb[:, a, b] x[:, a]. y real [t, d]; x, out real [t, h, d], out
// may be x.
struct HcPostArguments {
    TensorView x, y, post, comb, out;
    void* stream = nullptr;
};
void hc_post(const HcPostArguments& arguments);

// The streams' weighted sum before the output head, and the RMS norm that follows it.
//   fn fp32 [h, h d]; base fp32 [h]; scale fp32 [1]; weight real [d] or absent (no norm); y real [t, d]
struct HcHeadArguments {
    TensorView x, fn, base, scale, weight, y;
    float hc_eps = 1e-6f, rms_eps = 1e-6f;
    void* stream = nullptr;
};
void hc_head(const HcHeadArguments& arguments);

// ---- Rotary positions and cache rows (op/rope.cpp)

// Frequencies of a rotary embedding over `dims` channels: fp32 [dims / 2, 2], each the turns per position as
// the sum of two floats, so that angles stay exact to 2^-24 turns at any position below 2^24. Copy them to
// the device. yarn_factor = 0: no YaRN.
struct RopeFrequencies {
    u32 dims = 64;
    double theta = 10000;
    double yarn_factor = 0, yarn_original_context = 65536, yarn_beta_fast = 32, yarn_beta_slow = 1;
};
[[nodiscard]] std::vector<float> rope_frequencies(const RopeFrequencies& arguments);

// RMS norm of each head, then the rotation of its last `dims` channels. Idle rows: y is left as it is.
//   x, y         real [t, r, d] (y may be x); d a multiple of 4, at most 512; weight real [d] or absent;
//                frequencies fp32 [dims / 2, 2]
//   norm         false: rotate only
//   inverse      rotate back
//   pairs        halves: all d = dims channels, 32, 64 or 128
struct RopeArguments {
    TensorView x, weight, frequencies, positions, y;
    bool norm = false, inverse = false;
    RopePairs pairs = RopePairs::interleaved;
    float eps = 1e-6f;
    void* stream = nullptr;
};
void rope(const RopeArguments& arguments);

// Rows of a latent cache (keys and values in one vector of d channels), of `s` sequences.
//   fp32, bf16   data [s, rows, d]
//   FP8          data int8 [s, pages, page_bytes], d = 512 = 448 + 64: in a page first page_rows rows of 576
//                bytes (448 E4M3, then 64 bf16), then page_rows rows of 8 bytes (7 UE8M0 scales, one for 64
//                channels, and a 0). page_bytes = 584 page_rows rounded up to 576; see latent_page_bytes().
//   FP4          of the indexer alone (compressor_update, index_scores): data int8 [s, pages, page_bytes], d
//   = 128:
//                in a page first page_rows rows of 64 bytes (E2M1, two a byte), then page_rows rows of 4
//                bytes (UE8M0 scales, one for 32 channels). page_bytes = 68 page_rows rounded up to 64; see
//                index_page_bytes().
//   with a table   int32 [s, n]: page i of sequence s is page table[s, i] of data, which every row that is
//                written or visible must have. Data is pages of all sequences: fp32, bf16 [pages, page_rows,
//                d]; FP8, FP4 [pages, page_bytes]. A sequence has n page_rows rows
struct LatentRows {
    TensorView data;
    u32 page_rows = 0;      // FP8, FP4, or with a table
    TensorView table = {};  // or absent
    [[nodiscard]] bool present() const { return data.present(); }
};
[[nodiscard]] constexpr u64 latent_page_bytes(u32 page_rows) {
    return align_up(u64{584} * page_rows, 576);
}
[[nodiscard]] constexpr u64 index_page_bytes(u32 page_rows) {
    return align_up(u64{68} * page_rows, 64);
}

// The key-value row of a token: RMS norm with weight, rotation of the last channels, rounding, write to row
// position % (number of rows) of its sequence.
//   x real [t, d]; weight real [d]; frequencies fp32 [dims / 2, 2]
//   fp8_round_trip  fp32 and bf16 rows: pass all channels but the rotated ones through the FP8 row format
// A ring of n rows can hold a call's t new rows and still show the window to the first: n >= window + t - 1.
struct LatentWriteArguments {
    TensorView x, weight, frequencies, positions, sequences;
    LatentRows rows;
    bool fp8_round_trip = false;
    float eps = 1e-6f;
    void* stream = nullptr;
};
void latent_write(const LatentWriteArguments& arguments);

// Plain rows (Qwen3's keys or values): rows[sequence, position % n] = x. x real [t, r, d]; rows real [s, n,
// r, d]; with a table (int32, see LatentRows) pages [pages, n, r, d] of all sequences.
struct CacheWriteArguments {
    TensorView x, positions, sequences, rows, table = {};
    void* stream = nullptr;
};
void cache_write(const CacheWriteArguments& arguments);

// ---- Compressor (op/compressor.cpp)

// Pushes tokens, in order of rows, into the running softmax pool of their sequence (positions are consecutive
// where a state of one sequence gets two windows or more); the token that closes
// window w (position w ratio + ratio - 1) writes row w: pooled, RMS norm, rotated at position w ratio,
// rounded.
//   kv, gate   fp32 [t, c dim]: projections of the normed input; c = 2 with `overlap` else 1; dim 128 or 512
//   ape        fp32 [ratio, c dim]; weight real [dim]; frequencies fp32 [dims / 2, 2]
//   state      fp32 [s, 3 or (overlap) 9, dim]: (max, sum, weighted sum) of the open window; with overlap: of
//   the
//              closed window's first half, the open window's first half, its second half. It starts itself at
//              position 0 whatever it held, with zeros for a window that is not there.
//   journal    fp32 [t, 3 or 9, dim] or absent: the state after each row, for compressor_restore
//   rows       the compressed rows; beyond their number nothing is written
//   finish     what happens to a row last: nothing; FP8 round trip of the unrotated channels (fp32 or bf16
//   rows);
//              Hadamard transform and FP4 round trip (indexer, dim 128). FP8 rows round by themselves; FP4
//              rows take hadamard_fp4.
struct CompressorArguments {
    TensorView kv, gate, ape, weight, frequencies, positions, sequences, state, journal;
    LatentRows rows;
    u32 ratio = 4;
    bool overlap = true;
    RowFinish finish = RowFinish::none;
    float eps = 1e-6f;
    void* stream = nullptr;
};
void compressor_update(const CompressorArguments& arguments);

// state[sequence] = journal[row]: takes back the tokens after `row` of the call that wrote the journal. row
// int32 [1]; negative: nothing. Compressed rows need no undo: rows beyond the position are invisible and will
// be rewritten.
struct CompressorRestoreArguments {
    TensorView journal, row, state;
    u32 sequence = 0;
    void* stream = nullptr;
};
void compressor_restore(const CompressorRestoreArguments& arguments);

// ---- Lightning indexer (op/indexer.cpp)

// (op/rope.cpp) Queries: rotation of the last channels at the row's position, then `finish` (none, hadamard,
// hadamard_fp4).
//   x, y real [t, r, d] (y may be x); d = 32, 64 or 128 for the transforms
struct IndexQueryArguments {
    TensorView x, frequencies, positions, y;
    RowFinish finish = RowFinish::hadamard_fp4;
    void* stream = nullptr;
};
void index_query(const IndexQueryArguments& arguments);

// scores[:, w] = scale * sum over r, in order, of weights[:, r] relu(query[:, r] . rows[w]) for
// w < (position + 1) / ratio; other entries are left as they are.
//   query real [t, r, 128]; weights fp32 [t, r]; rows real or FP4, n of a sequence; scores fp32 [t, n]
struct IndexScoreArguments {
    TensorView query, weights;
    LatentRows rows;
    TensorView positions, sequences, scores;
    u32 ratio = 4;
    u32 only_above =
        0;  // rows that see at most so many leave their scores as they are: top_k needs none then
    float scale = 1;
    void* stream = nullptr;
};
void index_scores(const IndexScoreArguments& arguments);

// The k largest of the first (position + 1) / ratio scores of each row, exactly: ties to the lower index, NaN
// counts as lowest. picks int32 [t, k]: ascending indices, then -1. Idle rows: all -1.
struct TopKArguments {
    TensorView scores, positions, picks;
    u32 ratio = 4;
    void* stream = nullptr;
};
void top_k(const TopKArguments& arguments);

// ---- Between the matrix products of attention (op/attention_rows.cpp): several of the operations above in
// one launch, with their results. They must not meet: none reads or writes what another one writes.

// What needs the projections of the block's input: the norm of the low-rank query, the token's cache row, the
// compressors.
struct AttentionRowsArguments {
    RmsNormArguments norm;
    LatentWriteArguments write;
    const CompressorArguments* main = nullptr;   // or absent
    const CompressorArguments* index = nullptr;  // or absent
    void* stream = nullptr;                      // of all; theirs do not count
};
void attention_rows(const AttentionRowsArguments& arguments);

// What needs the queries: their norm and rotation, and the indexer's.
struct AttentionHeadsArguments {
    RopeArguments query;
    const IndexQueryArguments* index = nullptr;  // or absent
    void* stream = nullptr;
};
void attention_heads(const AttentionHeadsArguments& arguments);

// What comes before gqa_attention(): rope() of the query, and of the keys, which then go to their cache, and
// the values to theirs. `key` and `keys` have the same x; what becomes of it is undefined.
struct GqaRowsArguments {
    RopeArguments query, key;
    CacheWriteArguments keys, values;
    void* stream = nullptr;  // of all; theirs do not count
};
void gqa_rows(const GqaRowsArguments& arguments);

// ---- Attention (op/attention.cpp, op/gqa.cpp)

// Latent attention with sinks. The query at position p sees the window rows of positions max(0, p - window +
// 1) to p (at position % ring rows), then compressed rows: those in picks, or all below (p + 1) / ratio. One
// softmax over all of them and the head's sink, in fp32; fixed tile order from the oldest row on.
//   q, out       real [t, r, d], d = 512; out may be q. Idle rows: zeros
//   ring         window rows; compressed rows may be absent (SWA layers)
//   picks        int32 [t, k] or absent; entries outside [0, (p + 1) / ratio) are skipped
//   sinks        fp32 [r] or absent (no sink); +-infinity as in the formula
//   frequencies  fp32 [dims / 2, 2] or absent: rotates the last channels of out back at the query's position
struct LatentAttentionArguments {
    TensorView q;
    LatentRows ring, compressed;
    TensorView picks, sinks, frequencies, positions, sequences, out;
    // fp32, latent_records_shape(): memory for what is between two kernels, which serve few tokens faster.
    // Used where q and out are bf16, d = 512 and all rows FP8; the results do not depend on it.
    TensorView records = {};
    u32 window = 128, ratio = 0;
    float scale = 0;  // of q . k; 0: d^-0.5
    void* stream = nullptr;
};
// Of `tokens` that see at most `rows` rows each.
[[nodiscard]] std::vector<i64> latent_records_shape(i64 tokens, i64 heads, i64 rows);
void latent_attention(const LatentAttentionArguments& arguments);

// Causal grouped-query attention: the query at position p sees rows 0 to p of its sequence.
//   q, out  real [t, r, d], d = 32, 64 or 128; keys, values real [s, n, kv heads, d], one format; r a
//   multiple of
//           kv heads. Idle rows: zeros
//   table   int32 [s, m] or absent: keys and values are pages [pages, n, kv heads, d] of all sequences, page
//   i
//           of a sequence is page table[s, i]; n a multiple of 128
//   records fp32 [t, r, ceil(rows / 128), d + 4] for a sequence's n or m n rows: memory for what is between
//           the two kernels
//   codes, scales  fp8_e4m3 [t, r, d], fp32 [t, r], or absent: what quantize() makes of out [t, r d] of bf16,
//           d = 128, with ScaleRule::exact
struct GqaArguments {
    TensorView q, keys, values, positions, sequences, records, out, table = {};
    TensorView codes = {}, scales = {};
    float scale = 0;  // 0: d^-0.5
    void* stream = nullptr;
};
[[nodiscard]] std::vector<i64> gqa_records_shape(i64 tokens, i64 heads, i64 rows, i64 d);
void gqa_attention(const GqaArguments& arguments);

// ---- Tokens (op/sample.cpp)

// tokens int32 [t]: the largest of logits fp32 [t, v], ties to the lower id; -1 if a row holds a NaN.
struct ArgmaxArguments {
    TensorView logits, tokens;
    void* stream = nullptr;
};
void argmax(const ArgmaxArguments& arguments);

// Truncated, renormalised probabilities. All parameters are device memory, one value a row:
//   temperature fp32 [t]   0: all on the argmax
//   top_k int32 [t]        the k largest; 0: all
//   top_p fp32 [t]         the fewest largest whose share of the whole softmax reaches top_p; 1: all
//   min_p fp32 [t]         those at least min_p times the largest; 0: all
// Ties at a limit go to lower ids. logits fp32 [t, v]; probabilities fp32 [t, v] (not the logits). Entries
// below 2^-44 of the largest become 0. A row with a NaN becomes all NaN.
struct DistributionArguments {
    TensorView logits, temperature, top_k, top_p, min_p, probabilities;
    void* stream = nullptr;
};
void sample_distribution(const DistributionArguments& arguments);

// tokens[i] drawn from probabilities fp32 [t, v] with the random number of (seed, positions[i], purpose):
// Philox 4x32-10, so the draw depends on nothing else. seed int32 [2]; -1 for rows without a positive
// probability or with a NaN, and for idle rows.
struct DrawArguments {
    TensorView probabilities, seed, positions, tokens;
    u32 purpose =
        0;  // streams of random numbers that share a seed: 0 plain draws, 1 acceptance, 2 residuals ...
    void* stream = nullptr;
};
void sample_draw(const DrawArguments& arguments);

// One speculative window of n rows: rows[0] is the committed token, rows 1 to n - 1 are drafts. Row i of the
// target says what follows row i.
//   tokens       int32 [n]: the window; a negative draft ends it
//   targets      greedy: int32 [n], the argmax of each row; draft i is accepted iff targets[i - 1] equals it
//   p, q         sampled: fp32 [n, v] target and [n - 1, v] draft distributions; draft i is accepted iff
//                u q(x) <= p(x), u the random number of (seed, position of row i, purpose 1). After a
//                rejection the next token is drawn from max(0, p - q), or p if that is empty; after the last
//                accepted row from p (random number of the same position, purpose 2 and 0)
//   positions    int32 [n]
//   record       int32 [4] out: number of accepted drafts c, the next token (follows row c), its position,
//                1 if a draft was rejected
// Greedy: targets, not p, q, seed. Sampled: p, q, seed, not targets.
struct AcceptArguments {
    TensorView tokens, targets, p, q, seed, positions, record;
    void* stream = nullptr;
};
void accept_drafts(const AcceptArguments& arguments);

// positions[i] = base[0] + offset + i for i < t: int32 [1] and [t]; -1 for i >= count[0] if count is given.
struct PositionsArguments {
    TensorView base, count, positions;
    i32 offset = 0;
    void* stream = nullptr;
};
void fill_positions(const PositionsArguments& arguments);

}  // namespace deep_gemm::op
