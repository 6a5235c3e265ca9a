// What a lane of the small-batch kernel holds of one visit (128 bytes of each of its rows), and how it gets
// there: whole vectors, or byte by byte where rows are unaligned or end inside the visit. Both give the same
// values, so neither shows in the result.
#pragma once

#include <deep_gemm/kernel/gemv_store.h>
#include <deep_gemm/ptx/stream.h>
#include <deep_gemm/spec/gemv.h>
#include <deep_gemm/tile/decode.h>

namespace deep_gemm::kernel {

/// Tiles of 16 rows of a block, and the rows of one lane in each: lane / 4 and lane / 4 + 8.
constexpr u32 kLaneRows = 2;

struct GemvRow {
    const u8* scales;  // of this row: its first scale
    const u8* zeros;
};

/// Matrix and row of W that row `row` of tile `tile` of a block is; rows beyond its last are the last, and
/// their results are dropped.
template <GemvSpec S>
DG_DEVICE const GemvMatrix& row_of_block(const GemvParams& p, const GemvBlock& block, u32 tile, u32& row) {
    constexpr bool kPaired = S.epilogue == GemvEpilogue::swiglu;
    const GemvMatrix& w = p.w[kPaired ? tile : block.matrix];
    const u32 wanted = block.first_row + (kPaired ? 0 : tile * kMmaTileRows) + row;
    row = wanted < block.end_row ? wanted : block.end_row - 1;
    return w;
}

/// What stands beside the weights of a visit.
template <GemvSpec S>
struct GemvVisit {
    static constexpr QuantRow kRow = row_of(S.w);
    static constexpr u32 kSteps = steps_of_visit(S);
    static constexpr bool kDecodesScales = kRow.element == Format::fp4_e2m1;
    static constexpr u32 kScaledBlocks =
        kDecodesScales || kRow.block_k == 0 ? 0 : visit_k_of(S) / kRow.block_k;
    // Registers of a lane. Few enough beside sums and tokens, and they are loaded a visit ahead.
    static constexpr u32 kRegisters =
        kLaneRows * S.row_tiles * (kDecodesScales ? kSteps : kScaledBlocks * (kRow.has_zero ? 2 : 1));
    static constexpr bool kAhead =
        kRegisters != 0 && kRegisters <= 8 &&
        (S.row_tiles * S.tokens == 8 || (promote_k_of(S) == 0 && kRow.packing != Packing::fragments));

    // E2M1: the bytes of the lane's own block or blocks; else the scales of all blocks of the visit.
    u32 code[kDecodesScales ? kSteps : 1][S.row_tiles][kLaneRows];
    float scale[kScaledBlocks + 1][S.row_tiles][kLaneRows];
    u32 zero[kRow.has_zero ? kScaledBlocks : 1][S.row_tiles][kLaneRows];

    /// Whether a scale needs two factors (ue8m0_excess), or might: some are looked at together. The same for all
    /// lanes.
    DG_DEVICE bool exceeds() const {
        u32 bits = 0;
        if constexpr (kRow.scale == ScaleType::ue8m0)
            for (const auto& step : code)
                for (const auto& tile : step)
                    for (const u32 byte : tile) bits |= byte;
        return kRow.scale == ScaleType::ue8m0 && ptx::ballot(bits > tile::kLargestWholeUe8m0) != 0;
    }
};

/// The weights of one step of a visit.
template <GemvSpec S>
struct GemvWords {
    static constexpr u32 kWords = lane_bytes_of(S) / 4;
    u32 word[S.row_tiles][kLaneRows][kWords];
};

/// Bytes [0, available) of `address`, zeros beyond.
template <u32 Words>
DG_DEVICE void load_bytes(u32 (&word)[Words], const u8* address, i64 available) {
#pragma unroll
    for (u32 i = 0; i < Words; ++i) {
        word[i] = 0;
#pragma unroll
        for (u32 byte = 0; byte < 4; ++byte)
            if (4 * i + byte < available) word[i] |= ptx::ld_cached_u8(address + 4 * i + byte) << 8 * byte;
    }
}

/// The words of one step of a visit that overlaps the end of the rows, or of unaligned rows.
template <GemvSpec S>
DG_DEVICE void load_words(GemvWords<S>& to, const GemvParams& p, const GemvBlock& block, u32 index,
                          u32 step) {
    constexpr u32 kLaneBytes = lane_bytes_of(S);
    const i64 row_bytes = static_cast<i64>(row_bytes_of(S.w, p.k));
    const u64 offset = u64{index} * kGemvVisitBytes + (step * 4 + ptx::lane_index() % 4) * kLaneBytes;
#pragma unroll
    for (u32 tile = 0; tile < S.row_tiles; ++tile) {
#pragma unroll
        for (u32 i = 0; i < kLaneRows; ++i) {
            u32 row = ptx::lane_index() / 4 + i * 8;
            const GemvMatrix& w = row_of_block<S>(p, block, tile, row);
            load_bytes(to.word[tile][i], w.data + row * w.row_stride + offset,
                       row_bytes - static_cast<i64>(offset));
        }
    }
}

/// E2M1: the scale bytes of the lane's own elements.
template <bool Whole, GemvSpec S>
DG_DEVICE void load_codes(GemvVisit<S>& visit, const GemvParams& p,
                          const GemvRow (&rows)[S.row_tiles][kLaneRows], u32 index) {
    using Visit = GemvVisit<S>;
    constexpr u32 kBlockK = Visit::kRow.block_k,
                  kBlocks = lane_elements_of(S) / kBlockK;  // a lane and step: 1 or 2
#pragma unroll
    for (u32 step = 0; step < Visit::kSteps; ++step) {
        const u64 element =
            u64{index} * visit_k_of(S) + (step * 4 + ptx::lane_index() % 4) * lane_elements_of(S);
#pragma unroll
        for (u32 tile = 0; tile < S.row_tiles; ++tile) {
#pragma unroll
            for (u32 row = 0; row < kLaneRows; ++row) {
                const u8* address = rows[tile][row].scales + element / kBlockK;
                u32& code = visit.code[step][tile][row];
                if constexpr (Whole && kBlocks == 2) {
                    code = ptx::ld_cached_u16(address);
                } else {
                    code = 0;
#pragma unroll
                    for (u32 block = 0; block < kBlocks; ++block)
                        if (Whole || element + block * kBlockK < p.k)
                            code |= ptx::ld_cached_u8(address + block) << 8 * block;
                }
            }
        }
    }
}

/// Scales that partial sums are multiplied with, and zero points: all blocks of the visit.
template <bool Whole, GemvSpec S>
DG_DEVICE void load_scales(GemvVisit<S>& visit, const GemvParams& p,
                           const GemvRow (&rows)[S.row_tiles][kLaneRows], u32 index) {
    using Visit = GemvVisit<S>;
    constexpr QuantRow kRow = Visit::kRow;
#pragma unroll
    for (u32 block = 0; block < Visit::kScaledBlocks; ++block) {
        const u64 at = u64{index} * Visit::kScaledBlocks + block;
        const bool inside = Whole || at * kRow.block_k < p.k;
#pragma unroll
        for (u32 tile = 0; tile < S.row_tiles; ++tile) {
#pragma unroll
            for (u32 row = 0; row < kLaneRows; ++row) {
                const u8* address = rows[tile][row].scales + at * bytes_of(kRow.scale);
                float& scale = visit.scale[block][tile][row];
                scale = 0;
                if (inside) {
                    if constexpr (kRow.scale == ScaleType::fp16)
                        scale = ptx::cvt_f32_f16(ptx::ld_cached_u16(address));
                    else
                        scale = ptx::ld_cached_f32(address);
                }
                if constexpr (kRow.has_zero)
                    visit.zero[block][tile][row] = inside ? ptx::ld_cached_u8(rows[tile][row].zeros + at) : 0;
            }
        }
    }
}

/// Issues the loads of what stands beside the weights of visit `index`. `Whole`: all of it lies inside the
/// rows, which are aligned.
template <bool Whole, GemvSpec S>
DG_DEVICE void load_beside(GemvVisit<S>& visit, const GemvParams& p,
                           const GemvRow (&rows)[S.row_tiles][kLaneRows], u32 index) {
    if constexpr (GemvVisit<S>::kDecodesScales) load_codes<Whole, S>(visit, p, rows, index);
    if constexpr (GemvVisit<S>::kScaledBlocks != 0) load_scales<Whole, S>(visit, p, rows, index);
}

/// First element, within its visit, of the eight that piece `piece` of this lane holds. The four lanes of a
/// row hold 32 elements in a row between them, or (linear packing) four runs that are further apart.
template <GemvSpec S>
DG_DEVICE u32 piece_element(u32 piece) {
    constexpr u32 kPieces = lane_elements_of(S) / tile::kPieceElements;
    const u32 column = ptx::lane_index() % 4;
    const u32 step = piece / kPieces, inside = piece % kPieces;
    const u32 start = step * 4 * lane_elements_of(S);
    if (row_of(S.w).packing == Packing::interleaved) return start + inside * 32 + column * 8;
    return start + column * lane_elements_of(S) + inside * 8;
}

/// Eight elements of x for one token, as they are.
template <bool Whole, GemvSpec S>
DG_DEVICE void fetch_tokens(u32 (&word)[4], const u8* row, u64 element, u32 k) {
    constexpr u32 kBytes = bytes_of(element_of(S.x));
    const u8* address = row + element * kBytes;
    if constexpr (!Whole) {
        u32(&bytes)[4] = word;
        load_bytes(bytes, address, (static_cast<i64>(k) - static_cast<i64>(element)) * kBytes);
    } else if constexpr (kBytes == 1) {
        ptx::ld_cached_v2(address, word[0], word[1]);
    } else {
        const ptx::Words4 v = ptx::ld_cached_v4(address);
        for (u32 i = 0; i < 4; ++i) word[i] = v.word[i];
    }
}

/// The same as four pairs: in the order of the weights' pairs, or (Packing::fragments) as they are, pair q
/// for the weights of the lane's word q.
template <GemvSpec S>
DG_DEVICE void arrange_tokens(u32 (&pair)[4], const u32 (&fetched)[4]) {
    u32 word[4];
    if constexpr (element_of(S.x) == Format::fp8_e4m3) {
        tile::decode_e4m3<multiplies_f16(S), S.native_fp8>(fetched[0], word[0], word[1]);
        tile::decode_e4m3<multiplies_f16(S), S.native_fp8>(fetched[1], word[2], word[3]);
    } else {
        for (u32 i = 0; i < 4; ++i) word[i] = fetched[i];
    }
    if constexpr (row_of(S.w).packing == Packing::interleaved) {
        pair[0] = ptx::prmt(word[0], word[2], 0x5410);
        pair[1] = ptx::prmt(word[0], word[2], 0x7632);
        pair[2] = ptx::prmt(word[1], word[3], 0x5410);
        pair[3] = ptx::prmt(word[1], word[3], 0x7632);
    } else {
        for (u32 i = 0; i < 4; ++i) pair[i] = word[i];
    }
}

/// Both. `row` null: zeros.
template <bool Whole, GemvSpec S>
DG_DEVICE void load_tokens(u32 (&pair)[4], const u8* row, u64 element, u32 k) {
    u32 word[4] = {};
    if (row) fetch_tokens<Whole, S>(word, row, element, k);
    arrange_tokens<S>(pair, word);
}

/// Eight weights of a lane as four pairs. `Excess`: a UE8M0 scale of the visit needs two factors.
template <bool Excess, GemvSpec S>
DG_DEVICE void decode_piece(u32 (&pair)[4], const GemvVisit<S>& visit, const GemvWords<S>& words, u32 piece,
                            u32 tile_index, u32 row) {
    constexpr QuantRow kRow = GemvVisit<S>::kRow;
    constexpr u32 kPieces = lane_elements_of(S) / tile::kPieceElements;
    constexpr u32 kPieceWords = GemvWords<S>::kWords / kPieces;
    const u32 step = piece / kPieces, inside = piece % kPieces;
    const u32* word = &words.word[tile_index][row][inside * kPieceWords];
    if constexpr (kRow.element_bits == 16) {
        for (u32 i = 0; i < 4; ++i) pair[i] = word[i];
    } else if constexpr (kRow.element == Format::fp8_e4m3) {
        tile::decode_e4m3<multiplies_f16(S), S.native_fp8>(word[0], pair[0], pair[1]);
        tile::decode_e4m3<multiplies_f16(S), S.native_fp8>(word[1], pair[2], pair[3]);
    } else if constexpr (kRow.element_bits == 8) {
        tile::decode_int8(word[0], pair[0], pair[1]);
        tile::decode_int8(word[1], pair[2], pair[3]);
    } else if constexpr (kRow.element == Format::fp4_e2m1) {
        const u32 code = visit.code[step][tile_index][row];
        if constexpr (kRow.scale == ScaleType::ue8m0) {
            const u32 scale = Excess ? tile::scale_of_ue8m0(code) : tile::whole_scale_of_ue8m0(code);
            for (u32 i = 0; i < 4; ++i) pair[i] = tile::decode_e2m1(word[0], i, scale);
            if constexpr (Excess) {
                const bool two = code > tile::kLargestWholeUe8m0 && code != 255;
                const u32 factor = two ? tile::ue8m0_excess(code) : tile::kBf16One;
                for (u32 i = 0; i < 4; ++i) pair[i] = ptx::mul_bf16x2(pair[i], factor);
            }
        } else if constexpr (kRow.scale == ScaleType::ue4m3) {
            const u32 scale = tile::scale_of_ue4m3(code);
            for (u32 i = 0; i < 4; ++i) pair[i] = tile::decode_e2m1(word[0], i, scale);
        } else {
            u32 first, second;
            tile::scales_of_e4m3<S.native_fp8>(code, first, second);
            for (u32 i = 0; i < 4; ++i) pair[i] = tile::decode_e2m1(word[0], i, i < 2 ? first : second);
        }
    } else {
        u32 minus_zero = tile::kMinusImpliedZero;
        if constexpr (kRow.has_zero)
            minus_zero = tile::int4_zero_of(visit.zero[piece * 32 / kRow.block_k][tile_index][row]);
        tile::decode_int4(word[0], minus_zero, pair);
    }
}

}  // namespace deep_gemm::kernel
