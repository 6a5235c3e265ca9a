// LinearCall: arguments of linear() that passed every check, as launching wants them.
#pragma once

#include "driver/device.h"
#include "op/linear.h"

#include <vector>

namespace deep_gemm::op {

struct LinearCall {
    GemvParams params{};  // without x of activations that are still to be quantised
    Quant w = Quant::bf16;
    Activation x = Activation::bf16;
    Format y = Format::bf16;
    GemvEpilogue epilogue = GemvEpilogue::none;
    bool aligned = false, strict = false, invariant = false;
    u32 row_alignment = 16;    // that every row of Q8_0 has
    bool bulk = true;          // every matrix of Q8_0 has rows that are pieces for bulk copies
    bool scale_pairs = true;   // E4M3 scales start at even addresses
    u32 scale_alignment = 16;  // that rows of scales of every matrix have (scale_alignment_of)
    bool whole_scales = true;  // every matrix has scales that a stage of WeightGemmSpec loads as one vector
    const WeightGemmSpec* spec = nullptr;
    GemvTuning tuning = {};
    Format quantize_x = Format::none;  // not none: x has this format and becomes `x` first
    Device* device = nullptr;
    driver::Stream stream = nullptr;
    std::vector<u32> n;
    std::vector<driver::MemoryRange> memory;
    bool empty = false;
};

[[nodiscard]] LinearCall check_linear(const LinearArguments& arguments);

// x as rows of k elements; fails for anything else.
struct RowsView {
    u64 address = 0;
    u32 m = 0, k = 0;
    u64 stride_bytes = 0;
};
[[nodiscard]] RowsView rows_of(const TensorView& x, const char* name);
// Whether rows of elements of so many bytes have one in common.
[[nodiscard]] bool share_bytes(const RowsView& a, u32 a_bytes, const RowsView& b, u32 b_bytes);
// Fails where an output shares memory with an input or with another output.
void check_apart(const LinearArguments& arguments, const LinearCall& call);
[[nodiscard]] driver::MemoryRange range_of(const RowsView& rows, u32 element_bytes, bool writable);

}  // namespace deep_gemm::op
