#include "emulator/tensor/descriptor.h"

#include "base/error.h"
#include "emulator/formats/swizzle.h"

#include <cstring>

namespace deep_gemm::emulator {

namespace {

constexpr u32 kAddressMask = 0x3ffff;  // 18 bits of shared address
constexpr u32 kAtomRows = 8;

constexpr u32 field_bytes(u64 bits, u32 shift) {
    return static_cast<u32>(bits >> shift & 0x3fff) << 4;
}

constexpr u32 span_bytes(Swizzle swizzle) {
    switch (swizzle) {
        case Swizzle::none: return kChunkBytes;
        case Swizzle::bytes_32: return 32;
        case Swizzle::bytes_64: return 64;
        case Swizzle::bytes_128: return 128;
    }
    return kChunkBytes;
}

u32 k_major_offset(const MatrixDescriptor& descriptor, u32 row, u32 k_byte) {
    const u32 group = row / kAtomRows * descriptor.stride_bytes;
    if (descriptor.swizzle != Swizzle::none)
        return group + row % kAtomRows * span_bytes(descriptor.swizzle) + k_byte;
    return group + k_byte / kChunkBytes * descriptor.leading_bytes + row % kAtomRows * kChunkBytes;
}

// `chunk` counts 8 elements along the rows.
u32 mn_major_offset(const MatrixDescriptor& descriptor, u32 chunk, u32 k) {
    const u32 span = span_bytes(descriptor.swizzle);
    const u32 in_atom = k % kAtomRows * span;
    if (descriptor.swizzle == Swizzle::none) {
        return chunk * descriptor.stride_bytes + k / kAtomRows * descriptor.leading_bytes + in_atom;
    }
    const u32 chunks_per_span = span / kChunkBytes;
    return chunk / chunks_per_span * descriptor.leading_bytes + k / kAtomRows * descriptor.stride_bytes +
           in_atom + chunk % chunks_per_span * kChunkBytes;
}

}  // namespace

MatrixDescriptor decode_descriptor(u64 bits) {
    constexpr Swizzle kModes[] = {Swizzle::none, Swizzle::bytes_128, Swizzle::bytes_64, Swizzle::bytes_32};
    DG_CHECK((bits >> 49 & 7) == 0, emulator,
             "matrix descriptor {:#018x}: base offset {} is not modelled; start swizzled tiles at a multiple "
             "of their pattern",
             bits, bits >> 49 & 7);
    return {.start = field_bytes(bits, 0),
            .leading_bytes = field_bytes(bits, 16),
            .stride_bytes = field_bytes(bits, 32),
            .swizzle = kModes[bits >> 62]};
}

void operand_chunks(const MatrixDescriptor& descriptor, u32 rows, u32 k_bytes, Major major,
                    std::vector<u32>& out) {
    const u32 mask = swizzle_mask(descriptor.swizzle);
    const u32 outer = major == Major::k ? rows : k_bytes / 2;
    const u32 inner = major == Major::k ? k_bytes / kChunkBytes : rows / kAtomRows;
    out.clear();
    for (u32 i = 0; i < outer; ++i) {
        for (u32 j = 0; j < inner; ++j) {
            const u32 offset = major == Major::k ? k_major_offset(descriptor, i, j * kChunkBytes)
                                                 : mn_major_offset(descriptor, j, i);
            out.push_back(swizzled((descriptor.start + offset) & kAddressMask, mask));
        }
    }
}

void gather_operand(const MatrixDescriptor& descriptor, u32 rows, u32 k_bytes, Major major,
                    std::span<const std::byte> smem, std::vector<std::byte>& out) {
    thread_local std::vector<u32> chunks;
    operand_chunks(descriptor, rows, k_bytes, major, chunks);
    out.resize(static_cast<std::size_t>(rows) * k_bytes);
    for (u32 i = 0; i < chunks.size(); ++i) {
        DG_CHECK(u64{chunks[i]} + kChunkBytes <= smem.size(), emulator,
                 "matrix descriptor: operand reaches shared address {:#x}, the block has {:#x} bytes; check "
                 "start, LBO and SBO",
                 chunks[i], smem.size());
        const std::byte* source = smem.data() + chunks[i];
        if (major == Major::k) {
            std::memcpy(out.data() + static_cast<std::size_t>(i) * kChunkBytes, source, kChunkBytes);
            continue;
        }
        const u32 chunks_per_k = rows / kAtomRows;
        std::byte* target = out.data() + static_cast<std::size_t>(i % chunks_per_k * kAtomRows) * k_bytes +
                            i / chunks_per_k * 2;
        for (u32 row = 0; row < kAtomRows; ++row)
            std::memcpy(target + static_cast<std::size_t>(row) * k_bytes, source + row * 2, 2);
    }
}

}  // namespace deep_gemm::emulator
