// A mixture of experts over FP4 weights packed for Hopper's tensor cores (spec/fp4_weights.h): what it keeps
// on the device, the memory it works in, and the launches. Each expert's weights are read once for all rows
// that chose it; a row has the same bits in every batch (spec/fp4_gemm.h).
#pragma once

#include "op/fp4_gemm.h"
#include "op/moe.h"
#include "op/moe_few.h"
#include "runtime/linear.h"

namespace deep_gemm::runtime {

// Matrices of all experts, [experts, n, k].
struct PackedMatrix {
    op::Fp4Shape shape;
    Fp4Form form = Fp4Form::mx_e4m3;
    DeviceTensor blobs, row_scales, runs;  // int8 [runs, bytes of one], fp32, int32 or absent

    [[nodiscard]] op::Fp4WeightViews views() const {
        return {.blobs = blobs.view(),
                .row_scales = row_scales.view(),
                .runs = runs.view(),
                .shape = shape,
                .form = form};
    }
};

struct PackedExperts {
    PackedMatrix w13, w2;  // gate rows, then up rows; down
};

// Whether the device has the kernels, and the shapes fit them.
[[nodiscard]] bool can_pack_experts(const Device& device, i64 experts, i64 hidden, i64 width, i64 top_k);

// Memory for passes of up to `rows` rows.
struct ExpertsSpace {
    ExpertsSpace() = default;
    ExpertsSpace(Device& device, const PackedExperts& experts, i64 rows, i64 top_k);

    [[nodiscard]] bool present() const { return head.present(); }

    DeviceTensor offsets, ends, entries, head, slot_pairs, slot_tokens, pair_slots;
    DeviceTensor up, codes, scales, down;  // by slot: [slots, 2 width], FP8 [slots, width], [slots, hidden]
};

// y = add + the sum over the chosen experts, as ExpertsCall; `low` is FP8 rows [t, hidden], `add` bf16 or
// absent.
struct PackedExpertsCall {
    const PackedExperts& w;
    const ExpertsSpace& space;
    Input low;
    TensorView chosen, weights;
    TensorView y, add;
    float limit = 0;
    WeighExperts weigh = WeighExperts::before_down;
    ScaleRule rule = ScaleRule::exact;
    void* stream = nullptr;
};
// Few rows need no grouping: op::moe_few_up() and op::moe_few_down() of these arguments.
[[nodiscard]] bool are_few(const PackedExpertsCall& call);
[[nodiscard]] op::MoeFewArguments few_of(const PackedExpertsCall& call);
// Which slots the chosen experts' rows have: what must have run before run_packed_experts().
[[nodiscard]] MoeGroupArguments grouping_of(const PackedExpertsCall& call);
void run_packed_experts(const PackedExpertsCall& call);

// A single FP8 expert that every row goes through (the shared one): its memory, and y = w2 (silu(w1 x) * (w3
// x)), in three parts that go with other operations: the first product with another projection of the same
// rows, `beside` of x.
struct SharedSpace {
    SharedSpace() = default;
    SharedSpace(Device& device, i64 rows, i64 width);

    [[nodiscard]] bool present() const { return up.present(); }

    DeviceTensor up, codes, scales;  // [rows, 2 width], FP8 [rows, width]
    DeviceTensor slots, counts;      // int32: i at index i, of rows and of numbers of rows
};
struct SharedExpertCall {
    const ExpertWeights& w;
    const SharedSpace& space;
    Input low;
    TensorView y;
    float limit = 0;
    ScaleRule rule = ScaleRule::exact;
    void* stream = nullptr;
};
void shared_expert_up(const SharedExpertCall& call, const Projection& beside, const TensorView& x);
[[nodiscard]] MoeSwigluArguments shared_activation(const SharedExpertCall& call);
[[nodiscard]] op::ProjectArguments shared_expert_down(const SharedExpertCall& call);

}  // namespace deep_gemm::runtime
