// y[m, n] = x[m, k] W[n, k]^T for W in any layout of spec/quant.h, and the quantisation of x. The C++ twin of
// Python's linear(): same checks, same kernels. Up to 16 rows, and at any m with `invariant`, row i of y is
// bit-equal to the row alone, whatever n, the alignment and the other matrices are. Beyond, a faster form may be
// chosen for a matrix, as for that matrix alone, whose results agree within a rounding of bf16 (FP8 pairs beside
// fp8_128x128: those of gemm(), whose order is its plan's, within 2^-11 of the sum of magnitudes). What the other
// rows hold changes nothing in any form.
#pragma once

#include <deep_gemm/spec/gemv.h>
#include <deep_gemm/spec/weight_gemm.h>

#include "op/api.h"

#include <span>
#include <vector>

namespace deep_gemm {

// W as it lies in memory. `data` is [n, row_bytes_of(quant, k)] bytes (format int8), or [n, k] in the
// element's own format; bytes of a row are contiguous, rows may be further apart. `scales` is packed
// row-major, [ceil(n / block_rows), scale_columns_of(quant, k)]: fp32, fp16, or one byte each (int8 or its
// own format); `zeros` is as scales, bytes. Absent where the layout has none.
struct QuantMatrix {
    Quant quant = Quant::bf16;
    i64 n = 0, k = 0;
    TensorView data = {}, scales = {}, zeros = {};
    float global_scale = 1;
};

// x is [m, k] or [k], elements along K contiguous:
//   bf16 (fp16 for fp16 weights)        for all layouts but Q8_0
//   fp8_e4m3 and x_scale fp32 [m, ceil(k / 128)] or [m, ceil(k / 32)]
//   int8 and x_scale fp32 [m, 1]         for int8_row: integer products, summed exactly; sm_90a, rows at
//                                        multiples of 16 bytes
//   int8 and x_scale fp32 [m, ceil(k / 32)], rows of whole blocks: for Q8_0
//   bf16, fp16 or fp32                  for Q8_0: quantised first, in memory that the library keeps per
//   stream
// Up to kMaxGemvMatrices matrices of one layout and one k share the call, and the launch of the small-batch form; y, bias [n] and residual [m, n]
// have an entry for each (bias and residual may be empty), all of one format: bf16, fp16 or fp32. swiglu
// takes two matrices of one shape and one y. residual may be y; otherwise y shares no memory with anything.
struct LinearArguments {
    TensorView x = {}, x_scale = {};
    std::span<const QuantMatrix> w = {};
    std::span<const TensorView> y = {}, bias = {}, residual = {};
    GemvEpilogue epilogue = GemvEpilogue::none;
    float swiglu_limit = 0;
    bool strict = false;                   // every row of x by the kernel of one row
    bool invariant = false;                // every row of y with the bits it has alone, at any m
    const WeightGemmSpec* spec = nullptr;  // for tests and tuning: the large-batch form, by this kernel
    GemvTuning tuning = {};                // the same of the small-batch form
    void* stream = nullptr;
};

void linear(const LinearArguments& arguments);

// x [m, k] bf16, fp16 or fp32 -> values and scales fp32 [m, ceil(k / block)]. values: fp8_e4m3 (or int8) [m,
// k]; for q8 int8 [m, whole blocks].
void quantize_activations(const TensorView& x, Activation to, const TensorView& values,
                          const TensorView& scales, void* stream = nullptr);

// ---- W in host memory: what Python's quantize(), from_parts() and dequantize() do, to the same bytes (where NaN
// and infinity are met, a NaN's sign may differ).

// The bytes that QuantMatrix points at, once they are on a device.
struct HostMatrix {
    Quant quant = Quant::bf16;
    i64 n = 0, k = 0;
    std::vector<u8> data = {}, scales = {}, zeros = {};
    float global_scale = 1;
};

// W [n, k], packed. `nearest_exponent` of mxfp4: the nearest power of two to amax / 6, not the one above.
// Fails where a finite scale is beyond fp16.
[[nodiscard]] HostMatrix quantize_weights(std::span<const float> w, i64 n, i64 k, Quant quant,
                                          bool nearest_exponent = false);
// The data of a layout of 4 bits, of codes as checkpoints have them: [n, k / 2 rounded up], the first of two
// in the low nibble.
[[nodiscard]] std::vector<u8> pack_codes(std::span<const u8> nibbles, i64 n, i64 k, Quant quant);
// The matrix [n, k] that `w` stands for.
[[nodiscard]] std::vector<float> dequantize_weights(const HostMatrix& w);

// How often each kernel was launched by this process.
struct DispatchCount {
    Quant w;
    Activation x;
    u32 tokens;  // of a block of the kernel; 0: the FP8 GEMM's
    bool strict;
    bool large;  // the large-batch form
    u64 launches;
};
[[nodiscard]] std::vector<DispatchCount> dispatch_counts();
void reset_dispatch_counts();

}  // namespace deep_gemm
