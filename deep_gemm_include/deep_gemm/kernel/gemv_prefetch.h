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
/// where in shared memory it belongs, store(to, words) brings it there. Several are on their way at
/// once, whichever token they are of; the first of each thread is when meanwhile() runs, and where that is
/// all there is, no other code is gone through: a launch's first microsecond is one for fetching it.
template <typename Fetch, typename Store, typename Meanwhile>
DG_DEVICE void copy_vectors(u32 count, u32 vectors, u32 threads, const Fetch& fetch, const Store& store,
                            const Meanwhile& meanwhile) {
    constexpr u32 kAtOnce = 8;
    const u32 total = count * vectors, mine = ptx::thread_index();
    const u32 inverse = vectors > 1 ? 0xffffffffu / vectors + 1 : 0;  // exact below 2^32 / vectors
    const auto load = [&](u32(&words)[4], u32 at) {
        const u32 token = vectors > 1 ? ptx::multiply_high(at, inverse) : at;
        return fetch(words, token, at - token * vectors);
    };
    u32 first_words[4];
    ptx::SharedAddress first_to = 0;
    if (mine < total) first_to = load(first_words, mine);
    meanwhile();
    if (mine < total) store(first_to, first_words);
#pragma unroll 1
    for (u32 start = mine + threads; start < total; start += kAtOnce * threads) {
        u32 words[kAtOnce][4];
        ptx::SharedAddress to[kAtOnce];
#pragma unroll
        for (u32 i = 0; i < kAtOnce; ++i)
            if (start + i * threads < total) to[i] = load(words[i], start + i * threads);
#pragma unroll
        for (u32 i = 0; i < kAtOnce; ++i)
            if (start + i * threads < total) store(to[i], words[i]);
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
