// LinearCall: arguments of linear() that passed every check, as launching wants them.
#pragma once

#include "driver/device.h"
#include "op/linear.h"

#include <array>
#include <vector>

namespace deep_gemm::op {

constexpr u64 kRowVectorBytes = 16;

// What of a matrix decides the form that multiplies it, apart from the sizes.
struct FormFacts {
    bool vectors = true;       // rows of W start at multiples of 16 bytes
    bool whole_scales = true;  // scales that a stage of WeightGemmSpec loads as one vector
    bool plain_y = true;       // the FP8 GEMM can write its y: see plan::LinearProblem
};

struct LinearCall {
    GemvParams params{};  // without x of activations that are still to be quantised
    Quant w = Quant::bf16;
    Activation x = Activation::bf16;
    Format y = Format::bf16;
    GemvEpilogue epilogue = GemvEpilogue::none;
    bool strict = false, invariant = false;
    bool x_vectors = true;   // rows of x start at multiples of 16 bytes
    bool rows_apart = true;  // rows of x share no bytes
    bool x_plain = true;     // scales of x lie where the FP8 GEMM reads them
    std::array<FormFacts, kMaxGemvMatrices> form{};
    u32 row_alignment = 16;    // that every row of Q8_0 has
    bool bulk = true;          // bulk copies may bring the rows of every matrix of Q8_0
    bool scale_pairs = true;   // E4M3 scales start at even addresses
    u32 scale_alignment = 16;  // that rows of scales of every matrix have (scale_alignment_of)
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

// Of matrix `index` of the call; notes in the call what it leaves the kernels.
[[nodiscard]] GemvMatrix check_matrix(const QuantMatrix& w, const Device* device, u32 index,
                                      LinearCall& call);
void check_device(const TensorView& t, const Device* device, const char* name);
// A packed row-major tensor of `rows` x `columns`, or of `columns` where rows is 0.
void check_packed(const TensorView& t, i64 rows, i64 columns, const char* name);

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
