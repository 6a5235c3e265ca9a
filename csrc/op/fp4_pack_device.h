// FP4 checkpoints whose tensors are on the device -> packed weights there, at the speed of memory: the bytes,
// row scales and report of op/fp4_pack.h. Waits for the device: how much memory weights take depends on their
// scales.
#pragma once

#include "op/api.h"
#include "op/fp4_pack.h"

namespace deep_gemm::op {

// codes: bytes (int8) [experts, n, k / 2], scales: bytes [experts, n, k / group], both without gaps, codes
// from a multiple of 16 on; globals: fp32 [experts, n] in any strides, NVFP4 only. Outputs for `form` and
// `runs` (int32 for each block of 64 rows, or absent: one run each): blobs (int8) and row_scales (fp32) of
// one dimension.
struct Fp4PackArguments {
    Fp4Shape shape;
    Fp4Form form = Fp4Form::mx_e4m3;
    bool forced = true;  // not to be replaced by a smaller form
    TensorView codes = {}, scales = {}, globals = {}, runs = {};
    TensorView blobs = {}, row_scales = {};
    void* stream = nullptr;
};

// What the weights take. The outputs hold them where `form` and `runs` are those of the arguments; else a
// second call with outputs for these does.
struct Fp4Packing {
    Fp4Form form = Fp4Form::mx_e4m3;
    std::vector<u32> runs;  // empty unless some block needs more than one
    Fp4PackReport report;
};
[[nodiscard]] Fp4Packing pack_fp4_on_device(const Fp4PackArguments& arguments);

// Elements of blobs (bytes) and of row_scales for `num_runs` runs.
struct Fp4PackedSizes {
    u64 blobs, row_scales;
};
[[nodiscard]] Fp4PackedSizes fp4_packed_sizes(const Fp4Shape& shape, Fp4Form form, u64 num_runs);

}  // namespace deep_gemm::op
