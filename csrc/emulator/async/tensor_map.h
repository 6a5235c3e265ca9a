// The emulated GPU's own bits for the opaque 128-byte TensorMap: a magic, a checksum and the packed
// description. Kernels copy these bytes around; a map that was damaged, never encoded, or encoded by libcuda
// is refused.
//
//   word 0      magic (high 32 bits) and FNV-1a checksum of words 1..15 (low 32)
//   word 1      global address
//   word 2      format, rank, swizzle, box - 1 of the five dimensions: one byte each
//   word 3..5   dims - 1, two 32-bit values per word
//   word 6..9   strides in bytes
#pragma once

#include <deep_gemm/spec/tensor_map.h>

namespace deep_gemm::emulator {

struct TensorMapView {
    TensorMapDesc desc;
    u32 inner_box_bytes = 0;  // one row of the box; also the distance of rows in shared memory
    u32 num_box_rows = 0;     // product of box[1..]
    [[nodiscard]] u32 box_bytes() const { return inner_box_bytes * num_box_rows; }
};

// Pairs of FP4 travel as bytes, as on CUDA: coordinates along dimension 0 count bytes, and the view says
// int8. Throws Error(ErrorKind::value) for what cuTensorMapEncodeTiled rejects (driver/tensor_map_check.h).
[[nodiscard]] TensorMap encode_tensor_map(const TensorMapDesc& desc);
// Throws Error(ErrorKind::emulator) when the bytes are not a map of this emulator.
[[nodiscard]] TensorMapView decode_tensor_map(const TensorMap& map);

}  // namespace deep_gemm::emulator
