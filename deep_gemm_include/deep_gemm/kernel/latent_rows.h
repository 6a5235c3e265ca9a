// FP8 rows of a latent cache on their way to tensor cores: where the rows that a token sees lie, and their
// codes as bf16. What the kernels of latent attention share.
#pragma once

#include <deep_gemm/kernel/latent_merge.h>
#include <deep_gemm/tile/decode.h>
#include <deep_gemm/ptx/stream.h>

namespace deep_gemm::latent_detail {

/// An FP8 row where it lies.
struct RowPlace {
    const u8* values;
    u32 scales;  // bytes from the values
};
DG_DEVICE RowPlace place_of(const LatentView& view, u32 sequence, u32 row) {
    const u8* page = static_cast<const u8*>(view.data) + tile::page_offset(view, sequence, row);
    const u32 in_page = row % view.page_rows;
    return {page + in_page * kFp8RowBytes,
            (view.page_rows - in_page) * kFp8RowBytes + in_page * kFp8RowScaleBytes};
}

/// Where row `index` of those that a token sees lies; false, with some other row, where there is none.
/// pick(i): the token's pick i.
template <LatentMmaSpec S, typename Pick>
DG_DEVICE bool find_row(RowPlace& place, const AttentionParams& p, const Seen<S>& seen, u32 index,
                        Pick&& pick) {
    place = {static_cast<const u8*>(p.rows.data), 0};
    if (index >= seen.total) return false;
    if (index < seen.in_window) {
        place = place_of(p.rows, seen.sequence, (seen.first + index) % p.rows.rows);
        return true;
    }
    u32 row = index - seen.in_window;
    if constexpr (S.picks) row = static_cast<u32>(pick(row));
    if (row >= seen.visible) return false;
    place = place_of(p.compressed, seen.sequence, row);
    return true;
}

DG_DEVICE const u8* from_lane(const u8* pointer, u32 lane) {
    const u64 bits = reinterpret_cast<u64>(pointer);
    const u64 low = ptx::shfl_idx(static_cast<u32>(bits), lane),
              high = ptx::shfl_idx(static_cast<u32>(bits >> 32), lane);
    return reinterpret_cast<const u8*>(low | high << 32);
}

/// A UE8M0 scale as a pair of bf16.
DG_DEVICE u32 pair_of_scale(u32 scale) {
    return (scale == 255 ? tile::kBf16Nan : scale == 0 ? 0x40u : scale << 7) * 0x10001u;
}

/// 16 codes times their scale.
DG_DEVICE void decode_codes(u32 (&pair)[8], const ptx::UInt4& codes, u32 scale) {
    const u32 word[4] = {codes.x, codes.y, codes.z, codes.w};
    const u32 factor = pair_of_scale(scale);
#pragma unroll
    for (u32 w = 0; w < 4; ++w) {
        tile::decode_e4m3<false, true>(word[w], pair[2 * w], pair[2 * w + 1]);
        pair[2 * w] = ptx::mul_bf16x2(pair[2 * w], factor);
        pair[2 * w + 1] = ptx::mul_bf16x2(pair[2 * w + 1], factor);
    }
}

/// A warp's rows of a chunk: lane i has the place of row i. `present` is the same in all lanes, and the only
/// thing that a branch looks at: lanes that differ in it must not part before the next shuffle.
struct WarpRows {
    RowPlace place;
    u32 present;  // a bit a row
};
DG_DEVICE i32 load_pick(const AttentionParams& p, u32 token, u32 i) {
    return ptx::ld_global_s32(p.picks + static_cast<u64>(token) * p.num_picks + i);
}
template <LatentMmaSpec S, u32 Rows, typename Pick>
DG_DEVICE WarpRows find_rows(const AttentionParams& p, const Seen<S>& seen, u32 base, Pick&& pick) {
    const u32 lane = ptx::lane_index(), warp = ptx::warp_index() % (kLatentChunk / Rows),
              index = base + warp * Rows + lane;
    WarpRows rows;
    const bool there = find_row<S>(rows.place, p, seen, lane < Rows ? index : seen.total, pick);
    rows.present = ptx::ballot(there);
    return rows;
}
template <LatentMmaSpec S, u32 Rows>
DG_DEVICE WarpRows find_rows(const AttentionParams& p, const Seen<S>& seen, u32 base) {
    return find_rows<S, Rows>(p, seen, base, [&](u32 i) { return load_pick(p, seen.token, i); });
}

/// Some of a warp's rows on their way: a lane has 16 codes of each of them, and eight rotated channels of one
/// of every four.
template <u32 AtOnce>
struct RowBatch {
    static constexpr u32 kPlain = kFp8RowChannels - kFp8RowRotated, kRotatedUnits = kFp8RowRotated / 8;
    static constexpr u32 kRotatedRows = 32 / kRotatedUnits, kRotatedLoads = AtOnce / kRotatedRows;
    ptx::UInt4 codes[AtOnce] = {}, rotated[kRotatedLoads] = {};
    u32 scale[AtOnce];

    /// Rows `first` and those after it. Whole warps call.
    DG_DEVICE RowBatch(const WarpRows& found, u32 first) {
        const u32 lane = ptx::lane_index();
#pragma unroll
        for (u32 i = 0; i < AtOnce; ++i) {
            const u8* values = from_lane(found.place.values, first + i);
            const u32 scales = ptx::shfl_idx(found.place.scales, first + i);
            scale[i] = 127;
            if ((found.present >> (first + i) & 1) != 0 && lane < kPlain / 16) {
                codes[i] = ptx::ld_global_v4_u32(values + lane * 16);
                scale[i] = ptx::ld_global_u8(values + scales + lane * 16 / kFp8RowGroup);
            }
        }
#pragma unroll
        for (u32 load = 0; load < kRotatedLoads; ++load) {
            const u32 row = first + load * kRotatedRows + lane / kRotatedUnits;
            const u8* values = from_lane(found.place.values, row);
            if ((found.present >> row & 1) != 0)
                rotated[load] = ptx::ld_global_v4_u32(values + kPlain + lane % kRotatedUnits * 16);
        }
    }
    /// As bf16, row `first` of the chunk and those after it; at(row, unit): where 16 bytes of a row go.
    template <typename At>
    DG_DEVICE void store(u32 first, At&& at) const {
        const u32 lane = ptx::lane_index();
#pragma unroll
        for (u32 i = 0; i < AtOnce; ++i) {
            if (lane >= kPlain / 16) continue;
            u32 pair[8];
            decode_codes(pair, codes[i], scale[i]);
            ptx::st_shared_v4_u32(at(first + i, lane * 2), {pair[0], pair[1], pair[2], pair[3]});
            ptx::st_shared_v4_u32(at(first + i, lane * 2 + 1), {pair[4], pair[5], pair[6], pair[7]});
        }
#pragma unroll
        for (u32 load = 0; load < kRotatedLoads; ++load)
            ptx::st_shared_v4_u32(
                at(first + load * kRotatedRows + lane / kRotatedUnits, kPlain / 8 + lane % kRotatedUnits),
                rotated[load]);
    }
};

}  // namespace deep_gemm::latent_detail
