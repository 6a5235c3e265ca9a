// Who is who in a group of eight warps, and what a group asks L2 for before it may read it.
#pragma once

#include <deep_gemm/kernel/gemv_load.h>

namespace deep_gemm::kernel {

/// Index within the group of eight warps that share a tile.
DG_DEVICE u32 group_thread() {
    return ptx::thread_index() % kGemvThreads;
}
DG_DEVICE u32 group_warp() {
    return ptx::warp_index() % kGemvWarps;
}

/// Asks L2 for bytes [0, bytes) from `address`, and what shares 16 bytes with them.
DG_DEVICE void prefetch_bytes(const u8* address, u32 bytes) {
    const u32 before = static_cast<u32>(reinterpret_cast<u64>(address) % 16);
    if (bytes != 0) ptx::prefetch_l2(address - before, (before + bytes + 15) / 16 * 16);
}

/// The scales of a block's rows, on their way to L2 before they are asked for one by one. Scope: the group, a
/// thread for each row.
template <GemvSpec S>
DG_DEVICE void prefetch_scales(const GemvParams& p, const GemvBlock& block, u32 thread) {
    constexpr QuantRow kRow = row_of(S.w);
    if constexpr (S.dependent_launch && kRow.block_k != 0) {
        if (thread >= kMmaTileRows * S.row_tiles) return;
        u32 row = thread % kMmaTileRows;
        const GemvMatrix& w = row_of_block<S>(p, block, thread / kMmaTileRows, row);
        const u32 columns = static_cast<u32>(scale_columns_of(S.w, p.k));
        const u64 first = u64{row} / kRow.block_rows * columns;
        prefetch_bytes(static_cast<const u8*>(w.scales) + first * bytes_of(kRow.scale),
                       columns * bytes_of(kRow.scale));
        if constexpr (kRow.has_zero) prefetch_bytes(w.zeros + first, columns);
    }
}

/// What the first tile of a group needs, on its way to L2. L2 is where writes of other kernels land, so
/// nothing can be stale, and this may precede grid_dependency_wait().
template <GemvSpec S>
DG_DEVICE void prefetch_first(const GemvParams& p, u32 tile) {
    const GemvBlock block = find_block<S>(p, tile);
    const u32 thread = group_thread();
    prefetch_scales<S>(p, block, thread);
    if (thread >= kMmaTileRows * S.row_tiles) return;
    u32 row = thread % kMmaTileRows;
    const GemvMatrix& w = row_of_block<S>(p, block, thread / kMmaTileRows, row);
    const u64 bytes = row_bytes_of(S.w, p.k);
    prefetch_bytes(w.data + row * w.row_stride,
                   bytes < kGemvPrefetchBytes ? static_cast<u32>(bytes) : kGemvPrefetchBytes);
}

}  // namespace deep_gemm::kernel
