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

/// A word of codes of one row -> registers 4 * step + odd and 4 * step + 2 + odd of the fragments. (One mask
/// for both halves of a word: permute_bytes() would mask each.)
DG_DEVICE void decode_word(u32 word, const ptx::UInt2& table, u32 (&fragments)[16], u32 step, u32 odd) {
    constexpr u32 kMagnitudes = 0x77777777, kSigns = 0x80808080;
    const u32 selectors = word & kMagnitudes;
    fragments[step * 4 + odd] = ptx::permute_bytes_or_signs(table.x, table.y, selectors) | (word & kSigns);
    fragments[step * 4 + 2 + odd] =
        ptx::permute_bytes_or_signs(table.x, table.y, selectors >> 16) | ((word << 4) & kSigns);
}

/// Four words of a row, the first two with the first table.
DG_DEVICE void decode_row(const ptx::UInt4& codes, const ptx::UInt2 (&tables)[2], u32 (&fragments)[16],
                          u32 odd) {
    const u32 words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (u32 step = 0; step < 4; ++step) decode_word(words[step], tables[step / 2], fragments, step, odd);
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

/// A thread's codes of a blob, of its even and its odd row, and the tables of both.
struct BlobCodes {
    ptx::UInt4 even, odd;
    ptx::UInt2 even_tables[2], odd_tables[2];
};

/// `thread` of the warpgroup. `term`: of the 8-bit floats whose sum a weight is, the first or the second.
template <Fp4GemmSpec S, u32 term = 0>
DG_DEVICE BlobCodes load_codes(Fp4Smem<S> smem, ptx::SharedAddress blob, u32 thread) {
    static_assert(term < fp4_terms_of(S.form));
    BlobCodes codes;
    if constexpr (is_nvfp4(S.form)) {
        const NvScales scales(ptx::ld_shared_u16(blob + kFp4CodeBytes + thread * 2) |
                              ptx::ld_shared_u8(blob + kNvThirdBytes + thread) << 16);
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            codes.even_tables[i] = scales.table<S.form, term>(i);
            codes.odd_tables[i] = scales.table<S.form, term>(2 + i);
        }
    } else {
        const MagnitudeTables tables = magnitude_tables(smem, blob, thread);
        codes.even_tables[0] = codes.even_tables[1] = tables.even;
        codes.odd_tables[0] = codes.odd_tables[1] = tables.odd;
    }
    codes.even = ptx::ld_shared_v4_u32(blob + thread * 16);
    codes.odd = ptx::ld_shared_v4_u32(blob + thread * 16 + kFp4OddRows);
    return codes;
}

/// Registers 4 * step to 4 * step + 3 of the fragments: operand A of step `step`.
DG_DEVICE void decode_step(const BlobCodes& codes, u32 step, u32 (&fragments)[16]) {
    const u32 even[] = {codes.even.x, codes.even.y, codes.even.z, codes.even.w};
    const u32 odd[] = {codes.odd.x, codes.odd.y, codes.odd.z, codes.odd.w};
    decode_word(even[step], codes.even_tables[step / 2], fragments, step, 0);
    decode_word(odd[step], codes.odd_tables[step / 2], fragments, step, 1);
}

/// All of them.
template <Fp4GemmSpec S, u32 term = 0>
DG_DEVICE void decode_blob(Fp4Smem<S> smem, ptx::SharedAddress blob, u32 thread, u32 (&fragments)[16]) {
    const BlobCodes codes = load_codes<S, term>(smem, blob, thread);
#pragma unroll
    for (u32 step = 0; step < 4; ++step) decode_step(codes, step, fragments);
}

}  // namespace deep_gemm::tile
