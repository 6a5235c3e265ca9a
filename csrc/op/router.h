// Which experts a token goes to. The rules of op/model_ops.h hold.
#pragma once

#include "op/api.h"

#include <deep_gemm/spec/router.h>

namespace deep_gemm::op {

// Experts of each row.
//   logits   fp32 [t, e]
//   score    sqrt_softplus: s = sqrt(softplus(logit)); softmax: over the e logits
//   bias     fp32 [e] or absent: added for the choice only
//   hash     int32 [vocabulary, k] with tokens int32 [t]: the experts of a token id, in that order (no bias);
//            a token outside the table gets experts -1 and weights 0. Absent: the k largest, in descending
//            order, ties to the lower expert; NaN counts as lowest
//   experts  int32 [t, k] out; weights fp32 [t, k] out: s / (sum of the chosen s) * scale, or s * scale
//            unless `normalize`
struct RouterArguments {
    TensorView logits, bias, hash, tokens, experts, weights;
    RouterScore score = RouterScore::sqrt_softplus;
    bool normalize = true;
    float scale = 1;
    void* stream = nullptr;
};
void route(const RouterArguments& arguments);

}  // namespace deep_gemm::op
