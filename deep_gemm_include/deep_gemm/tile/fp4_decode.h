// FP4 codes in shared memory -> wgmma operand A in registers. A thread's 64 codes of a blob are 32 of two
// rows. Tables of eight bytes, one for each group of codes that share a scale, turn eight codes into bytes by
// two permutes: MXFP4 reads them from shared memory, NVFP4 computes them (tile/nvfp4_tables.h).
#pragma once

#include <deep_gemm/tile/nvfp4_tables.h>
#include <deep_gemm/ptx/bytes.h>

namespace deep_gemm::tile {

/// Fills the table of magnitudes; threads 0 to entries - 1. Followed by a barrier.
template <Fp4GemmSpec S>
DG_DEVICE void write_magnitudes(Fp4Smem<S> smem, u32 thread) {
    if (thread >= fp4_table_entries(S.form)) return;
    const u64 bytes = fp4_magnitudes(S.form, thread);
    ptx::st_shared_v2_u32(smem.magnitudes() + thread * 8, static_cast<u32>(bytes),
                          static_cast<u32>(bytes >> 32));
}

/// Four words of codes of one row -> registers 4 * step + odd and 4 * step + 2 + odd of the fragments. The
/// first two words have the first table. (One mask for both halves of a word: permute_bytes() would mask
/// each.)
DG_DEVICE void decode_row(const ptx::UInt4& codes, const ptx::UInt2 (&tables)[2], u32 (&fragments)[16],
                          u32 odd) {
    const u32 words[4] = {codes.x, codes.y, codes.z, codes.w};
    constexpr u32 kMagnitudes = 0x77777777, kSigns = 0x80808080;
#pragma unroll
    for (u32 step = 0; step < 4; ++step) {
        const ptx::UInt2& table = tables[step / 2];
        const u32 word = words[step], selectors = word & kMagnitudes;
        fragments[step * 4 + odd] =
            ptx::permute_bytes_or_signs(table.x, table.y, selectors) | (word & kSigns);
        fragments[step * 4 + 2 + odd] =
            ptx::permute_bytes_or_signs(table.x, table.y, selectors >> 16) | ((word << 4) & kSigns);
    }
}

/// MXFP4: the tables of a thread's even and odd row.
struct MagnitudeTables {
    ptx::UInt2 even, odd;
};
template <Fp4GemmSpec S>
DG_DEVICE MagnitudeTables magnitude_tables(Fp4Smem<S> smem, ptx::SharedAddress blob, u32 thread) {
    u32 even_offset, odd_offset;
    if constexpr (fp4_scale_bytes_of(S.form) == 1) {
        const u32 offsets = ptx::ld_shared_u8(blob + kFp4CodeBytes + thread);
        even_offset = offsets & 0xf;
        odd_offset = offsets >> 4;
    } else {
        const u32 offsets = ptx::ld_shared_u16(blob + kFp4CodeBytes + thread * 2);
        even_offset = offsets & 0x1f;
        odd_offset = offsets >> 8 & 0x1f;
    }
    return {ptx::ld_shared_v2_u32(smem.magnitudes() + even_offset * 8),
            ptx::ld_shared_v2_u32(smem.magnitudes() + odd_offset * 8)};
}

/// The fragments of one blob: registers 4 * step to 4 * step + 3 are operand A of step `step`. `thread` of
/// the warpgroup. `term`: of the 8-bit floats whose sum a weight is, the first or the second.
template <Fp4GemmSpec S, u32 term = 0>
DG_DEVICE void decode_blob(Fp4Smem<S> smem, ptx::SharedAddress blob, u32 thread, u32 (&fragments)[16]) {
    static_assert(term < fp4_terms_of(S.form));
    const ptx::SharedAddress codes = blob + thread * 16;
    if constexpr (is_nvfp4(S.form)) {
        const NvScales scales(ptx::ld_shared_u16(blob + kFp4CodeBytes + thread * 2) |
                              ptx::ld_shared_u8(blob + kNvThirdBytes + thread) << 16);
#pragma unroll
        for (u32 odd = 0; odd < 2; ++odd) {
            const ptx::UInt4 row = ptx::ld_shared_v4_u32(codes + odd * kFp4OddRows);
            const ptx::UInt2 tables[] = {scales.table<S.form, term>(2 * odd),
                                         scales.table<S.form, term>(2 * odd + 1)};
            decode_row(row, tables, fragments, odd);
        }
    } else {
        const MagnitudeTables tables = magnitude_tables(smem, blob, thread);
        const ptx::UInt4 even = ptx::ld_shared_v4_u32(codes);
        const ptx::UInt4 odd = ptx::ld_shared_v4_u32(codes + kFp4OddRows);
        decode_row(even, {tables.even, tables.even}, fragments, 0);
        decode_row(odd, {tables.odd, tables.odd}, fragments, 1);
    }
}

}  // namespace deep_gemm::tile
