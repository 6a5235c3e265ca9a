// Who is who in a group of eight warps, what a group asks L2 for before it may read it, and how a block
// copies its tokens.
#pragma once

#include <deep_gemm/kernel/gemv_load.h>
#include <deep_gemm/ptx/shared.h>

namespace deep_gemm::kernel {

/// Index within the group of eight warps that share a tile.
DG_DEVICE u32 group_thread() {
    return ptx::thread_index() % kGemvThreads;
}
DG_DEVICE u32 group_warp() {
    return ptx::warp_index() % kGemvWarps;
}

/// Copies `vectors` 16-byte vectors of each of `count` tokens: fetch(words, token, vector) loads one and says
/// where in shared memory it belongs, store(to, words) brings it there. Several are on their way at once,
/// whichever token they are of; the first of each thread are when meanwhile() runs. Where one is all there
/// is, no other code is gone through: a launch's first microsecond is one for fetching it. Blocks begin at
/// different vectors, so that not all of them ask one slice of L2 for the same line.
template <typename Fetch, typename Store, typename Meanwhile>
DG_DEVICE void copy_vectors(u32 count, u32 vectors, u32 threads, const Fetch& fetch, const Store& store,
                            const Meanwhile& meanwhile) {
    constexpr u32 kAtOnce = 8, kBeginnings = 32;
    const u32 total = count * vectors;
    const u32 begin = ptx::block_index() % kBeginnings * total / kBeginnings;
    const u32 inverse = vectors > 1 ? 0xffffffffu / vectors + 1 : 0;  // exact below 2^32 / vectors
    u32 words[kAtOnce][4];
    ptx::SharedAddress to[kAtOnce];
    const auto load = [&](u32 i, u32 index) {
        if (index >= total) return;
        const u32 turned = index + begin, at = turned < total ? turned : turned - total;
        const u32 token = vectors > 1 ? ptx::multiply_high(at, inverse) : at;
        to[i] = fetch(words[i], token, at - token * vectors);
    };
    const auto put = [&](u32 i, u32 index) {
        if (index < total) store(to[i], words[i]);
    };
    u32 index = ptx::thread_index();
    load(0, index);
    if (total > threads) {
#pragma unroll
        for (u32 i = 1; i < kAtOnce; ++i) load(i, index + i * threads);
    }
    meanwhile();
    put(0, index);
    if (total <= threads) return;
#pragma unroll
    for (u32 i = 1; i < kAtOnce; ++i) put(i, index + i * threads);
#pragma unroll 1
    for (index += kAtOnce * threads; index < total; index += kAtOnce * threads) {
#pragma unroll
        for (u32 i = 0; i < kAtOnce; ++i) load(i, index + i * threads);
#pragma unroll
        for (u32 i = 0; i < kAtOnce; ++i) put(i, index + i * threads);
    }
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
    if constexpr (S.dependent_launch && kRow.scale != ScaleType::none && kRow.block_k == 0) {
        if (thread >= S.row_tiles) return;
        u32 row = 0;
        const GemvMatrix& w = row_of_block<S>(p, block, thread, row);
        const u32 rows = w.n - row < kMmaTileRows ? w.n - row : kMmaTileRows;
        prefetch_bytes(static_cast<const u8*>(w.scales) + row * 4ull, rows * 4);
    } else if constexpr (S.dependent_launch && kRow.block_k != 0) {
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
    constexpr u32 kFirstBytes = prefetch_bytes_of(S);
    const GemvBlock block = find_block<S>(p, tile);
    const u32 thread = group_thread();
    prefetch_scales<S>(p, block, thread);
    if (thread >= kMmaTileRows * S.row_tiles) return;
    u32 row = thread % kMmaTileRows;
    const GemvMatrix& w = row_of_block<S>(p, block, thread / kMmaTileRows, row);
    const u64 bytes = row_bytes_of(S.w, p.k);
    prefetch_bytes(w.data + row * w.row_stride, bytes < kFirstBytes ? static_cast<u32>(bytes) : kFirstBytes);
}

}  // namespace deep_gemm::kernel
