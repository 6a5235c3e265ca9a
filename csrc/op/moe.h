// The steps of a mixture of experts around its two matrix products: group, activate, combine (spec/moe.h).
// All are asynchronous, capturable, deterministic, and allocate nothing; a token's result depends on that
// token alone.
#pragma once

#include "op/api.h"

#include <deep_gemm/spec/moe.h>

#include <optional>

namespace deep_gemm {

// All int32 and packed. `slots` is at least moe_slots(T * top_k, experts, alignment).
struct MoeGroups {
    TensorView offsets;  // [experts + 1]: first slot of each expert; the last is the number of slots in use
    TensorView ends;     // [experts]: end of each expert's tokens: the psum layout, with an alignment of 128
    TensorView
        entries;      // [experts, 4], 16-byte aligned: (expert, first slot, count, 0) of experts with tokens
    TensorView head;  // [4], 16-byte aligned: (entries, 0, 0, 0): with `entries` the gathered layout
    TensorView slot_pairs;   // [slots]: t * top_k + j, or -1
    TensorView slot_tokens;  // [slots]: t, or -1
    TensorView pair_slots;   // [T * top_k]: slot, or -1
};

struct MoeGroupArguments {
    TensorView topk_ids = {};  // int32 [T, top_k]
    MoeGroups groups = {};
    u32 first_expert = 0;  // the device has experts [first_expert, first_expert + experts)
    u32 alignment = 1;
    void* stream = nullptr;
};
void moe_group(const MoeGroupArguments& arguments);

// h bf16 [slots, 2 n], gate then up -> codes fp8_e4m3 [slots, n], scales fp32 [slots, ceil(n / 128)] or [slots], one
// for each slot, packed; or codes bf16 [slots, n] and no scales; or both terms of that, fp8_e4m3 [slots, 2, n up to a
// multiple of 256], with scales [slots] (spec/two_terms.h). n is a multiple of 16.
struct MoeSwigluArguments {
    TensorView h = {}, codes = {}, scales = {};
    TensorView slot_pairs = {}, num_slots = {};  // of MoeGroups: slot_pairs [slots], the last of offsets [1]
    TensorView weights = {};     // fp32 [T * top_k] or absent: multiplies before the rounding to bf16
    std::optional<float> limit;  // gate at most limit, up within +-limit
    ScaleRule rule = ScaleRule::exact;
    void* stream = nullptr;
};
void moe_swiglu(const MoeSwigluArguments& arguments);

// d [T, n] = sum over j of (weights[t, j] *) y[pair_slots[t, j]] (+ shared[t]); y bf16 [slots, n] packed, d
// bf16 or fp32, shared bf16 [T, n], rows of both 16-byte aligned; n a multiple of 8.
struct MoeCombineArguments {
    TensorView y = {}, pair_slots = {}, weights = {}, shared = {}, d = {};
    void* stream = nullptr;
};
void moe_combine(const MoeCombineArguments& arguments);

}  // namespace deep_gemm
