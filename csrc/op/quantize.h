// Quantisation of activations on the device. Asynchronous, capturable, allocates nothing; row i of a batch
// gives the bits it gives alone. The formats and their arithmetic: spec/quantize.h, docs/formats.md.
#pragma once

#include "op/api.h"

#include <deep_gemm/spec/quantize.h>

namespace deep_gemm {

// x: bf16 or fp32 [rows of x, k], 16-byte aligned rows; k a multiple of 16 (mxfp4: 32).
// codes: fp8_e4m3 [rows, k], or int8 [rows, k / 2] (bytes), rows 8-byte aligned.
// scales: fp32 [rows, ceil(k / 128)] in any strides (fp8_row: [rows]); int8 [rows, k / 32] or [rows, k / 16].
// global_scale (nvfp4): fp32 [rows], written; with `given`, fp32 [1], read.
// source_rows, num_rows (optional, together): int32 [rows] and [1]; row r < num_rows comes from row
// source_rows[r] / divisor of x, and is left alone where that is negative.
struct QuantizeArguments {
    Recipe recipe = Recipe::fp8_128;
    ScaleRule rule = ScaleRule::exact;
    TensorView x = {}, codes = {}, scales = {}, global_scale = {}, source_rows = {}, num_rows = {};
    bool given = false;
    u32 divisor = 1;
    void* stream = nullptr;
};

void quantize(const QuantizeArguments& arguments);

}  // namespace deep_gemm
