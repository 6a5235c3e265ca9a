// y = x W^T for few tokens whose x fits shared memory: the sums of gemv.cuh, to the same bit, in fewer
// instructions, which are what bounds narrow weights there.
//
// Work is dealt as in gemv.cuh: a group of eight warps takes tiles of rows in turn, its warps take turns
// along K, and each streams its share of all tiles through a ring in shared memory. Here the scales of a
// visit come through the ring with its weights, and the tokens lie in shared memory for as long as the kernel
// runs, decoded and in order (gemv_tokens.h). Launched by op/linear.cpp.
#pragma once

#include <deep_gemm/kernel/gemv_resident_ring.h>
#include <deep_gemm/kernel/gemv_tokens.h>

namespace deep_gemm {
namespace gemv_detail {

template <bool Excess, GemvSpec S>
DG_DEVICE void multiply_resident(Sums<S>& sums, const kernel::GemvWords<S> (&words)[steps_of_visit(S)],
                                 const GemvVisit<S>& visit, const TokensInSmem<S>& tokens, u32 index) {
    constexpr u32 kPromoteK = promote_k_of(S), kPieces = TokensInSmem<S>::kLanePieces;
    TokenScales<S> x_scale;
    tokens.read_scales(x_scale, index);
    Sums<S> partial;
#pragma unroll
    for (u32 piece = 0; piece < kPieces * steps_of_visit(S); ++piece) {
        Sums<S>& target = sums_of_piece<S>(sums, partial, piece);
        u32 columns[Sums<S>::kTokenTiles][4];
        tokens.read(columns, index, piece);
#pragma unroll
        for (u32 r = 0; r < S.row_tiles; ++r) {
            u32 low[4], high[4];
            kernel::decode_piece<Excess, S>(low, visit, words[piece / kPieces], piece, r, 0);
            kernel::decode_piece<Excess, S>(high, visit, words[piece / kPieces], piece, r, 1);
            multiply_piece<S>(target.value[r], low, high, columns);
        }
        if constexpr (kPromoteK != 0)
            if ((piece + 1) * 32 % kPromoteK == 0)
                promote<S>(sums, partial, visit, x_scale, (piece + 1) * 32 - kPromoteK);
    }
    add_other_chain<S>(sums, partial);
}

template <GemvSpec S>
DG_DEVICE void multiply_resident(Sums<S>& sums, const kernel::GemvWords<S> (&words)[steps_of_visit(S)],
                                 const GemvVisit<S>& visit, const TokensInSmem<S>& tokens, u32 index) {
    if (row_of(S.w).scale == ScaleType::ue8m0 && visit.exceeds()) [[unlikely]]
        multiply_resident<true, S>(sums, words, visit, tokens, index);
    else
        multiply_resident<false, S>(sums, words, visit, tokens, index);
}

template <GemvSpec S>
DG_DEVICE void run_resident(const GemvParams& p) {
    static_assert(why_illegal(S) == nullptr, "no such kernel");
    constexpr bool kLater = Partials<S>::kLater;
    const u32 group = ptx::thread_index() / kGemvThreads, warp = kernel::group_warp();
    const u32 tiles = kernel::num_blocks<S>(p), stride = ptx::grid_size() * S.groups;
    u32 tile = group * ptx::grid_size() + ptx::block_index();
    if constexpr (S.dependent_launch) {
        ptx::grid_dependency_launch();
        if (tile < tiles) kernel::prefetch_first<S>(p, tile);
    }
    Partials<S> partials(group);
    if constexpr (S.dependent_launch) ptx::grid_dependency_wait();
    kernel::ResidentRing<S> ring;
    const u32 first_token = ptx::block_index_y() * p.tokens_per_block;
    const u32 left = p.m - first_token, count = left < p.tokens_per_block ? left : p.tokens_per_block;
    TokensInSmem<S> tokens;
    // Asked for before the weights, behind which they would wait.
    tokens.load(p, ptx::dynamic_smem() + plan_smem(S).bytes, first_token, count,
                [&] { ring.start(p, tile, stride, tiles); });
    const u32 visits = ceil_div(p.k, visit_k_of(S));
    for (; tile < tiles; tile += stride) {
        Sums<S> sums;
        clear<S>(sums);
        for (u32 visit = warp; visit < visits; visit += kGemvWarps) {
            kernel::GemvWords<S> words[steps_of_visit(S)];
            GemvVisit<S> beside;
            ring.next(words, beside, p);
            multiply_resident<S>(sums, words, beside, tokens, visit);
        }
        if (kLater && partials.count != 0)
            partials.finish(p, kernel::find_block<S>(p, tile - stride), first_token, count);
        partials.leave(&sums);
        if constexpr (!kLater) partials.finish(p, kernel::find_block<S>(p, tile), first_token, count);
    }
    if (kLater && partials.count != 0)
        partials.finish(p, kernel::find_block<S>(p, tile - stride), first_token, count);
}

}  // namespace gemv_detail

template <GemvSpec S>
DG_KERNEL(threads_of(S), 1)
gemv_resident(DG_GRID_CONSTANT const GemvParams p) {
    gemv_detail::run_resident<S>(p);
}

}  // namespace deep_gemm
