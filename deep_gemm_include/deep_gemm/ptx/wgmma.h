// wgmma: a warpgroup multiplies 64 rows of A by n rows of B from shared memory, asynchronously.
#pragma once

#include <deep_gemm/ptx/shared.h>
#include <deep_gemm/ptx/wgmma_shapes.h>

namespace deep_gemm::ptx {

/// wgmma.fence: orders accumulator registers (and earlier wgmma) before the next wgmma. Scope: warpgroup.
DG_DEVICE void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
/// wgmma.commit_group: the wgmma issued so far form one group.
DG_DEVICE void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// wgmma.wait_group: all but the newest `Pending` groups have finished; their accumulators and sources are
/// free.
template <u32 Pending>
DG_DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
/// Keeps the compiler from moving accumulator registers across the asynchronous region.
template <u32 Count>
DG_DEVICE void wgmma_keep(float (&registers)[Count]) {
#pragma unroll
    for (u32 i = 0; i < Count; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <u32 Count>
DG_DEVICE void wgmma_keep(i32 (&registers)[Count]) {
#pragma unroll
    for (u32 i = 0; i < Count; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}
/// The same for operand A in registers: what computes it stays before the wgmma.fence that follows.
template <u32 Count>
DG_DEVICE void wgmma_keep(u32 (&registers)[Count]) {
#pragma unroll
    for (u32 i = 0; i < Count; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

// What descriptors of tiles in 128-byte swizzle atoms share: 1024 bytes from atom to atom, and the layout.
constexpr u64 kAtomStride = static_cast<u64>(1024 >> 4) << 32;
constexpr u64 kSwizzle128 = 1ull << 62;

/// Matrix descriptor of a K-major tile in 128-byte swizzle atoms (8 rows of 128 bytes, 1024 apart).
/// Bits 0-13 address / 16, 32-45 stride between atoms / 16, 62-63 layout (1 = 128-byte swizzle).
/// A step of 32 bytes along K inside the atom adds 2.
DG_DEVICE u64 wgmma_descriptor(SharedAddress tile) {
    return static_cast<u64>((tile & 0x3ffff) >> 4) | (1ull << 16) | kAtomStride | kSwizzle128;
}
/// The descriptor `step` steps of 32 bytes along K further. Opaque: the compiler, which knows that no carry
/// leaves the low bits, would copy both words to or them, three instructions where an addition is one.
DG_DEVICE u64 wgmma_step(u64 descriptor, u32 step) {
    u64 further;
    asm("add.s64 %0, %1, %2;" : "=l"(further) : "l"(descriptor), "l"(u64{2} * step));
    return further;
}
/// Matrix descriptor of a tile that is contiguous along its rows: chunks of 64 16-bit elements of them,
/// `chunk_bytes` apart, each with 128 bytes a k in 128-byte swizzle atoms (8 k, 1024 bytes). Bits 16-29
/// distance of chunks / 16, 32-45 distance of atoms along k / 16. A step of 16 along k adds 128.
DG_DEVICE u64 wgmma_descriptor_mn_major(SharedAddress tile, u32 chunk_bytes) {
    return static_cast<u64>((tile & 0x3ffff) >> 4) | static_cast<u64>(chunk_bytes >> 4) << 16 | kAtomStride |
           kSwizzle128;
}

}  // namespace deep_gemm::ptx
