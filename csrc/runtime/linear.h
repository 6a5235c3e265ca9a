// Matrices as they are stored, the FP8 form of the rows that meet them, and the products that blocks of all
// architectures are made of: linear layers and a mixture of experts.
#pragma once

#include "op/model_ops.h"
#include "runtime/device_tensor.h"

#include <deep_gemm/spec/quantize.h>

namespace deep_gemm::runtime {

struct Linear {
    DeviceTensor data;   // [n, k] or [groups, n, k]; FP4 as int8 [.., k / 2]
    DeviceTensor scale;  // absent for fp32 and bf16

    [[nodiscard]] bool low_precision() const { return scale.present(); }  // takes FP8 activations
};

struct ExpertWeights {
    Linear w1, w2, w3;  // [experts, n, k]: gate, down, up
};

// Memory for rows in FP8: codes [rows, ..] and scales for groups of 128 columns. Absent: rows are not
// rounded.
struct Fp8Rows {
    DeviceTensor codes, scales;

    Fp8Rows() = default;
    Fp8Rows(Device& device, std::vector<i64> shape);
    [[nodiscard]] bool present() const { return codes.present(); }
};

// What a linear layer's input looks like: itself, or its FP8 form.
struct Input {
    TensorView x, scale;
};
// Where an operation that makes x [t, d] leaves its FP8 form as well, and that form; nothing where absent.
[[nodiscard]] op::NarrowCopy fp8_copy_of(const Fp8Rows& rows, i64 t, ScaleRule rule = ScaleRule::up);
[[nodiscard]] Input input_of(const TensorView& x, const Fp8Rows& rows);
// Rounds the rows of x [t, ..] into the first t rows of `into`; gives x itself where that is absent.
[[nodiscard]] Input to_fp8(const TensorView& x, const Fp8Rows& into, ScaleRule rule, void* stream);

// y = add + x w^T; `low` is x's FP8 form, for matrices that take it.
void project(const Linear& w, const TensorView& x, const Input& low, const TensorView& y, void* stream,
             const TensorView& add = {});

// The same for several matrices that meet one x: few launches.
struct Projection {
    const Linear* w;
    TensorView y;
};
[[nodiscard]] op::ProjectMatrix matrix_of(const Projection& projection);
void project_many(std::initializer_list<Projection> projections, const TensorView& x, const Input& low,
                  void* stream);

// Where the weights of the chosen experts multiply: before the second matrix, or its result.
enum class WeighExperts : u8 { before_down, after_down };

// y = add + the sum over the chosen experts of w2 (silu(w1 x) * (w3 x)); `chosen` int32 and `weights` fp32
// [t, j], both absent for a single expert. mid [rows, j, i] and mid_fp8 are memory for what is between.
struct ExpertsCall {
    const ExpertWeights& w;
    TensorView x;
    Input low;
    TensorView chosen, weights;
    const DeviceTensor& mid;
    const Fp8Rows& mid_fp8;
    TensorView y, add;
    float limit = 0;  // of SwiGLU; 0: none
    WeighExperts weigh = WeighExperts::before_down;
    ScaleRule rule = ScaleRule::exact;
    void* stream = nullptr;
};
void run_experts(const ExpertsCall& call);

}  // namespace deep_gemm::runtime
