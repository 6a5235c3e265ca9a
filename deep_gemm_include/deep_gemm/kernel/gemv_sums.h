// The sums of the small-batch kernels: what a warp of a group has of a tile of rows, and how the eight warps'
// sums meet and become y. The kernels that multiply with mma.sync share it: gemv.cuh and gemv_resident.cuh
// take a sum in one order, gemv_q8.cuh in another.
#pragma once

#include <deep_gemm/kernel/gemv_prefetch.h>
#include <deep_gemm/ptx/mbarrier.h>
#include <deep_gemm/ptx/mma_sync.h>

namespace deep_gemm::gemv_detail {

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
DG_DEVICE void clear(Sums<S>& sums) {
    for (auto& tile : sums.value)
        for (auto& fragment : tile)
            for (float& value : fragment) value = 0;
}

/// Whether every other piece of a visit has sums of its own, added behind it: where no scale parts the chain of
/// products, of which each waits for the one before.
template <GemvSpec S>
constexpr bool kTwoChains = promote_k_of(S) == 0 && row_bits_of(S) == 4;

/// Where the products of piece `piece` of a visit are added.
template <GemvSpec S>
DG_DEVICE Sums<S>& sums_of_piece(Sums<S>& sums, Sums<S>& partial, u32 piece) {
    if (promote_k_of(S) != 0) {
        if (piece * 32 % promote_k_of(S) == 0) clear<S>(partial);
        return partial;
    }
    if (!kTwoChains<S> || piece % 2 == 0) return sums;
    if (piece == 1) clear<S>(partial);
    return partial;
}

/// sums += partial, where that holds every other piece of a visit.
template <GemvSpec S>
DG_DEVICE void add_other_chain(Sums<S>& sums, const Sums<S>& partial) {
    if constexpr (kTwoChains<S>)
        for (u32 r = 0; r < S.row_tiles; ++r)
            for (u32 t = 0; t < Sums<S>::kTokenTiles; ++t)
                for (u32 i = 0; i < 4; ++i)
                    sums.value[r][t][i] = ptx::add_rn(sums.value[r][t][i], partial.value[r][t][i]);
}

/// Scales of the tokens for one visit: [block of K][tile of tokens], of tokens 2 (lane % 4) and the next.
template <GemvSpec S>
struct TokenScales {
    static constexpr u32 kBlocks = block_k_of(S.x) ? visit_k_of(S) / block_k_of(S.x) : 0;
    float value[kBlocks + 1][Sums<S>::kTokenTiles][2];
};

/// sums += a piece of K: 16 rows of W (eight weights of the lane's first row, and of its second) with every
/// token.
template <GemvSpec S>
DG_DEVICE void multiply_piece(float (&sums)[Sums<S>::kTokenTiles][4], const u32 (&low)[4],
                              const u32 (&high)[4], const u32 (&columns)[Sums<S>::kTokenTiles][4]) {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const u32 a[4] = {low[2 * half], high[2 * half], low[2 * half + 1], high[2 * half + 1]};
#pragma unroll
        for (u32 t = 0; t < Sums<S>::kTokenTiles; ++t) {
            const u32 b0 = columns[t][2 * half], b1 = columns[t][2 * half + 1];
            if constexpr (multiplies_f16(S))
                ptx::mma_m16n8k16_f16(sums[t], a, b0, b1);
            else
                ptx::mma_m16n8k16_bf16(sums[t], a, b0, b1);
        }
    }
}

/// sum += scale of w * scale of x * partial, of the block of K that starts `inside` elements into the visit.
template <GemvSpec S>
DG_DEVICE void promote(Sums<S>& sums, const Sums<S>& partial, const GemvVisit<S>& visit,
                       const TokenScales<S>& x_scale, u32 inside) {
    using Visit = GemvVisit<S>;
#pragma unroll
    for (u32 t = 0; t < Sums<S>::kTokenTiles; ++t) {
#pragma unroll
        for (u32 r = 0; r < S.row_tiles; ++r) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                float scale = 1.0f;
                if constexpr (block_k_of(S.x) != 0) scale = x_scale.value[inside / block_k_of(S.x)][t][i % 2];
                if constexpr (Visit::kScaledBlocks != 0) {
                    const float of_w = visit.scale[inside / Visit::kRow.block_k][r][i / 2];
                    scale = block_k_of(S.x) != 0 ? ptx::mul_rn(of_w, scale) : of_w;
                }
                sums.value[r][t][i] = ptx::fma_rn(scale, partial.value[r][t][i], sums.value[r][t][i]);
            }
        }
    }
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

/// What the rows of a lane in a tile have beside their weights.
template <GemvSpec S>
DG_DEVICE void find_rows(GemvRow (&rows)[S.row_tiles][kLaneRows], const GemvParams& p,
                         const kernel::GemvBlock& block) {
#pragma unroll
    for (u32 i = 0; i < S.row_tiles * kLaneRows; ++i)
        rows[i / kLaneRows][i % kLaneRows] =
            row_at<S>(p, block, i / kLaneRows, ptx::lane_index() / 4 + i % kLaneRows * 8);
}

/// Where the warps of a group leave their sums: two places that take turns, or one. On sm_90 and newer nobody
/// waits for the slowest warp of a tile: sums are added a tile later, when they have long been there.
template <GemvSpec S>
struct Partials {
    static constexpr bool kLater = S.dependent_launch;  // the architecture has mbarrier.try_wait
    static constexpr bool kPaired = S.epilogue == GemvEpilogue::swiglu;
    static constexpr u32 kPlaces = partial_places_of(S);
    static constexpr u32 kTokenTiles = Sums<S>::kTokenTiles;
    static constexpr u32 kTileElements = kMmaTileRows * kMmaTileTokens;
    static constexpr u32 kElements = (kPaired ? 1 : S.row_tiles) * kTokenTiles * kTileElements;
    static constexpr u32 kAdders = kElements < kGemvThreads ? kElements / 32 : kGemvWarps;  // warps that add
    static constexpr u32 kParts = is_q8(S) ? kQ8VisitBlocks : 1;  // sums of a warp for an element
    static constexpr u32 kPartElements = kMmaTileRows * S.row_tiles * S.tokens;

    ptx::SharedAddress first, barriers;
    u32 count = 0;  // tiles whose sums were left

    DG_DEVICE ptx::SharedAddress place(u32 tile) const {
        return first + tile % kPlaces * plan_smem(S).partial_bytes;
    }
    DG_DEVICE ptx::SharedAddress full(u32 tile) const { return barriers + tile % kPlaces * 8; }
    DG_DEVICE ptx::SharedAddress empty(u32 tile) const { return barriers + 16 + tile % kPlaces * 8; }

    DG_DEVICE explicit Partials(u32 group) {
        constexpr GemvSmemPlan kPlan = plan_smem(S);
        first = ptx::dynamic_smem() + kPlan.barriers - (S.groups - group) * kPlaces * kPlan.partial_bytes;
        barriers = ptx::dynamic_smem() + kPlan.barriers + group * barrier_bytes_of(S);
        if constexpr (!kLater) return;
        if (kernel::group_thread() == 0) {
            for (u32 i = 0; i < kPlaces; ++i) {
                ptx::mbarrier_init(full(i), kGemvWarps);
                ptx::mbarrier_init(empty(i), kAdders);
            }
        }
        ptx::named_barrier_sync(1 + group, kGemvThreads);
    }

    /// `sums`: kParts of them.
    DG_DEVICE void leave(const Sums<S>* sums) {
        const u32 lane = ptx::lane_index();
        if constexpr (kLater) ptx::mbarrier_wait(empty(count), count / kPlaces % 2 ^ 1);
        const ptx::SharedAddress mine =
            place(count) + (kernel::group_warp() * kParts * kPartElements + lane) * 4;
#pragma unroll
        for (u32 part = 0; part < kParts; ++part)
#pragma unroll
            for (u32 r = 0; r < S.row_tiles; ++r)
#pragma unroll
                for (u32 t = 0; t < kTokenTiles; ++t)
#pragma unroll
                    for (u32 i = 0; i < 4; ++i)
                        ptx::st_shared_f32(
                            mine +
                                (part * kPartElements + (r * kTokenTiles + t) * kTileElements + i * 32) * 4,
                            sums[part].value[r][t][i]);
        if constexpr (kLater) {
            ptx::sync_warp();
            if (lane == 0) ptx::mbarrier_arrive(full(count));
        } else {
            ptx::named_barrier_sync(1 + ptx::thread_index() / kGemvThreads, kGemvThreads);
        }
        ++count;
    }

    /// The sums of places First, First + Step, ... by butterfly: those furthest apart first.
    template <u32 Step>
    static DG_DEVICE float sum_of_places(ptx::SharedAddress first) {
        if constexpr (Step == kGemvWarps * kParts)
            return ptx::ld_shared_f32(first);
        else
            return ptx::add_rn(sum_of_places<2 * Step>(first),
                               sum_of_places<2 * Step>(first + Step * kPartElements * 4));
    }

    /// The eight warps' sums of an element: in warp order, or of Q8_0 as the 32 places of a block's index.
    DG_DEVICE float sum_of_warps(u32 element) const {
        const ptx::SharedAddress partial = place(count - 1) + element * 4;
        if constexpr (is_q8(S)) return sum_of_places<1>(partial);
        float sum = ptx::ld_shared_f32(partial);
#pragma unroll
        for (u32 warp = 1; warp < kGemvWarps; ++warp)
            sum = ptx::add_rn(sum, ptx::ld_shared_f32(partial + warp * kPartElements * 4));
        constexpr float kRemainder = row_of(S.w).element_bits != 4 ? 1.0f
                                     : row_of(S.w).element == Format::fp4_e2m1
                                         ? tile::e2m1_remainder(row_of(S.w).scale)
                                         : tile::kInt4Remainder;
        return ptx::mul_rn(sum, kRemainder);
    }

    /// Adds and stores the sums that were left last; `block` is their tile.
    DG_DEVICE void finish(const GemvParams& p, const kernel::GemvBlock& block, u32 first_token,
                          u32 tokens) const {
        // Warps take turns at adding: it is work that the others do not have.
        const u32 adder = (kernel::group_warp() + (count - 1) * kAdders) % kGemvWarps;
        if (adder >= kAdders) return;
        for (u32 element = adder * 32 + ptx::lane_index(); element < kElements; element += kAdders * 32) {
            const u32 of = element % 32, i = element / 32 % 4, tile = element / kTileElements;
            const u32 row = block.first_row + tile / kTokenTiles * kMmaTileRows + of / 4 + i / 2 * 8;
            const u32 token = tile % kTokenTiles * kMmaTileTokens + of % 4 * 2 + i % 2;
            const GemvMatrix& w = p.w[block.matrix];
            if (row >= block.end_row || token >= tokens) continue;
            // Scales are asked for before the wait for the slowest warp.
            const float scale = kernel::row_scale<S>(w, row);
            const float other_scale = kPaired ? kernel::row_scale<S>(p.w[1], row) : 1.0f;
            if constexpr (kLater) ptx::mbarrier_wait(full(count - 1), (count - 1) / kPlaces % 2);
            float value = kernel::scaled<S>(w, scale, sum_of_warps(element));
            if constexpr (kPaired) {
                const float other = kernel::scaled<S>(p.w[1], other_scale, sum_of_warps(kElements + element));
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

}  // namespace deep_gemm::gemv_detail
