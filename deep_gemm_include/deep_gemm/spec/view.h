// Rows in global memory as kernels of the model operations get them.
#pragma once

#include <deep_gemm/spec/format.h>

namespace deep_gemm {

// Element (row, inner, column) is data[row * stride + inner * inner_stride + column]; strides in elements.
struct View {
    void* data;
    u64 stride, inner_stride;
};

}  // namespace deep_gemm
