#include "emulator/async/tma.h"

#include "base/error.h"
#include "driver/tensor_map_check.h"
#include "emulator/async/reduce.h"
#include "emulator/formats/swizzle.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace deep_gemm::emulator {

namespace {

constexpr u32 kTileAlignment = 128;
constexpr u32 kMaxRowBytes = 256 * 4;
using Row = std::array<std::byte, kMaxRowBytes>;

// The part of a box row that lies inside the tensor.
struct RowSegment {
    u64 address = 0;   // global address of its first byte
    u32 row_byte = 0;  // where it starts within the box row
    u32 bytes = 0;     // 0: the whole row is outside
};

RowSegment locate(const TensorMapView& view, std::span<const i32> coords, u32 row) {
    const TensorMapDesc& desc = view.desc;
    RowSegment segment{.address = desc.address};
    for (u32 i = 1; i < desc.rank; ++i) {
        const i64 index = i64{coords[i]} + row % desc.box[i];
        row /= desc.box[i];
        if (index < 0 || index >= static_cast<i64>(desc.dims[i])) return {};
        segment.address += static_cast<u64>(index) * desc.strides_bytes[i - 1];
    }
    const i64 begin = std::max<i64>(coords[0], 0);
    const i64 end = std::min<i64>(i64{coords[0]} + desc.box[0], static_cast<i64>(desc.dims[0]));
    if (begin >= end) return {};
    const u32 bits = bits_of(desc.format);
    segment.address += static_cast<u64>(begin) * bits / 8;
    segment.row_byte = static_cast<u32>(begin - coords[0]) * bits / 8;
    segment.bytes = static_cast<u32>(end - begin) * bits / 8;
    return segment;
}

// Calls visit(chunk offset in shared memory, byte offset within the row) for the 16-byte chunks of one row.
template <typename Visit>
void for_row_chunks(const TensorMapView& view, u32 offset, u32 row, Visit&& visit) {
    const u32 mask = swizzle_mask(view.desc.swizzle);
    const u32 start = offset + row * view.inner_box_bytes;
    for (u32 at = 0; at < view.inner_box_bytes; at += kChunkBytes) visit(swizzled(start + at, mask), at);
}

void gather_row(const TensorMapView& view, std::span<const std::byte> smem, u32 offset, u32 row, Row& out) {
    for_row_chunks(view, offset, row, [&](u32 chunk, u32 at) {
        std::memcpy(out.data() + at, smem.data() + chunk, kChunkBytes);
    });
}

// Calls write(segment, bytes of the row) for every row that has a part inside the tensor.
template <typename Write>
void for_stored_rows(const TensorMapView& view, std::span<const i32> coords, std::span<const std::byte> smem,
                     u32 offset, Write&& write) {
    check_tile(view, coords, offset);
    Row buffer;
    for (u32 row = 0; row < view.num_box_rows; ++row) {
        const RowSegment segment = locate(view, coords, row);
        if (segment.bytes == 0) continue;
        gather_row(view, smem, offset, row, buffer);
        write(segment, buffer.data() + segment.row_byte);
    }
}

}  // namespace

void check_tile(const TensorMapView& view, std::span<const i32> coords, u32 offset) {
    const TensorMapDesc& desc = view.desc;
    DG_CHECK(coords.size() == desc.rank, emulator,
             "TMA: {} coordinates for a tensor map of rank {}; use the .{}d instruction", coords.size(),
             desc.rank, desc.rank);
    DG_CHECK(
        offset % kTileAlignment == 0, emulator,
        "TMA: shared address {:#x}, expected a multiple of {}; align the tile (1024 keeps swizzles in phase)",
        offset, kTileAlignment);
    const i64 first_bit = i64{coords[0]} * bits_of(desc.format);
    DG_CHECK(first_bit % (8 * kChunkBytes) == 0, emulator,
             "TMA: coordinate {} of dimension 0 is {} bytes from the tensor's start; an H200 stops with an "
             "illegal "
             "instruction unless it is a multiple of {}; start the box there or use other copies",
             coords[0], first_bit / 8, kChunkBytes);
    const u32 span = driver::swizzle_span_bytes(desc.swizzle);
    DG_CHECK(desc.swizzle == Swizzle::none || view.inner_box_bytes == span, emulator,
             "TMA: a box row of {} bytes under a {}-byte swizzle is not modelled; make the row as wide as "
             "the swizzle",
             view.inner_box_bytes, span);
}

void tma_load_rows(const TensorMapView& view, std::span<const i32> coords, RowRange rows,
                   GlobalMemory& global, std::span<std::byte> smem, u32 offset) {
    check_tile(view, coords, offset);
    Row buffer;
    for (u32 row = rows.first; row < rows.first + rows.count; ++row) {
        const RowSegment segment = locate(view, coords, row);
        if (segment.bytes < view.inner_box_bytes) std::memset(buffer.data(), 0, view.inner_box_bytes);
        if (segment.bytes != 0) {
            std::memcpy(buffer.data() + segment.row_byte, global.read(segment.address, segment.bytes),
                        segment.bytes);
        }
        for_row_chunks(view, offset, row, [&](u32 chunk, u32 at) {
            std::memcpy(smem.data() + chunk, buffer.data() + at, kChunkBytes);
        });
    }
}

void tma_load(const TensorMapView& view, std::span<const i32> coords, GlobalMemory& global,
              std::span<std::byte> smem, u32 offset) {
    tma_load_rows(view, coords, {.first = 0, .count = view.num_box_rows}, global, smem, offset);
}

void tma_store(const TensorMapView& view, std::span<const i32> coords, GlobalMemory& global,
               std::span<const std::byte> smem, u32 offset) {
    for_stored_rows(view, coords, smem, offset, [&](const RowSegment& segment, const std::byte* bytes) {
        std::memcpy(global.write(segment.address, segment.bytes), bytes, segment.bytes);
    });
}

void tma_reduce(const TensorMapView& view, ReduceOp op, std::span<const i32> coords, GlobalMemory& global,
                std::span<const std::byte> smem, u32 offset) {
    for_stored_rows(view, coords, smem, offset, [&](const RowSegment& segment, const std::byte* bytes) {
        reduce_elements(op, view.desc.format, global.write(segment.address, segment.bytes), bytes,
                        segment.bytes);
    });
}

void check_bulk(u64 address, u32 offset, u32 bytes) {
    DG_CHECK(
        address % kChunkBytes == 0 && offset % kChunkBytes == 0 && bytes % kChunkBytes == 0 && bytes != 0,
        emulator,
        "cp.async.bulk: global {:#x}, shared {:#x}, {} bytes, expected multiples of {} and at least one; pad "
        "the buffers",
        address, offset, bytes, kChunkBytes);
}

void bulk_load(GlobalMemory& global, u64 address, std::span<std::byte> smem, u32 offset, u32 bytes) {
    check_bulk(address, offset, bytes);
    std::memcpy(smem.data() + offset, global.read(address, bytes), bytes);
}

void bulk_store(GlobalMemory& global, u64 address, std::span<const std::byte> smem, u32 offset, u32 bytes) {
    check_bulk(address, offset, bytes);
    std::memcpy(global.write(address, bytes), smem.data() + offset, bytes);
}

void bulk_reduce(ReduceOp op, Format format, GlobalMemory& global, u64 address,
                 std::span<const std::byte> smem, u32 offset, u32 bytes) {
    check_bulk(address, offset, bytes);
    reduce_elements(op, format, global.write(address, bytes), smem.data() + offset, bytes);
}

}  // namespace deep_gemm::emulator
