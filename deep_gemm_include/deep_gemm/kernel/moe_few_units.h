// Units of weights (spec/moe_few.h: 16 rows and 128 columns of K) from memory to the registers of a warp, and
// from there to what wgmma wants of its lanes as operand A.
#pragma once

#include <deep_gemm/spec/moe_few.h>
#include <deep_gemm/tile/fp4_decode.h>
#include <deep_gemm/ptx/stream.h>

namespace deep_gemm::moe_few_detail {

/// Word j of lane i of four neighbours goes to word i of lane j.
DG_DEVICE void transpose_words(u32 (&v)[4]) {
    const u32 lane = ptx::lane_index();
#pragma unroll
    for (u32 mask = 1; mask < 4; mask *= 2) {
        const bool upper = (lane & mask) != 0;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            if (i & mask) continue;
            const u32 got = ptx::shfl_idx(upper ? v[i] : v[i + mask], lane ^ mask);
            (upper ? v[i] : v[i + mask]) = got;
        }
    }
}

/// E4M3. Lane l has bytes 16 (l % 4) to 16 (l % 4) + 15 of both halves of fragment rows l / 4 and l / 4 + 8.
struct Fp8Unit {
    u32 word[2][2][4];  // [row][half of the chunk]

    /// The chunk's bytes in the lane's two rows; `row` null: zeros.
    DG_DEVICE void load(const u8* row, const u8* other) {
        const u32 at = ptx::lane_index() % 4 * 16;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 column = half * 64 + at;
            const ptx::Words4 a = row ? ptx::ld_stream_v4(row + column) : ptx::Words4{};
            const ptx::Words4 b = row ? ptx::ld_stream_v4(other + column) : ptx::Words4{};
#pragma unroll
            for (u32 i = 0; i < 4; ++i) word[0][half][i] = a.word[i], word[1][half][i] = b.word[i];
        }
    }
    /// Step s of wgmma wants words 8 s + l % 4 and four further on of both rows.
    DG_DEVICE void to_fragments(u32 (&a)[16]) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            transpose_words(word[0][half]);
            transpose_words(word[1][half]);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const u32 at = (half * 2 + i / 2) * 4 + i % 2 * 2;
                a[at] = word[0][half][i];
                a[at + 1] = word[1][half][i];
            }
        }
    }
};

/// MXFP4: a quarter of a blob, whose order is that of the fragments.
template <Fp4Form F>
struct Fp4Unit {
    ptx::UInt4 even, odd;
    u32 offsets;

    /// `blob` null: zeros. `quarter`: which 16 rows of the block.
    DG_DEVICE void load(const u8* blob, u32 quarter) {
        const u32 thread = quarter * 32 + ptx::lane_index();
        even = odd = {0, 0, 0, 0};
        offsets = 0;
        if (!blob) return;
        const ptx::Words4 a = ptx::ld_stream_v4(blob + thread * 16),
                          b = ptx::ld_stream_v4(blob + kFp4OddRows + thread * 16);
        even = {a.word[0], a.word[1], a.word[2], a.word[3]};
        odd = {b.word[0], b.word[1], b.word[2], b.word[3]};
        if constexpr (fp4_scale_bytes_of(F) == 1)
            offsets = ptx::ld_cached_u8(blob + kFp4CodeBytes + thread);
        else
            offsets = ptx::ld_cached_u16(blob + kFp4CodeBytes + thread * 2);
    }
    DG_DEVICE void to_fragments(ptx::SharedAddress table, u32 (&a)[16]) const {
        constexpr u32 kBits = fp4_scale_bytes_of(F) == 1 ? 4 : 8;
        const ptx::UInt2 e = ptx::ld_shared_v2_u32(table + (offsets & ((1u << kBits) - 1)) * 8),
                         o = ptx::ld_shared_v2_u32(table + (offsets >> kBits) * 8);
        tile::decode_row(even, {e, e}, a, 0);
        tile::decode_row(odd, {o, o}, a, 1);
    }
};

/// The table that to_fragments() reads; threads 0 to entries - 1 write it.
template <Fp4Form F>
DG_DEVICE void write_table(ptx::SharedAddress table) {
    const u32 thread = ptx::thread_index();
    if (thread > fp4_exponents_of(F)) return;
    const u64 bytes = fp4_magnitudes(F, thread);
    ptx::st_shared_v2_u32(table + thread * 8, static_cast<u32>(bytes), static_cast<u32>(bytes >> 32));
}

template <MoeFewWeightSpec W>
struct UnitOf {
    using Type = Fp8Unit;
};
template <MoeFewWeightSpec W>
requires(W.fp4) struct UnitOf<W> {
    using Type = Fp4Unit<W.form>;
};
template <MoeFewWeightSpec W>
using Unit = typename UnitOf<W>::Type;

/// The fragment rows of a lane, as rows of the unit's 16.
template <MoeFewWeightSpec W>
DG_DEVICE u32 unit_row(u32 half) {
    const u32 row = ptx::lane_index() / 4;
    return W.fp4 ? 2 * row + half : row + 8 * half;
}

/// Blob `chunk` of the block that has row `row` of an expert, and which of its quarters it is.
DG_DEVICE const u8* blob_of(const MoeFewWeights& w, u32 blob_bytes, u32 expert, u32 row, u32 chunk) {
    return w.data + expert * w.stride_expert + row / kFp4BlockRows * w.stride_row + chunk * blob_bytes;
}
DG_DEVICE u32 quarter_of(u32 row) {
    return row % kFp4BlockRows / kFewRows;
}

}  // namespace deep_gemm::moe_few_detail
