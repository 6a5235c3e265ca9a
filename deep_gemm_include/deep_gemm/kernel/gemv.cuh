// y = x W^T for few tokens, any architecture since sm_80, bound by the stream of weights.
//
// A block owns 16 rows of W (or 32) and all its tokens; its eight warps take turns along K, 128 bytes of
// every row at a time. mma.sync is a multiply-add unit that reads each decoded weight once for eight tokens:
// a lane loads 16 contiguous bytes of a row, and since the order of K inside an mma is free as long as both
// operands agree, these bytes are its fragments as they are. With tokens as columns, a token's result depends
// on its own column only, whatever the others hold.
//
// Order of the sum of one row (a function of W's layout and K): warp w adds visits w, w + 8, ... in turn,
// each in the order of mma.sync, scaled by fma after every promote_k elements; then warps 0 to 7 are added in
// turn. Launched by op/linear.cpp.
#pragma once

#include <deep_gemm/kernel/gemv_load.h>
#include <deep_gemm/kernel/gemv_store.h>
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

/// sum += scale of w * scale of x * partial, of the block of K that starts at element `element` of the row.
template <bool Whole, GemvSpec S>
DG_DEVICE void promote(Sums<S>& sums, const Sums<S>& partial, const GemvVisit<S>& visit,
                       const Tokens<S>& tokens, u64 element, u32 inside_visit, u32 k) {
    using Visit = GemvVisit<S>;
    if (!Whole && element >= k) return;
#pragma unroll
    for (u32 t = 0; t < Sums<S>::kTokenTiles; ++t) {
        float scale_x[2] = {1.0f, 1.0f};
        if constexpr (block_k_of(S.x) != 0) {
#pragma unroll
            for (u32 i = 0; i < 2; ++i)
                scale_x[i] = tokens.scale[t][i]
                                 ? ptx::ld_cached_f32(tokens.scale[t][i] + element / block_k_of(S.x))
                                 : 0.0f;
        }
#pragma unroll
        for (u32 r = 0; r < S.row_tiles; ++r) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                float scale = scale_x[i % 2];
                if constexpr (Visit::kScaledBlocks != 0) {
                    const float of_w = visit.scale[inside_visit / Visit::kRow.block_k][r][i / 2];
                    scale = block_k_of(S.x) != 0 ? ptx::mul_rn(of_w, scale) : of_w;
                }
                sums.value[r][t][i] = ptx::fma_rn(scale, partial.value[r][t][i], sums.value[r][t][i]);
            }
        }
    }
}

template <bool Whole, GemvSpec S>
DG_DEVICE void multiply_visit(Sums<S>& sums, const GemvVisit<S>& visit, const Tokens<S>& tokens, u32 index,
                              u32 k) {
    constexpr u32 kPromoteK = promote_k_of(S);
    constexpr u32 kPieces = visit_k_of(S) / 32;  // the four lanes of a row take 32 elements a piece
    const u64 first = u64{index} * visit_k_of(S);
    Sums<S> partial;
    Sums<S>& target = kPromoteK ? partial : sums;
#pragma unroll
    for (u32 piece = 0; piece < kPieces; ++piece) {
        if (kPromoteK && piece * 32 % kPromoteK == 0) clear<S>(partial);
        u32 x[Sums<S>::kTokenTiles][4];
#pragma unroll
        for (u32 t = 0; t < Sums<S>::kTokenTiles; ++t)
            kernel::load_tokens<Whole, S>(x[t], tokens.row[t], first + kernel::piece_element<S>(piece), k);
#pragma unroll
        for (u32 r = 0; r < S.row_tiles; ++r) {
            u32 low[4], high[4];
            kernel::decode_piece<S>(low, visit, piece, r, 0);
            kernel::decode_piece<S>(high, visit, piece, r, 1);
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                const u32 a[4] = {low[2 * half], high[2 * half], low[2 * half + 1], high[2 * half + 1]};
#pragma unroll
                for (u32 t = 0; t < Sums<S>::kTokenTiles; ++t) {
                    if constexpr (S.w == Quant::fp16)
                        ptx::mma_m16n8k16_f16(target.value[r][t], a, x[t][2 * half], x[t][2 * half + 1]);
                    else
                        ptx::mma_m16n8k16_bf16(target.value[r][t], a, x[t][2 * half], x[t][2 * half + 1]);
                }
            }
        }
        if constexpr (kPromoteK != 0) {
            if ((piece + 1) * 32 % kPromoteK == 0) {
                const u32 inside = (piece + 1) * 32 - kPromoteK;
                promote<Whole, S>(sums, partial, visit, tokens, first + inside, inside, k);
            }
        }
    }
}

/// Every visit of this warp.
template <GemvSpec S>
DG_DEVICE void multiply_rows(Sums<S>& sums, const GemvParams& p,
                             const GemvRow (&rows)[S.row_tiles][kLaneRows], const Tokens<S>& tokens) {
    constexpr u32 kInFlight = visits_in_flight_of(S);
    const u32 visits = static_cast<u32>(ceil_div(row_bytes_of(S.w, p.k), u64{kGemvVisitBytes}));
    const u32 whole = S.vector ? p.k / visit_k_of(S) : 0;
    u32 index = ptx::warp_index();
    GemvVisit<S> visit[kInFlight];
    for (; index + (kInFlight - 1) * kGemvWarps < whole; index += kInFlight * kGemvWarps) {
#pragma unroll
        for (u32 i = 0; i < kInFlight; ++i)
            kernel::load_visit<true, S>(visit[i], p, rows, index + i * kGemvWarps);
#pragma unroll
        for (u32 i = 0; i < kInFlight; ++i)
            multiply_visit<true, S>(sums, visit[i], tokens, index + i * kGemvWarps, p.k);
    }
    if constexpr (kInFlight > 1) {
        for (; index < whole; index += kGemvWarps) {
            kernel::load_visit<true, S>(visit[0], p, rows, index);
            multiply_visit<true, S>(sums, visit[0], tokens, index, p.k);
        }
    }
    for (; index < visits; index += kGemvWarps) {
        kernel::load_visit<false, S>(visit[0], p, rows, index);
        multiply_visit<false, S>(sums, visit[0], tokens, index, p.k);
    }
}

/// Row `index` of a matrix; rows beyond the last are the last, and their results are dropped.
template <GemvSpec S>
DG_DEVICE GemvRow row_at(const GemvMatrix& w, u32 index, u32 k) {
    constexpr QuantRow kRow = row_of(S.w);
    const u64 row = index < w.n ? index : w.n - 1;
    const u64 scale = row / kRow.block_rows * scale_columns_of(S.w, k);
    return {w.data + row * w.row_stride, static_cast<const u8*>(w.scales) + scale * bytes_of(kRow.scale),
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

/// The eight warps' sums of element `element` of a fragment, of tile r of rows and t of tokens, in warp
/// order.
template <GemvSpec S>
DG_DEVICE float sum_of_warps(ptx::SharedAddress partial, u32 element) {
    constexpr u32 kWarpElements = kMmaTileRows * S.row_tiles * S.tokens;
    float sum = ptx::ld_shared_f32(partial + element * 4);
#pragma unroll
    for (u32 warp = 1; warp < kGemvWarps; ++warp)
        sum = ptx::add_rn(sum, ptx::ld_shared_f32(partial + (warp * kWarpElements + element) * 4));
    return sum;
}

template <GemvSpec S>
DG_DEVICE void store_block(const GemvParams& p, const kernel::GemvBlock& block, const Sums<S>& sums,
                           u32 first_token, u32 count) {
    constexpr u32 kTokenTiles = Sums<S>::kTokenTiles;
    constexpr u32 kTileElements = kMmaTileRows * kMmaTileTokens;
    constexpr float kRemainder =
        row_of(S.w).element == Format::fp4_e2m1 ? tile::e2m1_remainder(row_of(S.w).scale) : 1.0f;
    const u32 lane = ptx::lane_index();
    const ptx::SharedAddress partial = ptx::dynamic_smem();
#pragma unroll
    for (u32 r = 0; r < S.row_tiles; ++r) {
#pragma unroll
        for (u32 t = 0; t < kTokenTiles; ++t) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const u32 tile = (ptx::warp_index() * S.row_tiles + r) * kTokenTiles + t;
                ptx::st_shared_f32(partial + (tile * kTileElements + i * 32 + lane) * 4, sums.value[r][t][i]);
            }
        }
    }
    ptx::sync_threads();
    constexpr bool kPaired = S.epilogue == GemvEpilogue::swiglu;
    constexpr u32 kElements = (kPaired ? 1 : S.row_tiles) * kTokenTiles * kTileElements;
    for (u32 element = ptx::thread_index(); element < kElements; element += kGemvThreads) {
        const u32 of = element % 32, i = element / 32 % 4, tile = element / kTileElements;
        const u32 row = block.first_row + tile / kTokenTiles * kMmaTileRows + of / 4 + i / 2 * 8;
        const u32 token = tile % kTokenTiles * kMmaTileTokens + of % 4 * 2 + i % 2;
        const GemvMatrix& w = p.w[block.matrix];
        if (row >= w.n || token >= count) continue;
        float value = kernel::scaled<S>(w, row, ptx::mul_rn(sum_of_warps<S>(partial, element), kRemainder));
        if constexpr (kPaired) {
            const float other = ptx::mul_rn(sum_of_warps<S>(partial, kElements + element), kRemainder);
            value = kernel::swiglu(value, kernel::scaled<S>(p.w[1], row, other), p.swiglu_limit);
        }
        kernel::finish<S>(w, first_token + token, row, value);
    }
}

template <GemvSpec S>
DG_DEVICE void run(const GemvParams& p) {
    static_assert(why_illegal(S) == nullptr, "no such kernel");
    if constexpr (S.dependent_launch) {
        ptx::grid_dependency_launch();
        ptx::grid_dependency_wait();
    }
    const kernel::GemvBlock block = kernel::find_block<S>(p);
    const u32 first_token = ptx::block_index_y() * p.tokens_per_block;
    const u32 left = p.m - first_token, count = left < p.tokens_per_block ? left : p.tokens_per_block;
    GemvRow rows[S.row_tiles][kLaneRows];
#pragma unroll
    for (u32 tile = 0; tile < S.row_tiles; ++tile) {
        const bool paired = S.epilogue == GemvEpilogue::swiglu;
        const GemvMatrix& w = p.w[paired ? tile : block.matrix];
        const u32 row = block.first_row + (paired ? 0 : tile * kMmaTileRows) + ptx::lane_index() / 4;
        rows[tile][0] = row_at<S>(w, row, p.k);
        rows[tile][1] = row_at<S>(w, row + 8, p.k);
    }
    Sums<S> sums;
    clear<S>(sums);
    multiply_rows<S>(sums, p, rows, tokens_of<S>(p, first_token, count));
    store_block<S>(p, block, sums, first_token, count);
}

}  // namespace gemv_detail

template <GemvSpec S>
DG_KERNEL(kGemvThreads, ctas_per_sm_of(S))
gemv(DG_GRID_CONSTANT const GemvParams p) {
    gemv_detail::run<S>(p);
}

}  // namespace deep_gemm
