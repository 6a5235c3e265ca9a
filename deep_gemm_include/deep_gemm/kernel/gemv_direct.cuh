// y = x W^T for few tokens and weights of 4 bits: the sums of gemv.cuh, to the same bit, in fewer
// instructions, which are what bounds them there.
//
// Work is dealt as in gemv.cuh: a group of eight warps takes tiles of rows in turn, and its warps take turns
// along K. A warp loads its share of all tiles into registers, S.stages visits ahead and across tiles, with
// the scales beside it; the tokens lie in shared memory, decoded and in order (gemv_tokens.h). What overlaps
// the end of the rows is loaded byte by byte and multiplied alike. The first visit of every warp is whole.
// Launched by op/linear.cpp.
#pragma once

#include <deep_gemm/kernel/gemv_tokens.h>

namespace deep_gemm {
namespace gemv_detail {

/// The scales of a lane's rows for one visit, as they lie in memory.
template <GemvSpec S>
struct ScaleWords {
    static constexpr QuantRow kRow = row_of(S.w);
    static constexpr bool kDecodes = GemvVisit<S>::kDecodesScales;
    static constexpr u32 kBlocks = visit_k_of(S) / kRow.block_k;
    // E2M1: the lane's own block or two, of each step; else all blocks of the visit.
    static constexpr u32 kLaneBlocks = lane_elements_of(S) / kRow.block_k;
    static constexpr u32 kBytes = kDecodes ? kLaneBlocks : kBlocks * bytes_of(kRow.scale);
    static constexpr u32 kWords = kDecodes ? steps_of_visit(S) : kBlocks * bytes_of(kRow.scale) / 4;
    static constexpr u32 kZeroWords = kRow.has_zero ? ceil_div(kBlocks, 4u) : 0;

    u32 scale[S.row_tiles][kLaneRows][kWords];
    u32 zero[S.row_tiles][kLaneRows][kZeroWords + 1];
};

/// `Bytes` bytes from a multiple of their number.
template <u32 Bytes, u32 Words>
DG_DEVICE void load_vector(u32 (&word)[Words], const u8* address) {
    if constexpr (Bytes == 1) {
        word[0] = ptx::ld_cached_u8(address);
    } else if constexpr (Bytes == 2) {
        word[0] = ptx::ld_cached_u16(address);
    } else if constexpr (Bytes == 4) {
        word[0] = ptx::float_bits(ptx::ld_cached_f32(address));
    } else if constexpr (Bytes == 8) {
        ptx::ld_cached_v2(address, word[0], word[1]);
    } else {
        const ptx::Words4 v = ptx::ld_cached_v4(address);
        for (u32 i = 0; i < 4; ++i) word[i] = v.word[i];
    }
}

/// A visit on its way or in registers.
template <GemvSpec S>
struct Slot {
    kernel::GemvWords<S> words[steps_of_visit(S)];
    ScaleWords<S> beside;

    DG_DEVICE GemvVisit<S> decoded() const {
        using Scales = ScaleWords<S>;
        GemvVisit<S> visit;
#pragma unroll
        for (u32 i = 0; i < S.row_tiles * kLaneRows; ++i) {
            const u32 r = i / kLaneRows, row = i % kLaneRows;
            if constexpr (Scales::kDecodes) {
                for (u32 step = 0; step < steps_of_visit(S); ++step)
                    visit.code[step][r][row] = beside.scale[r][row][step];
            } else {
#pragma unroll
                for (u32 block = 0; block < Scales::kBlocks; ++block) {
                    const ptx::Float2 pair = ptx::cvt_f32_f16x2(beside.scale[r][row][block / 2]);
                    visit.scale[block][r][row] = block % 2 ? pair.y : pair.x;
                    if constexpr (Scales::kRow.has_zero)
                        visit.zero[block][r][row] = beside.zero[r][row][block / 4] >> block % 4 * 8 & 0xff;
                }
            }
        }
        return visit;
    }
};

/// The loads of a warp, which run ahead of its sums through all tiles of its group.
template <GemvSpec S>
struct Loader {
    using Scales = ScaleWords<S>;
    static constexpr u32 kRuns = S.epilogue == GemvEpilogue::swiglu ? S.row_tiles : 1;  // of rows in one matrix
    static constexpr u32 kScaleStep = kGemvWarps * Scales::kBlocks * bytes_of(Scales::kRow.scale);

    const u8* data[S.row_tiles][kLaneRows];
    const u8* scales[S.row_tiles][kLaneRows];
    const u8* zeros[S.row_tiles][kLaneRows];
    u64 data_jump[kRuns];    // from behind the last visit of a tile to the first of the next
    u64 scale_jump, zero_jump;
    u32 tile, stride, tiles;  // of rows: the next visit's, how far it is to the group's next, how many there are
    u32 visit, whole;         // of the tile: the next, and how many are whole

    DG_DEVICE void enter(const GemvParams& p) {
        const kernel::GemvBlock block = kernel::find_block<S>(p, tile);
        const u32 lane = ptx::lane_index();
#pragma unroll
        for (u32 r = 0; r < S.row_tiles; ++r) {
#pragma unroll
            for (u32 i = 0; i < kLaneRows; ++i) {
                u32 row = lane / 4 + i * 8;
                const GemvMatrix& w = kernel::row_of_block<S>(p, block, r, row);
                data[r][i] = w.data + row * w.row_stride + visit * kGemvVisitBytes + lane % 4 * lane_bytes_of(S);
                const u64 first = row * scale_columns_of(S.w, p.k) + visit * Scales::kBlocks;
                const u32 own = Scales::kDecodes ? lane % 4 * Scales::kLaneBlocks : 0;
                scales[r][i] = static_cast<const u8*>(w.scales) + first * bytes_of(Scales::kRow.scale) + own;
                if constexpr (Scales::kRow.has_zero) zeros[r][i] = w.zeros + first;
            }
        }
    }

    /// The group's next tile. Where all its rows exist, every pointer moves alike.
    DG_DEVICE void next_tile(const GemvParams& p) {
        visit = kernel::group_warp();
        tile += stride;
        if (tile >= tiles) return;
        const bool one_matrix = S.epilogue == GemvEpilogue::swiglu || p.num_matrices == 1;
        if (!one_matrix || (tile + 1) * block_rows_of(S) > p.w[0].n) return enter(p);
#pragma unroll
        for (u32 r = 0; r < S.row_tiles; ++r) {
#pragma unroll
            for (u32 i = 0; i < kLaneRows; ++i) {
                data[r][i] += data_jump[kRuns == 1 ? 0 : r];
                scales[r][i] += scale_jump;
                if constexpr (Scales::kRow.has_zero) zeros[r][i] += zero_jump;
            }
        }
    }

    /// Starts the loads of the next visit, if there is one.
    DG_DEVICE void load(Slot<S>& slot, const GemvParams& p) {
        if (tile >= tiles) return;
#pragma unroll
        for (u32 r = 0; r < S.row_tiles; ++r) {
#pragma unroll
            for (u32 i = 0; i < kLaneRows; ++i) {
                if constexpr (Scales::kDecodes) {
#pragma unroll
                    for (u32 step = 0; step < steps_of_visit(S); ++step) {
                        u32 code[1];
                        load_vector<Scales::kBytes>(code, scales[r][i] + step * 4 * Scales::kLaneBlocks);
                        slot.beside.scale[r][i][step] = code[0];
                    }
                } else {
                    load_vector<Scales::kBytes>(slot.beside.scale[r][i], scales[r][i]);
                    if constexpr (Scales::kRow.has_zero) {
                        load_vector<Scales::kBlocks>(slot.beside.zero[r][i], zeros[r][i]);
                        zeros[r][i] += kGemvWarps * Scales::kBlocks;
                    }
                }
#pragma unroll
                for (u32 step = 0; step < steps_of_visit(S); ++step) {
                    const ptx::Words4 v = ptx::ld_stream_v4(data[r][i] + step * 4 * lane_bytes_of(S));
                    for (u32 word = 0; word < 4; ++word) slot.words[step].word[r][i][word] = v.word[word];
                }
                data[r][i] += kGemvWarps * kGemvVisitBytes;
                scales[r][i] += kScaleStep;
            }
        }
        visit += kGemvWarps;
        if (visit >= whole) next_tile(p);
    }

    DG_DEVICE void start(const GemvParams& p, u32 first_tile, u32 tile_stride, u32 num_tiles) {
        visit = kernel::group_warp();
        whole = p.k / visit_k_of(S);
        tile = first_tile, stride = tile_stride, tiles = num_tiles;
        if (tile < tiles) enter(p);
        const u64 rows = u64{stride} * block_rows_of(S), turns = ceil_div(whole - visit, kGemvWarps);
        for (u32 run = 0; run < kRuns; ++run)
            data_jump[run] = rows * p.w[run].row_stride - turns * (kGemvWarps * kGemvVisitBytes);
        scale_jump = rows * scale_columns_of(S.w, p.k) * bytes_of(Scales::kRow.scale) - turns * kScaleStep;
        zero_jump = rows * scale_columns_of(S.w, p.k) - turns * (kGemvWarps * Scales::kBlocks);
    }
};

template <bool Excess, GemvSpec S>
DG_DEVICE void multiply_pieces(Sums<S>& sums, const kernel::GemvWords<S> (&words)[steps_of_visit(S)],
                               const GemvVisit<S>& visit, const TokensInSmem<S>& tokens, u32 index) {
    constexpr u32 kPromoteK = promote_k_of(S), kPieces = TokensInSmem<S>::kLanePieces;
    TokenScales<S> x_scale;
    tokens.read_scales(x_scale, index);
    Sums<S> partial;
    Sums<S>& target = kPromoteK ? partial : sums;
#pragma unroll
    for (u32 piece = 0; piece < kPieces * steps_of_visit(S); ++piece) {
        if (kPromoteK && piece * 32 % kPromoteK == 0) clear<S>(partial);
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
}

template <GemvSpec S>
DG_DEVICE void multiply_visit(Sums<S>& sums, const kernel::GemvWords<S> (&words)[steps_of_visit(S)],
                              const GemvVisit<S>& visit, const TokensInSmem<S>& tokens, u32 index) {
    if (row_of(S.w).scale == ScaleType::ue8m0 && visit.exceeds()) [[unlikely]]
        multiply_pieces<true, S>(sums, words, visit, tokens, index);
    else
        multiply_pieces<false, S>(sums, words, visit, tokens, index);
}

/// The tiles of a group, one after the other: where its sums are and what becomes of them.
template <GemvSpec S>
struct Tiles {
    Sums<S> sums;
    Partials<S> partials;
    u32 tile, stride, tiles, visit, whole, visits;
    u32 first_token, count;

    // Scales that are vectors of a visit belong to rows of whole visits.
    static constexpr bool kHasEnd = ScaleWords<S>::kDecodes;

    /// The visit that overlaps the end of the rows.
    DG_DEVICE void add_end(const GemvParams& p, const TokensInSmem<S>& tokens) {
        const kernel::GemvBlock block = kernel::find_block<S>(p, tile);
        GemvRow rows[S.row_tiles][kLaneRows];
        find_rows<S>(rows, p, block);
        GemvVisit<S> beside;
        kernel::load_beside<false, S>(beside, p, rows, visit);
        kernel::GemvWords<S> words[steps_of_visit(S)];
#pragma unroll
        for (u32 step = 0; step < steps_of_visit(S); ++step) kernel::load_words<S>(words[step], p, block, visit, step);
        multiply_visit<S>(sums, words, beside, tokens, visit);
    }

    /// Adds the visit in `slot` and starts the loads of a later one into it. Whether tiles are left.
    DG_DEVICE bool turn(Slot<S>& slot, Loader<S>& loader, const GemvParams& p, const TokensInSmem<S>& tokens) {
        constexpr bool kLater = Partials<S>::kLater;
        multiply_visit<S>(sums, slot.words, slot.decoded(), tokens, visit);
        loader.load(slot, p);
        visit += kGemvWarps;
        if (visit < whole) return true;
        if (kHasEnd && visit < visits) add_end(p, tokens);
        if (kLater && partials.count != 0)
            partials.finish(p, kernel::find_block<S>(p, tile - stride), first_token, count);
        partials.leave(sums);
        if constexpr (!kLater) partials.finish(p, kernel::find_block<S>(p, tile), first_token, count);
        clear<S>(sums);
        visit = kernel::group_warp();
        tile += stride;
        if (tile < tiles) return true;
        if constexpr (kLater) partials.finish(p, kernel::find_block<S>(p, tile - stride), first_token, count);
        return false;
    }
};

template <GemvSpec S>
DG_DEVICE void run_direct(const GemvParams& p) {
    static_assert(why_illegal(S) == nullptr, "no such kernel");
    const u32 group = ptx::thread_index() / kGemvThreads;
    const u32 tiles = kernel::num_blocks<S>(p), stride = ptx::grid_size() * S.groups;
    const u32 tile = group * ptx::grid_size() + ptx::block_index();
    const u32 first_token = ptx::block_index_y() * p.tokens_per_block;
    const u32 left = p.m - first_token, count = left < p.tokens_per_block ? left : p.tokens_per_block;
    const u32 visits = static_cast<u32>(ceil_div(row_bytes_of(S.w, p.k), u64{kGemvVisitBytes}));
    Tiles<S> work{{}, Partials<S>(group), tile, stride, tiles, kernel::group_warp(), p.k / visit_k_of(S), visits,
                  first_token, count};
    clear<S>(work.sums);
    if constexpr (S.dependent_launch) {
        ptx::grid_dependency_launch();
        if (tile < tiles) kernel::prefetch_first<S>(p, tile);
        ptx::grid_dependency_wait();
    }
    Loader<S> loader;
    loader.start(p, tile, stride, tiles);
    Slot<S> slots[S.stages];
#pragma unroll
    for (u32 i = 0; i < S.stages; ++i) loader.load(slots[i], p);
    TokensInSmem<S> tokens;
    tokens.load(p, ptx::dynamic_smem() + plan_smem(S).bytes, first_token, count);
    if (tile >= tiles) return;
    // The slots take turns; each is registers with names of their own.
    while (true) {
        if (!work.turn(slots[0], loader, p, tokens)) break;
        if (!work.turn(slots[1], loader, p, tokens)) break;
        if constexpr (S.stages > 2)
            if (!work.turn(slots[2], loader, p, tokens)) break;
        if constexpr (S.stages > 3)
            if (!work.turn(slots[3], loader, p, tokens)) break;
    }
}

}  // namespace gemv_detail

template <GemvSpec S>
DG_KERNEL(threads_of(S), 1)
gemv_direct(DG_GRID_CONSTANT const GemvParams p) {
    gemv_detail::run_direct<S>(p);
}

}  // namespace deep_gemm
