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
    // Of the code for several turns, no more than there are.
    const auto each = [&](const auto& visit) {
        visit(0);
        if (total <= threads) return;
        visit(1);
        if (total <= 2 * threads) return;
        visit(2), visit(3);
        if (total <= 4 * threads) return;
#pragma unroll
        for (u32 i = 4; i < kAtOnce; ++i) visit(i);
    };
    each([&](u32 i) { load(i, index + i * threads); });
    meanwhile();
    each([&](u32 i) { put(i, index + i * threads); });
    if (total <= kAtOnce * threads) return;
#pragma unroll 1
    for (index += kAtOnce * threads; index < total; index += kAtOnce * threads) {
#pragma unroll
        for (u32 i = 0; i < kAtOnce; ++i) load(i, index + i * threads);
#pragma unroll
        for (u32 i = 0; i < kAtOnce; ++i) put(i, index + i * threads);
    }
}

/// Copies the scales of `count` tokens from token `first` to `to`, [block of K][token]: `blocks` of each, and
/// zeros up to `padded`. Those of a thread's first turns are on their way when meanwhile() runs.
template <GemvSpec S, typename Meanwhile>
DG_DEVICE void copy_token_scales(const GemvParams& p, ptx::SharedAddress to, u32 first, u32 count, u32 blocks,
                                 u32 padded, const Meanwhile& meanwhile) {
    constexpr u32 kAtOnce = block_k_of(S.x) < 128 ? 2 : 1, kThreads = threads_of(S);
    const u32 total = padded * S.tokens, mine = ptx::thread_index();
    const auto load = [&](u32 i) {
        const u32 block = i / S.tokens, token = i % S.tokens;
        if (token >= count || block >= blocks) return 0.0f;
        return ptx::ld_cached_f32(p.x_scale + (first + token) * p.x_scale_stride + block);
    };
    float asked[kAtOnce] = {};
#pragma unroll
    for (u32 i = 0; i < kAtOnce; ++i)
        if (mine + i * kThreads < total) asked[i] = load(mine + i * kThreads);
    meanwhile();
#pragma unroll
    for (u32 i = 0; i < kAtOnce; ++i)
        if (mine + i * kThreads < total) ptx::st_shared_f32(to + (mine + i * kThreads) * 4, asked[i]);
#pragma unroll 1
    for (u32 i = mine + kAtOnce * kThreads; i < total; i += kThreads) ptx::st_shared_f32(to + i * 4, load(i));
}

/// Asks L2 for bytes [0, bytes) from `address`, and what shares 16 bytes with them. Scope: a thread, which this
/// takes 60 ns: for a thread of many, each of its own.
DG_DEVICE void prefetch_bytes(const u8* address, u32 bytes) {
    const u32 before = static_cast<u32>(reinterpret_cast<u64>(address) % 16);
    if (bytes != 0) ptx::prefetch_l2(address - before, (before + bytes + 15) / 16 * 16);
}

constexpr u32 kLineBytes = 128;

/// Asks L2 for lines `first`, `first` + `step`, ... of `bytes` from `address`.
DG_DEVICE void prefetch_lines(const void* address, u32 bytes, u32 first, u32 step) {
    const u64 begin = reinterpret_cast<u64>(address), end = begin + bytes;
#pragma unroll 1
    for (u64 line = begin / kLineBytes * kLineBytes + first * kLineBytes; line < end;
         line += step * kLineBytes)
        ptx::prefetch_line(reinterpret_cast<const void*>(line < begin ? begin : line));
}

/// The scales of a block's rows, on their way to L2 before they are asked for one by one. Scope: the group.
template <GemvSpec S>
DG_DEVICE void prefetch_scales(const GemvParams& p, const GemvBlock& block, u32 thread) {
    constexpr QuantRow kRow = row_of(S.w);
    if constexpr (S.dependent_launch && kRow.scale != ScaleType::none) {
        // A row of scales for each row, or for the rows of a tile; or the rows' one scale each in a row.
        constexpr bool kOfRow = kRow.block_k != 0 && kRow.block_rows == 1;
        constexpr u32 kRowsOfTile = kOfRow ? kMmaTileRows : 1, kRows = kRowsOfTile * S.row_tiles;
        u32 row = thread % kRowsOfTile;
        const GemvMatrix& w = row_of_block<S>(p, block, thread % kRows / kRowsOfTile, row);
        const u32 columns = kRow.block_k ? static_cast<u32>(scale_columns_of(S.w, p.k)) : 1;
        const u64 first = u64{row} / kRow.block_rows * columns;
        const u32 rows_left = w.n - row < kMmaTileRows ? w.n - row : kMmaTileRows;
        prefetch_lines(static_cast<const u8*>(w.scales) + first * bytes_of(kRow.scale),
                       (kRow.block_k ? columns : rows_left) * bytes_of(kRow.scale), thread / kRows,
                       kGemvThreads / kRows);
        if constexpr (kRow.has_zero)
            prefetch_lines(w.zeros + first, columns, thread / kRows, kGemvThreads / kRows);
    }
}

/// The tokens of a block, on their way to L2: of all blocks each asks for a part. Scope: a warp.
template <GemvSpec S>
DG_DEVICE void prefetch_tokens(const GemvParams& p) {
    const u32 first = ptx::block_index_y() * p.tokens_per_block, lane = ptx::lane_index();
    const u32 left = p.m - first, count = left < p.tokens_per_block ? left : p.tokens_per_block;
    const u32 bytes = p.k * bytes_of(element_of(S.x));
    const u32 lines = ceil_div(bytes, kLineBytes), parts = ceil_div(count * lines, 32u);
    const u32 index = ptx::block_index() % parts * 32 + lane, token = index / lines;
    if (token < count)
        ptx::prefetch_line(p.x + (first + token) * p.x_stride + (index - token * lines) * kLineBytes);
    if constexpr (block_k_of(S.x) != 0) {
        constexpr u32 kShares = 4;
        if (lane < count)
            prefetch_lines(p.x_scale + (first + lane) * p.x_scale_stride, ceil_div(p.k, block_k_of(S.x)) * 4,
                           ptx::block_index() % kShares, kShares);
    }
}

/// What a group needs first, on its way to L2. L2 is where writes of other kernels land, so nothing can be
/// stale, and this may precede grid_dependency_wait().
template <GemvSpec S>
DG_DEVICE void prefetch_first(const GemvParams& p, u32 tile) {
    const GemvBlock block = find_block<S>(p, tile);
    if (ptx::warp_index() == 1) prefetch_tokens<S>(p);
    prefetch_scales<S>(p, block, group_thread());
    const u64 row_bytes = row_bytes_of(S.w, p.k);
    if constexpr (is_q8(S)) {  // rows in turn: what a warp takes of one lies in several lines
        constexpr u32 kFirstBytes = 2048;
        if (group_thread() >= kMmaTileRows * S.row_tiles) return;
        u32 row = group_thread() % kMmaTileRows;
        const GemvMatrix& w = row_of_block<S>(p, block, group_thread() / kMmaTileRows, row);
        prefetch_bytes(w.data + row * w.row_stride,
                       row_bytes < kFirstBytes ? static_cast<u32>(row_bytes) : kFirstBytes);
        return;
    }
    // Each warp asks for its own first visit, a line of each row. More of them came no sooner (H200).
    const u64 offset = u64{group_warp()} * kGemvVisitBytes;
    if (offset >= row_bytes || ptx::lane_index() >= kMmaTileRows * S.row_tiles) return;
    u32 row = ptx::lane_index() % kMmaTileRows;
    const GemvMatrix& w = row_of_block<S>(p, block, ptx::lane_index() / kMmaTileRows, row);
    ptx::prefetch_line(w.data + row * w.row_stride + offset);
}

}  // namespace deep_gemm::kernel
