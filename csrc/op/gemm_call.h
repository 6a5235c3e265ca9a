// GemmCall: arguments that passed every check, in the form that planning and launching want. Extents are
// plain numbers, strides of one-element dimensions are replaced by legal ones, nothing is optional any more.
#pragma once

#include "op/api.h"
#include "plan/gemm.h"

namespace deep_gemm::op {

// One operand as [groups, rows, columns]; strides in elements, columns are contiguous for matrices, free for
// scales. A matrix that is contiguous along M or N stands here transposed: its rows are along K.
struct Operand {
    u64 address = 0;
    u64 groups = 1, rows = 0, columns = 0;
    u64 stride_group = 0, stride_row = 0, stride_column = 1;
    [[nodiscard]] u64 elements_spanned() const {
        if (groups == 0 || rows == 0 || columns == 0) return 0;
        return (groups - 1) * stride_group + (rows - 1) * stride_row + (columns - 1) * stride_column + 1;
    }
};

struct GemmCall {
    plan::GemmProblem problem;
    Operand a, scale_a, b, scale_b, d;
    u64 c = 0;             // address; 0: no C
    u64 group_layout = 0;  // address; 0: dense
    u64 group_layout_length = 0;
    Device* device = nullptr;
    void* stream = nullptr;
    const GemmSpec* spec = nullptr;
    bool empty = false;        // no element of D: nothing to do
    bool no_products = false;  // k = 0 or no matrix in b: D is C, or zeros
};

// The last three dimensions as groups, rows, columns. A stride along one element means nothing: it becomes 0.
[[nodiscard]] Operand operand_of(const TensorView& t);

[[nodiscard]] inline u64 bytes_spanned(const Operand& o, Format format) {
    return o.elements_spanned() * bits_of(format) / 8;
}

// Throws Error (value, type) with got, expected, remedy. Costs tens of nanoseconds when all is well.
[[nodiscard]] GemmCall check_gemm(const GemmArguments& arguments);

}  // namespace deep_gemm::op
