// A mixture of experts over FP8 weights with scales for 128 x 128, on tensor cores: what it keeps on the
// device, and fused_moe() over it. Each expert's weights are read once for the rows that chose it; a row has
// the same bits in every batch.
#pragma once

#include "runtime/linear.h"

namespace deep_gemm::runtime {

struct Fp8Experts {
    // [2 experts, width, hidden], the gate and the up matrix of each; [experts, hidden, width]. fp32 scales
    Linear w13, w2;
};

// Whether the device has the kernels, and the shapes fit them.
[[nodiscard]] bool can_group_experts(const Device& device, i64 experts, i64 hidden, i64 width, i64 top_k);

// Memory for passes of up to `rows` rows.
[[nodiscard]] DeviceTensor make_fp8_experts_space(Device& device, const Fp8Experts& experts, i64 rows,
                                                  i64 top_k);

// y = add + the sum over the chosen experts, weighted after w2. x, y and add are bf16 [t, hidden]; add may be
// y.
struct Fp8ExpertsCall {
    const Fp8Experts& w;
    const DeviceTensor& space;
    TensorView x, chosen, weights, y, add;
    void* stream = nullptr;
};
void run_fp8_experts(const Fp8ExpertsCall& call);

}  // namespace deep_gemm::runtime
