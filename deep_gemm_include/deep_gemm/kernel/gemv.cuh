// y = x W^T for few tokens, any architecture since sm_80, bound by the stream of weights.
//
// A group of eight warps takes tiles of 16 rows of W (or 32), one after the other, and all tokens of its
// block. Its warps take turns along K, 128 bytes of every row at a time, and each of them streams its share
// of all tiles through a ring of its own (gemv_ring.h). mma.sync is a multiply-add unit that reads each
// decoded weight once for eight tokens: a lane takes 16 contiguous bytes of a row, and since the order of K
// inside an mma is free as long as both operands agree, these bytes are its fragments as they are. With
// tokens as columns, a token's result depends on its own column only, whatever the others hold.
//
// Order of the sum of one row (a function of W's layout and K): warp w adds visits w, w + 8, ... in turn,
// each in the order of mma.sync, scaled by fma after every promote_k elements (E2M1 whose scales are part of
// it: every other 32 elements apart, added behind the visit); then warps 0 to 7 are added in turn. Launched by
// op/linear.cpp.
#pragma once

#include <deep_gemm/kernel/gemv_ring.h>
#include <deep_gemm/kernel/gemv_sums.h>

namespace deep_gemm {
namespace gemv_detail {

template <GemvSpec S>
struct Tokens {
    const u8* row[Sums<S>::kTokenTiles];          // of token lane / 4 of each tile; null: there is none
    const float* scale[Sums<S>::kTokenTiles][2];  // of tokens 2 (lane % 4) and the next
};

/// What a lane needs of the tokens for one visit: scales, and the fragments of one step.
template <GemvSpec S>
struct TokenVisit {
    static constexpr u32 kPieces = lane_elements_of(S) / tile::kPieceElements;  // of a step
    u32 x[kPieces][Sums<S>::kTokenTiles][4];
    TokenScales<S> scale;
};

template <bool Whole, GemvSpec S>
DG_DEVICE void load_step(TokenVisit<S>& to, const Tokens<S>& tokens, u64 first, u32 step, u32 k) {
    constexpr u32 kPieces = TokenVisit<S>::kPieces;
#pragma unroll
    for (u32 piece = 0; piece < kPieces; ++piece)
#pragma unroll
        for (u32 t = 0; t < Sums<S>::kTokenTiles; ++t)
            kernel::load_tokens<Whole, S>(to.x[piece][t], tokens.row[t],
                                          first + kernel::piece_element<S>(step * kPieces + piece), k);
}

template <bool Whole, GemvSpec S>
DG_DEVICE void load_token_scales(TokenVisit<S>& to, const Tokens<S>& tokens, u64 first, u32 k) {
#pragma unroll
    for (u32 block = 0; block < TokenScales<S>::kBlocks; ++block) {
        const u64 element = first + block * block_k_of(S.x);
#pragma unroll
        for (u32 t = 0; t < Sums<S>::kTokenTiles; ++t)
#pragma unroll
            for (u32 i = 0; i < 2; ++i)
                to.scale.value[block][t][i] =
                    tokens.scale[t][i] && (Whole || element < k)
                        ? ptx::ld_cached_f32(tokens.scale[t][i] + element / block_k_of(S.x))
                        : 0.0f;
    }
}

/// One visit: its weights are in the ring's `stage`, or (not Whole) are read byte by byte from `block`.
template <bool Whole, bool Excess, GemvSpec S>
DG_DEVICE void multiply_pieces(Sums<S>& sums, const kernel::GemvRing<S>& ring, ptx::SharedAddress stage,
                               const GemvParams& p, const kernel::GemvBlock& block, const GemvVisit<S>& visit,
                               TokenVisit<S>& x, const Tokens<S>& tokens, u32 index) {
    constexpr u32 kPromoteK = promote_k_of(S), kPieces = TokenVisit<S>::kPieces;
    const u64 first = u64{index} * visit_k_of(S);
    Sums<S> partial;
    kernel::GemvWords<S> words;
#pragma unroll
    for (u32 piece = 0; piece < kPieces * steps_of_visit(S); ++piece) {
        if (piece % kPieces == 0) {
            if (piece != 0) load_step<Whole, S>(x, tokens, first, piece / kPieces, p.k);
            if constexpr (Whole)
                kernel::read_stage<S>(words, stage, ring.read_offset, piece / kPieces);
            else
                kernel::load_words<S>(words, p, block, index, piece / kPieces);
        }
        Sums<S>& target = sums_of_piece<S>(sums, partial, piece);
        u32 columns[Sums<S>::kTokenTiles][4];
#pragma unroll
        for (u32 t = 0; t < Sums<S>::kTokenTiles; ++t)
            for (u32 i = 0; i < 4; ++i)
                columns[t][i] = row_of(S.w).packing == Packing::fragments
                                    ? x.x[i % kPieces][t][piece % kPieces]
                                    : x.x[piece % kPieces][t][i];
#pragma unroll
        for (u32 r = 0; r < S.row_tiles; ++r) {
            u32 low[4], high[4];
            kernel::decode_piece<Excess, S>(low, visit, words, piece, r, 0);
            kernel::decode_piece<Excess, S>(high, visit, words, piece, r, 1);
            multiply_piece<S>(target.value[r], low, high, columns);
        }
        if constexpr (kPromoteK != 0)
            if ((piece + 1) * 32 % kPromoteK == 0)
                promote<S>(sums, partial, visit, x.scale, (piece + 1) * 32 - kPromoteK);
    }
    add_other_chain<S>(sums, partial);
}

template <bool Whole, GemvSpec S>
DG_DEVICE void multiply_visit(Sums<S>& sums, kernel::GemvRing<S>& ring, const GemvParams& p,
                              const kernel::GemvBlock& block, const GemvVisit<S>& visit,
                              const Tokens<S>& tokens, u32 index) {
    const u64 first = u64{index} * visit_k_of(S);
    TokenVisit<S> x;
    load_token_scales<Whole, S>(x, tokens, first, p.k);
    load_step<Whole, S>(x, tokens, first, 0, p.k);  // before what the ring may wait for
    ptx::SharedAddress stage = 0;
    if constexpr (Whole) stage = ring.next(p);
    // Two copies of the code: a branch at every rare scale would leave nothing to overlap with anything.
    if (row_of(S.w).scale == ScaleType::ue8m0 && visit.exceeds()) [[unlikely]]
        multiply_pieces<Whole, true, S>(sums, ring, stage, p, block, visit, x, tokens, index);
    else
        multiply_pieces<Whole, false, S>(sums, ring, stage, p, block, visit, x, tokens, index);
}

template <GemvSpec S>
DG_DEVICE Tokens<S> tokens_of(const GemvParams& p, u32 first, u32 count) {
    const u32 lane = ptx::lane_index();
    Tokens<S> tokens;
#pragma unroll
    for (u32 t = 0; t < Sums<S>::kTokenTiles; ++t) {
        const u32 mine = t * kMmaTileTokens + lane / 4;
        tokens.row[t] = mine < count ? p.x + (first + mine) * p.x_stride : nullptr;
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            const u32 column = t * kMmaTileTokens + lane % 4 * 2 + i;
            tokens.scale[t][i] = column < count ? p.x_scale + (first + column) * p.x_scale_stride : nullptr;
        }
    }
    return tokens;
}

template <GemvSpec S>
DG_DEVICE void run(const GemvParams& p) {
    static_assert(why_illegal(S) == nullptr, "no such kernel");
    constexpr bool kAhead = GemvVisit<S>::kAhead, kLater = Partials<S>::kLater;
    const u32 whole = S.vector ? p.k / visit_k_of(S) : 0, warp = kernel::group_warp();
    const u32 group = ptx::thread_index() / kGemvThreads;
    const u32 tiles = kernel::num_blocks<S>(p), stride = ptx::grid_size() * S.groups;
    u32 tile = group * ptx::grid_size() + ptx::block_index();
    if constexpr (S.dependent_launch) {
        ptx::grid_dependency_launch();
        if (S.vector && tile < tiles) kernel::prefetch_first<S>(p, tile);
    }
    Partials<S> partials(group);
    if constexpr (S.dependent_launch) ptx::grid_dependency_wait();
    if (tile >= tiles) return;
    kernel::GemvRing<S> ring;
    if constexpr (S.vector) ring.start(p, tile, stride, tiles, whole);
    const u32 first_token = ptx::block_index_y() * p.tokens_per_block;
    const u32 left = p.m - first_token, count = left < p.tokens_per_block ? left : p.tokens_per_block;
    const Tokens<S> tokens = tokens_of<S>(p, first_token, count);
    const u32 visits = static_cast<u32>(ceil_div(row_bytes_of(S.w, p.k), u64{kGemvVisitBytes}));
    GemvRow rows[S.row_tiles][kLaneRows];
    find_rows<S>(rows, p, kernel::find_block<S>(p, tile));
    GemvVisit<S> ahead;
    if (kAhead && warp < whole) kernel::load_beside<true, S>(ahead, p, rows, warp);
    while (tile < tiles) {
        Sums<S> sums;
        clear<S>(sums);
        u32 visit = warp;
        for (; visit < whole; visit += kGemvWarps) {
            GemvVisit<S> beside = ahead;
            if constexpr (!kAhead)
                kernel::load_beside<true, S>(beside, p, rows, visit);
            else if (visit + kGemvWarps < whole)
                kernel::load_beside<true, S>(ahead, p, rows, visit + kGemvWarps);
            multiply_visit<true, S>(sums, ring, p, {}, beside, tokens, visit);
        }
        for (; visit < visits; visit += kGemvWarps) {
            GemvVisit<S> beside;
            kernel::load_beside<false, S>(beside, p, rows, visit);
            multiply_visit<false, S>(sums, ring, p, kernel::find_block<S>(p, tile), beside, tokens, visit);
        }
        if (kLater && partials.count != 0)
            partials.finish(p, kernel::find_block<S>(p, tile - stride), first_token, count);
        if constexpr (!kLater)
            partials.leave(&sums), partials.finish(p, kernel::find_block<S>(p, tile), first_token, count);
        tile += stride;
        if (tile < tiles) {
            find_rows<S>(rows, p, kernel::find_block<S>(p, tile));
            if (kAhead && warp < whole) kernel::load_beside<true, S>(ahead, p, rows, warp);
        }
        if constexpr (kLater) partials.leave(&sums);
    }
    if constexpr (kLater) partials.finish(p, kernel::find_block<S>(p, tile - stride), first_token, count);
}

}  // namespace gemv_detail

template <GemvSpec S>
DG_KERNEL(threads_of(S), 1)
gemv(DG_GRID_CONSTANT const GemvParams p) {
    gemv_detail::run<S>(p);
}

}  // namespace deep_gemm
