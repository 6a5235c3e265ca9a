// FP4 codes in shared memory -> wgmma operand A in registers. A thread's 64 codes of a blob are two rows of
// one group of 32: two table entries of eight bytes serve all of them, and two byte permutes decode eight
// codes.
#pragma once

#include <deep_gemm/tile/fp4_smem.h>

namespace deep_gemm::tile {

/// Fills the table of magnitudes; threads 0 to entries - 1. Followed by a barrier.
template <Fp4GemmSpec S>
DG_DEVICE void write_magnitudes(Fp4Smem<S> smem, u32 thread) {
    if (thread >= fp4_table_entries(S.form)) return;
    const u64 bytes = fp4_magnitudes(S.form, thread);
    ptx::st_shared_v2_u32(smem.magnitudes() + thread * 8, static_cast<u32>(bytes),
                          static_cast<u32>(bytes >> 32));
}

/// Four words of codes of one row -> registers 4 * step + odd and 4 * step + 2 + odd of the fragments.
DG_DEVICE void decode_row(const ptx::UInt4& codes, const ptx::UInt2& table, u32 (&fragments)[16], u32 odd) {
    const u32 words[4] = {codes.x, codes.y, codes.z, codes.w};
    constexpr u32 kMagnitudes = 0x77777777, kSigns = 0x80808080;
#pragma unroll
    for (u32 step = 0; step < 4; ++step) {
        const u32 word = words[step], selectors = word & kMagnitudes;
        fragments[step * 4 + odd] = ptx::permute_bytes(table.x, table.y, selectors) | (word & kSigns);
        fragments[step * 4 + 2 + odd] =
            ptx::permute_bytes(table.x, table.y, selectors >> 16) | ((word << 4) & kSigns);
    }
}

/// The fragments of one blob: registers 4 * step to 4 * step + 3 are operand A of step `step`. `thread` of
/// the warpgroup.
template <Fp4GemmSpec S>
DG_DEVICE void decode_blob(Fp4Smem<S> smem, ptx::SharedAddress blob, u32 thread, u32 (&fragments)[16]) {
    const ptx::SharedAddress codes = blob + thread * 16;
    u32 even_offset, odd_offset;
    if constexpr (fp4_offset_bytes_of(S.form) == 1) {
        const u32 offsets = ptx::ld_shared_u8(blob + kFp4CodeBytes + thread);
        even_offset = offsets & 0xf;
        odd_offset = offsets >> 4;
    } else {
        const u32 offsets = ptx::ld_shared_u16(blob + kFp4CodeBytes + thread * 2);
        even_offset = offsets & 0x1f;
        odd_offset = offsets >> 8 & 0x1f;
    }
    const ptx::UInt4 even = ptx::ld_shared_v4_u32(codes), odd = ptx::ld_shared_v4_u32(codes + kFp4OddRows);
    const ptx::UInt2 even_table = ptx::ld_shared_v2_u32(smem.magnitudes() + even_offset * 8);
    const ptx::UInt2 odd_table = ptx::ld_shared_v2_u32(smem.magnitudes() + odd_offset * 8);
    decode_row(even, even_table, fragments, 0);
    decode_row(odd, odd_table, fragments, 1);
}

}  // namespace deep_gemm::tile
