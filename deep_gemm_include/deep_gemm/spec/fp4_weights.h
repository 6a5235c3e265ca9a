// Packed FP4 weights of the Hopper kernels: the one statement of their layout, for packers, kernels and
// tests.
//
// A weight matrix [n, k] of an expert is cut into blocks of 64 rows; rows beyond n and elements of K beyond
// k, up to a multiple of 256, are zeros. The K of a block is a *run*: consecutive blobs, one for each 128 of
// K. A blob is 4096 bytes of codes and then the scales, one for each (row, group along K).
//
//   MXFP4, groups of 32:  weight = e2m1(code) * 2^(offset - bias) * row_scale
//   NVFP4, groups of 16:  weight = e2m1(code) * e4m3(kNvLowest + offset) * row_scale, see
//   spec/nvfp4_weights.h row_scale = row_scales[run * 64 + row in block]
//
// A kernel decodes a code with its scale into 8-bit floats that the tensor core multiplies. MXFP4: one byte
// of e4m3 (15 exponents of a row are exact, subnormals included) or e5m2 (29). NVFP4: one byte of e4m3,
// rounded, or two whose sum is exact. row_scale is a power of two (MXFP4), or one times the global scale
// (NVFP4). The offset one beyond the last, fp4_zero_offset_of(), stands for a group of zeros; NVFP4 has zero
// codes there.
//
// Order inside a blob: thread t = 32 * warp + 4 * g + q of a warpgroup decodes what it feeds to wgmma as
// operand A, fragment rows g and g + 8 of its warp. Those are rows 16 * warp + 2 * g and the next one of the
// block, so that a thread ends with neighbouring columns of D. Along K it owns elements 32 * q to 32 * q
// + 31.
//
//   codes of the even row: bytes 16 * t to + 15; of the odd row: 2048 + 16 * t to + 15. Of these four words,
//   word s holds elements 32 * q + 8 * s + i, i = 4 * h + e:
//     magnitude: bits 16 * h + 4 * e to + 2
//     sign:      bit 8 * e + 7 for h = 0, bit 8 * e + 3 for h = 1
//
//   scales, mx_e4m3: byte 4096 + t, the even row in the low nibble, the odd row in the high one
//   scales, mx_e5m2: byte 4096 + 2 * t for the even row, the next one for the odd row
//   scales, NVFP4:   bytes 4096 + 2 * t, the next one and 4352 + t; their low 6 bits are those of the even
//   row's
//                    first and second group and of the odd row's first, their high 2 bits, the lowest first,
//                    that of the odd row's second
//
// wgmma step s multiplies word s: what it calls element 16 * h + 4 * q + e of its 32 is element
// 32 * q + 8 * s + 4 * h + e here. The activations' 4-byte words are placed in shared memory to match
// (activation_word); in global memory they are in plain order.
//
// With bf16 tokens word s is multiplied by two wgmma of 16 elements each, half h of it by the second or the
// first: what step 2 * s + h calls element 8 * c + 2 * q + e is element 32 * q + 8 * s + 4 * h + 2 * c + e.
//
// Rows whose groups span more scales than a form holds are exact as well: then `split` is set, `runs`
// holds (first run << 8 | number of runs) for each (expert, block), and D is the sum over the runs, each with
// its own row_scales; a group is in one of them and zero in the others. Without `split`, run = expert *
// blocks + block.
#pragma once

#include <deep_gemm/spec/format.h>

namespace deep_gemm {

enum class Fp4Form : u8 {
    mx_e4m3,    // UE8M0 scale per 32, decoded to e4m3: 4224 bytes a blob
    mx_e5m2,    // the same decoded to e5m2, with a byte for each offset: 4352 bytes
    nv_single,  // E4M3 scale per 16, decoded to one e4m3, rounded: 4480 bytes
    nv_exact,   // the same blobs decoded to two e4m3 whose sum is exact
};
constexpr Fp4Form kFp4Forms[] = {Fp4Form::mx_e4m3, Fp4Form::mx_e5m2, Fp4Form::nv_single, Fp4Form::nv_exact};

constexpr const char* name_of(Fp4Form form) {
    switch (form) {
        case Fp4Form::mx_e4m3: return "mx_e4m3";
        case Fp4Form::mx_e5m2: return "mx_e5m2";
        case Fp4Form::nv_single: return "nv_single";
        case Fp4Form::nv_exact: return "nv_exact";
    }
    return "?";
}

constexpr u32 kFp4BlockRows = 64;
constexpr u32 kFp4BlockK = 128;
constexpr u32 kFp4ThreadK = 32;           // elements of a row that a thread decodes
constexpr u32 kFp4PadK = 2 * kFp4BlockK;  // kernels take blobs in pairs
constexpr u32 kFp4CodeBytes = kFp4BlockRows * kFp4BlockK / 2;
constexpr u32 kFp4OddRows = kFp4CodeBytes / 2;      // offset of the odd rows' codes
constexpr u32 kNvThirdBytes = kFp4CodeBytes + 256;  // of the threads' three bytes of scales
constexpr u32 kFp4MaxRuns = 255;

constexpr bool is_nvfp4(Fp4Form form) {
    return form == Fp4Form::nv_single || form == Fp4Form::nv_exact;
}
// Elements along K that share a scale.
constexpr u32 fp4_group_of(Fp4Form form) {
    return is_nvfp4(form) ? 16 : 32;
}
// 8-bit floats that a weight becomes the sum of.
constexpr u32 fp4_terms_of(Fp4Form form) {
    return form == Fp4Form::nv_exact ? 2 : 1;
}
// Their format.
constexpr Format decoded_of(Fp4Form form) {
    return form == Fp4Form::mx_e5m2 ? Format::fp8_e5m2 : Format::fp8_e4m3;
}
// MXFP4: exponents of a row that one run holds, and what is subtracted from an offset.
constexpr u32 fp4_exponents_of(Fp4Form form) {
    return form == Fp4Form::mx_e5m2 ? 29 : 15;
}
constexpr u32 fp4_bias_of(Fp4Form form) {
    return form == Fp4Form::mx_e5m2 ? 15 : 8;
}
constexpr u32 fp4_zero_offset_of(Fp4Form form) {
    return fp4_exponents_of(form);
}
// Bytes of scales a thread reads.
constexpr u32 fp4_scale_bytes_of(Fp4Form form) {
    return is_nvfp4(form) ? 3 : form == Fp4Form::mx_e5m2 ? 2 : 1;
}
constexpr u32 fp4_blob_bytes_of(Fp4Form form) {
    return kFp4CodeBytes + 128 * fp4_scale_bytes_of(form);
}
constexpr u32 fp4_row_blocks(u32 n) {
    return ceil_div(n, kFp4BlockRows);
}
constexpr u32 fp4_k_blocks(u32 k) {
    return align_up(k, kFp4PadK) / kFp4BlockK;
}

// Where a code of a block goes. `row` below 64, `k` below 128.
struct Fp4Place {
    u32 word;  // index of the 4-byte word in the blob
    u32 magnitude_bit, sign_bit;
};
constexpr Fp4Place fp4_place(u32 row, u32 k) {
    const u32 thread = row / 16 * 32 + row % 16 / 2 * 4 + k / kFp4ThreadK;
    const u32 step = k % kFp4ThreadK / 8, i = k % 8, half = i / 4, e = i % 4;
    return {row % 2 * (kFp4OddRows / 4) + thread * 4 + step, half * 16 + e * 4, e * 8 + (half == 0 ? 7 : 3)};
}
// The word of eight neighbouring codes, the first in the lowest nibble: fp4_place() of them all. Magnitudes
// stay where they are, signs go to the top of the byte that a permute makes of theirs.
constexpr u32 fp4_word(u32 codes) {
    const auto apart = [](u32 signs) {  // nibble i of the lower half to the lower half of byte i
        signs = (signs | signs << 8) & 0x00ff00ff;
        return (signs | signs << 4) & 0x0f0f0f0f;
    };
    const u32 signs = codes & 0x88888888;
    return (codes & 0x77777777) | apart(signs & 0xffff) << 4 | apart(signs >> 16);
}
constexpr bool fp4_word_agrees() {
    for (u32 k = 0; k < 8; ++k)
        for (u32 code = 0; code < 16; ++code) {
            const Fp4Place place = fp4_place(0, k);
            if (fp4_word(code << (4 * k)) !=
                ((code & 7) << place.magnitude_bit | (code >> 3) << place.sign_bit))
                return false;
        }
    return true;
}
static_assert(fp4_word_agrees());

// Puts the stored scale of (row, group of the blob) into a blob.
constexpr void fp4_store_scale(Fp4Form form, u8* blob, u32 row, u32 group, u32 stored) {
    const u32 of_thread = kFp4ThreadK / fp4_group_of(form);
    const u32 thread = row / 16 * 32 + row % 16 / 2 * 4 + group / of_thread, odd = row % 2;
    const auto put = [blob](u32 byte, u32 mask, u32 bits) {
        blob[byte] = static_cast<u8>((blob[byte] & ~mask) | bits);
    };
    if (form == Fp4Form::mx_e4m3) return put(kFp4CodeBytes + thread, 0xfu << 4 * odd, stored << 4 * odd);
    if (form == Fp4Form::mx_e5m2) return put(kFp4CodeBytes + 2 * thread + odd, 0xff, stored);
    const u32 bytes[] = {kFp4CodeBytes + 2 * thread, kFp4CodeBytes + 2 * thread + 1, kNvThirdBytes + thread};
    const u32 index = odd * of_thread + group % of_thread;
    if (index < 3) return put(bytes[index], 0x3f, stored);
    for (u32 i = 0; i < 3; ++i) put(bytes[i], 0xc0, (stored >> 2 * i & 3) << 6);
}

// The scale bytes of a thread, in the order of memory, from the lowest on, of what is stored for its groups:
// those of the even row, then those of the odd one. fp4_store_scale() of them all.
constexpr u32 fp4_thread_scales(Fp4Form form, const u32 (&stored)[4]) {
    if (form == Fp4Form::mx_e4m3) return stored[0] | stored[1] << 4;
    if (form == Fp4Form::mx_e5m2) return stored[0] | stored[1] << 8;
    const u32 fourth = stored[3];
    return stored[0] | (fourth & 3) << 6 | stored[1] << 8 | (fourth & 12) << 12 | stored[2] << 16 |
           (fourth & 48) << 18;
}

// The 16-byte chunk, of the eight of a token's 128 bytes in shared memory, that gets 4-byte word `word` of
// its activations, before the swizzle; it goes to the chunk's word activation_word(word). Of bf16 the 128
// elements are two tiles of 128 bytes: `element_bytes` times as many words and chunks.
constexpr u32 activation_chunk(u32 word, u32 element_bytes = 1) {
    return word % (8 * element_bytes);
}
constexpr u32 activation_word(u32 word, u32 element_bytes = 1) {
    return word / (8 * element_bytes);
}

// MXFP4: the eight magnitudes {0, 0.5, 1, 1.5, 2, 3, 4, 6} * 2^(offset - bias) as bytes of the decoded
// format, first magnitude in the lowest byte. Zeros for the zero offset and beyond.
constexpr u64 fp4_magnitudes(Fp4Form form, u32 offset) {
    if (offset >= fp4_exponents_of(form)) return 0;
    const u32 mantissa_bits = form == Fp4Form::mx_e5m2 ? 2 : 3;
    const i32 lowest = form == Fp4Form::mx_e5m2 ? -14 : -6;  // exponent of the smallest normal
    constexpr u32 kHalves[] = {0, 1, 2, 3, 4, 6, 8, 12};     // magnitudes in units of 0.5
    u64 bytes = 0;
    for (u32 i = 1; i < 8; ++i) {
        const u32 halves = kHalves[i];
        u32 top = 0;
        while (halves >> (top + 1)) ++top;
        const i32 exponent =
            static_cast<i32>(offset) - static_cast<i32>(fp4_bias_of(form)) - 1 + static_cast<i32>(top);
        u32 byte;
        if (exponent >= lowest) {
            const u32 fraction = (halves << mantissa_bits >> top) & ((1u << mantissa_bits) - 1);
            byte = static_cast<u32>(exponent - lowest + 1) << mantissa_bits | fraction;
        } else {  // a subnormal counts units of 2^(lowest - mantissa bits); halves are units of 2^(offset -
                  // bias - 1)
            const i32 shift = static_cast<i32>(offset) - static_cast<i32>(fp4_bias_of(form)) - 1 - lowest +
                              static_cast<i32>(mantissa_bits);
            byte = halves << shift;
        }
        bytes |= static_cast<u64>(byte) << (8 * i);
    }
    return bytes;
}
static_assert(fp4_magnitudes(Fp4Form::mx_e4m3, 0) == 0x0C08060403020100 &&
              fp4_magnitudes(Fp4Form::mx_e4m3, 14) == 0x7C7874706C686000 &&
              fp4_magnitudes(Fp4Form::mx_e5m2, 0) == 0x0A08060403020100);

}  // namespace deep_gemm
