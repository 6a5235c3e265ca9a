// The 64-bit shared-memory matrix descriptor of wgmma, and which bytes it names.
//
//   bits 0..13 start address >> 4    16..29 leading byte offset >> 4 (LBO)    32..45 stride byte offset >> 4
//   (SBO) bits 49..51 base offset (must be 0 here)    62..63 swizzle: 0 none, 1 128 B, 2 64 B, 3 32 B
//
// Byte offset of an element from the start address, before the swizzle of the absolute address:
//   K-major, swizzle s     (r / 8) * SBO + (r % 8) * s + kb                              r row, kb byte along
//   k K-major, no swizzle    (r / 8) * SBO + (kb / 16) * LBO + (r % 8) * 16 + kb % 16 MN-major, swizzle s (r
//   / g) * LBO + (k / 8) * SBO + (k % 8) * s + 2 * (r % g)     g = s / 2 elements of 16 bits MN-major, no
//   swizzle   (r / 8) * SBO + (k / 8) * LBO + (k % 8) * 16 + 2 * (r % 8)
#pragma once

#include "emulator/tensor/operand.h"

#include <deep_gemm/spec/tensor_map.h>

namespace deep_gemm::emulator {

enum class Major : u8 { k, mn };

struct MatrixDescriptor {
    u32 start = 0, leading_bytes = 0, stride_bytes = 0;
    Swizzle swizzle = Swizzle::none;
};

// Throws for a non-zero base offset, which is not modelled.
[[nodiscard]] MatrixDescriptor decode_descriptor(u64 bits);

// Offsets of the 16-byte chunks of `rows` x `k_bytes`. K-major: chunk [row][k_bytes / 16]. MN-major (16-bit
// elements): chunk [k][rows / 8].
void operand_chunks(const MatrixDescriptor& descriptor, u32 rows, u32 k_bytes, Major major,
                    std::vector<u32>& out);

// The operand as dense row-major bytes, [rows][k_bytes]. Throws when a chunk is outside `smem`.
void gather_operand(const MatrixDescriptor& descriptor, u32 rows, u32 k_bytes, Major major,
                    std::span<const std::byte> smem, std::vector<std::byte>& out);

}  // namespace deep_gemm::emulator
