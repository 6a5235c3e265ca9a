// The tokens of a block in shared memory, as the pairs that mma.sync takes: decoded and put in order once
// instead of at every visit of every tile of rows.
//
// A token is a run of 16-byte vectors, each a piece of one lane: four lanes of a row read 64 bytes in a row.
// Elements beyond k are zeros. Tokens that a tile of eight lacks are the first one: their columns are
// dropped.
#pragma once

#include <deep_gemm/kernel/gemv_sums.h>
#include <deep_gemm/ptx/shared.h>

namespace deep_gemm::gemv_detail {

template <GemvSpec S>
struct TokensInSmem {
    static constexpr u32 kTokenTiles = Sums<S>::kTokenTiles;
    static constexpr u32 kLanePieces = lane_elements_of(S) / tile::kPieceElements;  // of a step
    static constexpr u32 kStepVectors = 4 * kLanePieces;
    static constexpr u32 kVisitBytes = visit_k_of(S) * 2;
    static constexpr u32 kBlockK = block_k_of(S.x) ? block_k_of(S.x) : visit_k_of(S);

    ptx::SharedAddress row[kTokenTiles];  // of token lane / 4 of each tile, from this lane's first piece
    ptx::SharedAddress scales;            // of this lane's two tokens, block 0

    static constexpr Packing kPacking = row_of(S.w).packing;

    /// First element of vector `i` of a token, eight elements in a row.
    static DG_DEVICE u32 element_of(u32 i) {
        if (kPacking == Packing::fragments) return i * 8;
        const u32 step = i / kStepVectors, inside = i % kStepVectors / 4, column = i % 4;
        const u32 first = step * 4 * lane_elements_of(S);
        if (kPacking == Packing::interleaved) return first + inside * 32 + column * 8;
        return first + column * lane_elements_of(S) + inside * 8;
    }
    /// Where its first pair lies in the token. With Packing::fragments the four pairs are for one piece each.
    static DG_DEVICE u32 offset_of(u32 i) {
        return kPacking == Packing::fragments ? i / 16 * 256 + i % 16 / 4 * 16 + i % 4 * 4 : i * 16;
    }
    static DG_DEVICE void store(ptx::SharedAddress to, const u32 (&fetched)[4]) {
        u32 pair[4];
        kernel::arrange_tokens<S>(pair, fetched);
        if constexpr (kPacking == Packing::fragments)
            for (u32 q = 0; q < 4; ++q) ptx::st_shared_u32(to + q * 64, pair[q]);
        else
            ptx::st_shared_v4_u32(to, {pair[0], pair[1], pair[2], pair[3]});
    }

    /// Copies tokens first to first + count - 1; meanwhile() runs when the first of them are on their way.
    /// Scope: the block.
    template <typename Meanwhile>
    DG_DEVICE void load(const GemvParams& p, ptx::SharedAddress to, u32 first, u32 count,
                        const Meanwhile& meanwhile) {
        const u32 pitch = x_pitch_of(S, p.k), lane = ptx::lane_index();
        constexpr u32 kVisitVectors = visit_k_of(S) / tile::kPieceElements;
        const u32 whole = p.k / visit_k_of(S) * kVisitVectors,
                  vectors = ceil_div(p.k, visit_k_of(S)) * kVisitVectors;
        const auto fetch = [&](u32(&words)[4], u32 token, u32 i) {
            kernel::fetch_tokens<true, S>(words, p.x + (first + token) * p.x_stride, element_of(i), p.k);
            return to + token * pitch + offset_of(i);
        };
        const auto copy = [&] { kernel::copy_vectors(count, whole, threads_of(S), fetch, store, meanwhile); };
        const ptx::SharedAddress scale = to + count * pitch;
        if constexpr (block_k_of(S.x) != 0)
            kernel::copy_token_scales<S>(p, scale, first, count, ceil_div(p.k, kBlockK),
                                         vectors * tile::kPieceElements / kBlockK, copy);
        else
            copy();
        if (whole != vectors) {
            for (u32 i = whole + ptx::thread_index(); i < vectors; i += threads_of(S)) {
                for (u32 token = 0; token < count; ++token) {
                    u32 words[4];
                    kernel::fetch_tokens<false, S>(words, p.x + (first + token) * p.x_stride, element_of(i),
                                                   p.k);
                    store(to + token * pitch + offset_of(i), words);
                }
            }
        }
        ptx::sync_threads();
#pragma unroll
        for (u32 t = 0; t < kTokenTiles; ++t) {
            const u32 mine = t * kMmaTileTokens + lane / 4;
            row[t] = to + (mine < count ? mine : 0) * pitch + lane % 4 * 16;
        }
        scales = scale + lane % 4 * 8;
    }

    /// Piece `piece` of visit `visit`.
    DG_DEVICE void read(u32 (&columns)[kTokenTiles][4], u32 visit, u32 piece) const {
#pragma unroll
        for (u32 t = 0; t < kTokenTiles; ++t) {
            const ptx::UInt4 v = ptx::ld_shared_v4_u32(row[t] + visit * kVisitBytes + piece * 64);
            columns[t][0] = v.x, columns[t][1] = v.y, columns[t][2] = v.z, columns[t][3] = v.w;
        }
    }

    DG_DEVICE void read_scales(TokenScales<S>& to, u32 visit) const {
#pragma unroll
        for (u32 block = 0; block < TokenScales<S>::kBlocks; ++block) {
            const u32 at = (visit * TokenScales<S>::kBlocks + block) * S.tokens;
#pragma unroll
            for (u32 t = 0; t < kTokenTiles; ++t) {
                const ptx::Float2 v = ptx::ld_shared_v2_f32(scales + (at + t * kMmaTileTokens) * 4);
                to.value[block][t][0] = v.x, to.value[block][t][1] = v.y;
            }
        }
    }
};

}  // namespace deep_gemm::gemv_detail
