// The values of stored tensors, converted on the host.
#pragma once

#include "runtime/checkpoint.h"

#include <deep_gemm/spec/format.h>

namespace deep_gemm::runtime {

// Exact: every format here but MXFP4 is a subset of fp32.
[[nodiscard]] std::vector<float> to_fp32(const Tensor& tensor);

// To nearest, ties to even; NaN stays NaN.
[[nodiscard]] std::vector<u16> to_bf16(std::span<const float> values);

// The device format that has a stored format's very bytes; none for F16 and GGUF's blocks.
[[nodiscard]] Format format_of(Storage storage);

// Blocks of GGUF's MXFP4, [n, k], as the E2M1 pairs [n, k / 2] and UE8M0 scales [n, k / 32] of safetensors:
// a block is its scale and 16 bytes, byte i with elements i (low) and i + 16 (high).
struct SplitMxfp4 {
    explicit SplitMxfp4(std::span<const std::byte> blocks);
    std::vector<std::byte> codes, scales;
};

}  // namespace deep_gemm::runtime
