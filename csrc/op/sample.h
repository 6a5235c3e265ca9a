// From logits to tokens, and the acceptance of drafts. The rules of op/model_ops.h hold.
#pragma once

#include "op/api.h"

namespace deep_gemm::op {

inline constexpr u32 kMaxVocabulary = 1u << 19;  // few enough for exact sums

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
    // Streams of random numbers that share a seed: 0 plain draws, 1 acceptance, 2 residuals ...
    u32 purpose = 0;
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
