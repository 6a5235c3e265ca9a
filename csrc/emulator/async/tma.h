// The copy engine: tiles of 1 to 5 dimensions and plain bulk copies, between global memory and one CTA's
// shared memory. These functions copy when called; the scheduler decides when, and may land a tile in several
// pieces of rows. (A row is the innermost dimension of the box; rows are numbered in shared-memory order.)
//
// `smem` is indexed by shared offset, which is also what the swizzle XORs. A load writes exactly
// [offset, offset + view.box_bytes()), elements outside the tensor as zero; a store or reduction skips those.
// Coordinates are in elements, innermost first, and may be negative.
#pragma once

#include "emulator/async/global_memory.h"
#include "emulator/async/tensor_map.h"

#include <span>

namespace deep_gemm::emulator {

enum class ReduceOp : u8 { add, min, max, bit_and, bit_or, bit_xor };

struct RowRange {
    u32 first = 0, count = 0;
};

// Alignment, coordinate count and what is not modelled; throws. The scheduler calls it at issue, where the
// PTX line is.
void check_tile(const TensorMapView& view, std::span<const i32> coords, u32 offset);

void tma_load(const TensorMapView& view, std::span<const i32> coords, GlobalMemory& global,
              std::span<std::byte> smem, u32 offset);
void tma_load_rows(const TensorMapView& view, std::span<const i32> coords, RowRange rows,
                   GlobalMemory& global, std::span<std::byte> smem, u32 offset);
void tma_store(const TensorMapView& view, std::span<const i32> coords, GlobalMemory& global,
               std::span<const std::byte> smem, u32 offset);
// global = global OP shared, element by element; fp16 and bf16 sums round to nearest even.
void tma_reduce(const TensorMapView& view, ReduceOp op, std::span<const i32> coords, GlobalMemory& global,
                std::span<const std::byte> smem, u32 offset);

// cp.async.bulk: address, offset and size are multiples of 16.
void check_bulk(u64 address, u32 offset, u32 bytes);
void bulk_load(GlobalMemory& global, u64 address, std::span<std::byte> smem, u32 offset, u32 bytes);
void bulk_store(GlobalMemory& global, u64 address, std::span<const std::byte> smem, u32 offset, u32 bytes);
void bulk_reduce(ReduceOp op, Format format, GlobalMemory& global, u64 address,
                 std::span<const std::byte> smem, u32 offset, u32 bytes);

}  // namespace deep_gemm::emulator
