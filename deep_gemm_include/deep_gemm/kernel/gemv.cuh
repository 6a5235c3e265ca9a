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
// each in the order of mma.sync, scaled by fma after every promote_k elements; then warps 0 to 7 are added in
// turn. Launched by op/linear.cpp.
#pragma once

#include <deep_gemm/kernel/gemv_load.h>
#include <deep_gemm/kernel/gemv_ring.h>
#include <deep_gemm/kernel/gemv_store.h>
#include <deep_gemm/ptx/mbarrier.h>
#include <deep_gemm/ptx/mma_sync.h>

namespace deep_gemm {
namespace gemv_detail {

using kernel::GemvRow;
using kernel::GemvVisit;
using kernel::kLaneRows;

/// Sums of a warp: [tile of rows][tile of tokens][fragment element].
template <GemvSpec S>
struct Sums {
    static constexpr u32 kTokenTiles = S.tokens / kMmaTileTokens;
    float value[S.row_tiles][kTokenTiles][4];
};

template <GemvSpec S>
struct Tokens {
    const u8* row[Sums<S>::kTokenTiles];          // of token lane / 4 of each tile; null: there is none
    const float* scale[Sums<S>::kTokenTiles][2];  // of tokens 2 (lane % 4) and the next
};

template <GemvSpec S>
DG_DEVICE void clear(Sums<S>& sums) {
    for (auto& tile : sums.value)
        for (auto& fragment : tile)
            for (float& value : fragment) value = 0;
}

/// What a lane needs of the tokens for one visit: scales, and the fragments of one step.
template <GemvSpec S>
struct TokenVisit {
    static constexpr u32 kPieces = lane_elements_of(S) / tile::kPieceElements;  // of a step
    static constexpr u32 kScales = block_k_of(S.x) ? visit_k_of(S) / block_k_of(S.x) : 0;

    u32 x[kPieces][Sums<S>::kTokenTiles][4];
    float scale[kScales + 1][Sums<S>::kTokenTiles][2];
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
    for (u32 block = 0; block < TokenVisit<S>::kScales; ++block) {
        const u64 element = first + block * block_k_of(S.x);
#pragma unroll
        for (u32 t = 0; t < Sums<S>::kTokenTiles; ++t)
#pragma unroll
            for (u32 i = 0; i < 2; ++i)
                to.scale[block][t][i] =
                    tokens.scale[t][i] && (Whole || element < k)
                        ? ptx::ld_cached_f32(tokens.scale[t][i] + element / block_k_of(S.x))
                        : 0.0f;
    }
}

/// sum += scale of w * scale of x * partial, of the block of K that starts `inside` elements into the visit.
template <GemvSpec S>
DG_DEVICE void promote(Sums<S>& sums, const Sums<S>& partial, const GemvVisit<S>& visit,
                       const TokenVisit<S>& tokens, u32 inside) {
    using Visit = GemvVisit<S>;
#pragma unroll
    for (u32 t = 0; t < Sums<S>::kTokenTiles; ++t) {
#pragma unroll
        for (u32 r = 0; r < S.row_tiles; ++r) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                float scale = 1.0f;
                if constexpr (block_k_of(S.x) != 0) scale = tokens.scale[inside / block_k_of(S.x)][t][i % 2];
                if constexpr (Visit::kScaledBlocks != 0) {
                    const float of_w = visit.scale[inside / Visit::kRow.block_k][r][i / 2];
                    scale = block_k_of(S.x) != 0 ? ptx::mul_rn(of_w, scale) : of_w;
                }
                sums.value[r][t][i] = ptx::fma_rn(scale, partial.value[r][t][i], sums.value[r][t][i]);
            }
        }
    }
}

/// One visit: its weights are in the ring's `stage`, or (not Whole) are read byte by byte.
template <bool Whole, bool Excess, GemvSpec S>
DG_DEVICE void multiply_pieces(Sums<S>& sums, const kernel::GemvRing<S>& ring, ptx::SharedAddress stage,
                               const GemvParams& p, const kernel::GemvBlock& block, const GemvVisit<S>& visit,
                               TokenVisit<S>& x, const Tokens<S>& tokens, u32 index) {
    constexpr u32 kPromoteK = promote_k_of(S), kPieces = TokenVisit<S>::kPieces;
    const u64 first = u64{index} * visit_k_of(S);
    Sums<S> partial;
    Sums<S>& target = kPromoteK ? partial : sums;
    kernel::GemvWords<S> words;
#pragma unroll
    for (u32 piece = 0; piece < kPieces * steps_of_visit(S); ++piece) {
        if (piece % kPieces == 0) {
            if (piece != 0) load_step<Whole, S>(x, tokens, first, piece / kPieces, p.k);
            if constexpr (Whole)
                ring.read(words, stage, piece / kPieces);
            else
                kernel::load_words<S>(words, p, block, index, piece / kPieces);
        }
        if (kPromoteK && piece * 32 % kPromoteK == 0) clear<S>(partial);
        const auto& columns = x.x[piece % kPieces];
#pragma unroll
        for (u32 r = 0; r < S.row_tiles; ++r) {
            u32 low[4], high[4];
            kernel::decode_piece<Excess, S>(low, visit, words, piece, r, 0);
            kernel::decode_piece<Excess, S>(high, visit, words, piece, r, 1);
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                const u32 a[4] = {low[2 * half], high[2 * half], low[2 * half + 1], high[2 * half + 1]};
#pragma unroll
                for (u32 t = 0; t < Sums<S>::kTokenTiles; ++t) {
                    const u32 b0 = columns[t][2 * half], b1 = columns[t][2 * half + 1];
                    if constexpr (multiplies_f16(S))
                        ptx::mma_m16n8k16_f16(target.value[r][t], a, b0, b1);
                    else
                        ptx::mma_m16n8k16_bf16(target.value[r][t], a, b0, b1);
                }
            }
        }
        if constexpr (kPromoteK != 0)
            if ((piece + 1) * 32 % kPromoteK == 0)
                promote<S>(sums, partial, visit, x, (piece + 1) * 32 - kPromoteK);
    }
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

/// Row `row` of tile `tile` of a block.
template <GemvSpec S>
DG_DEVICE GemvRow row_at(const GemvParams& p, const kernel::GemvBlock& block, u32 tile, u32 row) {
    constexpr QuantRow kRow = row_of(S.w);
    const GemvMatrix& w = kernel::row_of_block<S>(p, block, tile, row);
    const u64 scale = u64{row} / kRow.block_rows * scale_columns_of(S.w, p.k);
    return {static_cast<const u8*>(w.scales) + scale * bytes_of(kRow.scale),
            kRow.has_zero ? w.zeros + scale : nullptr};
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

/// Where the warps of a group leave their sums: two places that take turns. On sm_90 and newer nobody waits
/// for the slowest warp of a tile: sums are added a tile later, when they have long been there.
template <GemvSpec S>
struct Partials {
    static constexpr bool kLater = S.dependent_launch;  // the architecture has mbarrier.try_wait
    static constexpr bool kPaired = S.epilogue == GemvEpilogue::swiglu;
    static constexpr u32 kTokenTiles = Sums<S>::kTokenTiles;
    static constexpr u32 kTileElements = kMmaTileRows * kMmaTileTokens;
    static constexpr u32 kElements = (kPaired ? 1 : S.row_tiles) * kTokenTiles * kTileElements;
    static constexpr u32 kAdders = kElements < kGemvThreads ? kElements / 32 : kGemvWarps;  // warps that add
    static constexpr u32 kWarpElements = kMmaTileRows * S.row_tiles * S.tokens;

    ptx::SharedAddress first, barriers;
    u32 count = 0;  // tiles whose sums were left

    DG_DEVICE ptx::SharedAddress place(u32 tile) const {
        return first + tile % 2 * plan_smem(S).partial_bytes;
    }
    DG_DEVICE ptx::SharedAddress full(u32 tile) const { return barriers + tile % 2 * 8; }
    DG_DEVICE ptx::SharedAddress empty(u32 tile) const { return barriers + 16 + tile % 2 * 8; }

    DG_DEVICE explicit Partials(u32 group) {
        constexpr GemvSmemPlan kPlan = plan_smem(S);
        first = ptx::dynamic_smem() + kPlan.barriers - (S.groups - group) * 2 * kPlan.partial_bytes;
        barriers = ptx::dynamic_smem() + kPlan.barriers + group * kGemvBarrierBytes;
        if constexpr (!kLater) return;
        if (kernel::group_thread() == 0) {
            for (u32 i = 0; i < 2; ++i) {
                ptx::mbarrier_init(full(i), kGemvWarps);
                ptx::mbarrier_init(empty(i), kAdders);
            }
        }
        ptx::named_barrier_sync(1 + group, kGemvThreads);
    }

    DG_DEVICE void leave(const Sums<S>& sums) {
        const u32 lane = ptx::lane_index();
        if constexpr (kLater) ptx::mbarrier_wait(empty(count), count / 2 % 2 ^ 1);
        const ptx::SharedAddress mine = place(count) + (kernel::group_warp() * kWarpElements + lane) * 4;
#pragma unroll
        for (u32 r = 0; r < S.row_tiles; ++r)
#pragma unroll
            for (u32 t = 0; t < kTokenTiles; ++t)
#pragma unroll
                for (u32 i = 0; i < 4; ++i)
                    ptx::st_shared_f32(mine + ((r * kTokenTiles + t) * kTileElements + i * 32) * 4,
                                       sums.value[r][t][i]);
        if constexpr (kLater) {
            ptx::sync_warp();
            if (lane == 0) ptx::mbarrier_arrive(full(count));
        } else {
            ptx::named_barrier_sync(1 + ptx::thread_index() / kGemvThreads, kGemvThreads);
        }
        ++count;
    }

    /// The eight warps' sums of an element, in warp order.
    DG_DEVICE float sum_of_warps(u32 element) const {
        const ptx::SharedAddress partial = place(count - 1) + element * 4;
        float sum = ptx::ld_shared_f32(partial);
#pragma unroll
        for (u32 warp = 1; warp < kGemvWarps; ++warp)
            sum = ptx::add_rn(sum, ptx::ld_shared_f32(partial + warp * kWarpElements * 4));
        constexpr float kRemainder =
            row_of(S.w).element == Format::fp4_e2m1 ? tile::e2m1_remainder(row_of(S.w).scale) : 1.0f;
        return ptx::mul_rn(sum, kRemainder);
    }

    /// Adds and stores the sums that were left last; `block` is their tile.
    DG_DEVICE void finish(const GemvParams& p, const kernel::GemvBlock& block, u32 first_token,
                          u32 tokens) const {
        if (kernel::group_warp() >= kAdders) return;
        if constexpr (kLater) ptx::mbarrier_wait(full(count - 1), (count - 1) / 2 % 2);
        for (u32 element = kernel::group_thread(); element < kElements; element += kGemvThreads) {
            const u32 of = element % 32, i = element / 32 % 4, tile = element / kTileElements;
            const u32 row = block.first_row + tile / kTokenTiles * kMmaTileRows + of / 4 + i / 2 * 8;
            const u32 token = tile % kTokenTiles * kMmaTileTokens + of % 4 * 2 + i % 2;
            const GemvMatrix& w = p.w[block.matrix];
            if (row >= w.n || token >= tokens) continue;
            float value = kernel::scaled<S>(w, row, sum_of_warps(element));
            if constexpr (kPaired) {
                const float other = kernel::scaled<S>(p.w[1], row, sum_of_warps(kElements + element));
                value = kernel::swiglu(value, other, p.swiglu_limit);
            }
            kernel::finish<S>(w, first_token + token, row, value);
        }
        if constexpr (kLater) {
            ptx::sync_warp();
            if (ptx::lane_index() == 0) ptx::mbarrier_arrive(empty(count - 1));
        }
    }
};

/// What the rows of a lane in a tile have beside their weights.
template <GemvSpec S>
DG_DEVICE void find_rows(GemvRow (&rows)[S.row_tiles][kLaneRows], const GemvParams& p,
                         const kernel::GemvBlock& block) {
#pragma unroll
    for (u32 i = 0; i < S.row_tiles * kLaneRows; ++i)
        rows[i / kLaneRows][i % kLaneRows] =
            row_at<S>(p, block, i / kLaneRows, ptx::lane_index() / 4 + i % kLaneRows * 8);
}

template <GemvSpec S>
DG_DEVICE void run(const GemvParams& p) {
    static_assert(why_illegal(S) == nullptr, "no such kernel");
    constexpr bool kAhead = GemvVisit<S>::kAhead, kLater = Partials<S>::kLater;
    const u32 whole = S.vector ? p.k / visit_k_of(S) : 0, warp = kernel::group_warp();
    const u32 group = ptx::thread_index() / kGemvThreads;
    const u32 tiles = kernel::num_blocks<S>(p), stride = ptx::grid_size() * S.groups;
    u32 tile = group * ptx::grid_size() + ptx::block_index();
    Partials<S> partials(group);
    if constexpr (S.dependent_launch) {
        ptx::grid_dependency_launch();
        if (S.vector && tile < tiles) kernel::prefetch_first<S>(p, tile);
        ptx::grid_dependency_wait();
    }
    if (tile >= tiles) return;
    kernel::GemvRing<S> ring;
    if constexpr (S.vector) ring.start(p, tile, stride, tiles, whole);
    const u32 first_token = ptx::block_index_y() * p.tokens_per_block;
    const u32 left = p.m - first_token, count = left < p.tokens_per_block ? left : p.tokens_per_block;
    const Tokens<S> tokens = tokens_of<S>(p, first_token, count);
    const u32 visits = static_cast<u32>(ceil_div(row_bytes_of(S.w, p.k), u64{kGemvVisitBytes}));
    kernel::GemvBlock block = kernel::find_block<S>(p, tile);
    GemvRow rows[S.row_tiles][kLaneRows];
    find_rows<S>(rows, p, block);
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
            multiply_visit<true, S>(sums, ring, p, block, beside, tokens, visit);
        }
        for (; visit < visits; visit += kGemvWarps) {
            GemvVisit<S> beside;
            kernel::load_beside<false, S>(beside, p, rows, visit);
            multiply_visit<false, S>(sums, ring, p, block, beside, tokens, visit);
        }
        if (kLater && partials.count != 0)
            partials.finish(p, kernel::find_block<S>(p, tile - stride), first_token, count);
        if constexpr (!kLater) partials.leave(sums), partials.finish(p, block, first_token, count);
        tile += stride;
        if (tile < tiles) {
            block = kernel::find_block<S>(p, tile);
            find_rows<S>(rows, p, block);
            if (kAhead && warp < whole) kernel::load_beside<true, S>(ahead, p, rows, warp);
        }
        if constexpr (kLater) partials.leave(sums);
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
