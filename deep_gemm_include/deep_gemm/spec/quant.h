// How a matrix W [n, k] is stored when its elements are narrower than what it stands for: one row per layout.
// Host, device and Python (through _C.quant_formats) read this table and nothing else.
//
//   value[r][c] = (code[r][c] - zero[r][c / block_k]) * scale[r / block_rows][c / block_k] * global
//
// Rows are stored one after another, K contiguous; a 4-bit row is padded to 128 elements (interleaved) or to
// 32 (fragments). Scales are [ceil(n / block_rows), ceil(k / block_k)], row-major.
#pragma once

#include <deep_gemm/spec/format.h>

namespace deep_gemm {

enum class Quant : u8 {
    bf16,
    fp16,
    fp8_128x128,  // E4M3, fp32 scale for 128 x 128
    fp8_row,      // E4M3, fp32 scale for a row
    fp8_32,       // E4M3, fp32 scale for 32 of a row
    int8_row,     // signed bytes, fp32 scale for a row
    q8_0,         // GGUF: blocks of 34 bytes, fp16 scale then 32 signed bytes
    q8_0_split,   // the same numbers: bytes [n, k] and fp16 scales [n, k / 32]
    int4_32,      // 4-bit codes, fp16 scale for 32, 64 or 128 of a row; zero is 8
    int4_64,
    int4_128,
    int4_zero_32,  // the same with a zero point (a byte, 0 to 15) beside each scale
    int4_zero_64,
    int4_zero_128,
    mxfp4,     // E2M1, UE8M0 scale for 32
    nvfp4,     // E2M1, E4M3 scale for 16, fp32 scale for the matrix
    nvfp4_32,  // E2M1, UE4M3 scale for 32 (no subnormals, no NaN: 0x7f is 480), fp32 scale for the matrix
};
constexpr u32 kNumQuants = static_cast<u32>(Quant::nvfp4_32) + 1;

// Where the elements of a row are within its bytes.
enum class Packing : u8 {
    linear,  // in order; two to a byte, the first in the low nibble
    blocks,  // scale and elements of a block side by side (Q8_0)
    // 4 bits, groups of 32 elements, and within a word the bits of codes apart, where few instructions make
    // numbers of them: word q of a group holds elements 8 i + 2 q (in its low half, and two signs in the
    // other) and the ones after, i = 0 to 3. Bits of the low half, and 16 from there of the high one:
    //   i      sign          exponent, mantissa
    //   0      15            8, 7, 6
    //   1       2, of the other half    11, 10, 9
    //   2       5, of the other half    14, 13, 12
    //   3       1            0, 4, 3
    fragments,
    interleaved,  // 4 bits, chunks of 128 elements: word 4 c + g of a chunk holds elements 32 g + 8 c to + 7
};

enum class ScaleType : u8 { none, fp32, fp16, ue8m0, e4m3, ue4m3 };

struct QuantRow {
    const char* name;
    Format element;
    u32 element_bits;
    u32 block_rows, block_k;  // elements that share a scale; block_k 0: the whole row
    ScaleType scale;
    bool has_zero;
    bool has_global;
    Packing packing;
};

constexpr QuantRow row_of(Quant quant) {
    constexpr Packing kLinear = Packing::linear, kInterleaved = Packing::interleaved,
                      kFragments = Packing::fragments;
    switch (quant) {
        case Quant::bf16: return {"bf16", Format::bf16, 16, 1, 0, ScaleType::none, false, false, kLinear};
        case Quant::fp16: return {"fp16", Format::fp16, 16, 1, 0, ScaleType::none, false, false, kLinear};
        case Quant::fp8_128x128:
            return {"fp8_128x128", Format::fp8_e4m3, 8, 128, 128, ScaleType::fp32, false, false, kLinear};
        case Quant::fp8_row:
            return {"fp8_row", Format::fp8_e4m3, 8, 1, 0, ScaleType::fp32, false, false, kLinear};
        case Quant::fp8_32:
            return {"fp8_32", Format::fp8_e4m3, 8, 1, 32, ScaleType::fp32, false, false, kLinear};
        case Quant::int8_row:
            return {"int8_row", Format::int8, 8, 1, 0, ScaleType::fp32, false, false, kLinear};
        case Quant::q8_0:
            return {"q8_0", Format::int8, 8, 1, 32, ScaleType::fp16, false, false, Packing::blocks};
        case Quant::q8_0_split:
            return {"q8_0_split", Format::int8, 8, 1, 32, ScaleType::fp16, false, false, kLinear};
        case Quant::int4_32:
            return {"int4_32", Format::int8, 4, 1, 32, ScaleType::fp16, false, false, kInterleaved};
        case Quant::int4_64:
            return {"int4_64", Format::int8, 4, 1, 64, ScaleType::fp16, false, false, kInterleaved};
        case Quant::int4_128:
            return {"int4_128", Format::int8, 4, 1, 128, ScaleType::fp16, false, false, kInterleaved};
        case Quant::int4_zero_32:
            return {"int4_zero_32", Format::int8, 4, 1, 32, ScaleType::fp16, true, false, kInterleaved};
        case Quant::int4_zero_64:
            return {"int4_zero_64", Format::int8, 4, 1, 64, ScaleType::fp16, true, false, kInterleaved};
        case Quant::int4_zero_128:
            return {"int4_zero_128", Format::int8, 4, 1, 128, ScaleType::fp16, true, false, kInterleaved};
        case Quant::mxfp4:
            return {"mxfp4", Format::fp4_e2m1, 4, 1, 32, ScaleType::ue8m0, false, false, kFragments};
        case Quant::nvfp4:
            return {"nvfp4", Format::fp4_e2m1, 4, 1, 16, ScaleType::e4m3, false, true, kFragments};
        case Quant::nvfp4_32:
            return {"nvfp4_32", Format::fp4_e2m1, 4, 1, 32, ScaleType::ue4m3, false, true, kFragments};
    }
    return {};
}

constexpr const char* name_of(Quant quant) {
    return row_of(quant).name;
}
constexpr const char* name_of(ScaleType type) {
    switch (type) {
        case ScaleType::none: return "none";
        case ScaleType::fp32: return "fp32";
        case ScaleType::fp16: return "fp16";
        case ScaleType::ue8m0: return "ue8m0";
        case ScaleType::e4m3: return "e4m3";
        case ScaleType::ue4m3: return "ue4m3";
    }
    return "?";
}
constexpr u32 bytes_of(ScaleType type) {
    return type == ScaleType::none ? 0 : type == ScaleType::fp32 ? 4 : type == ScaleType::fp16 ? 2 : 1;
}

constexpr u32 kQ8Block = 32;       // elements of a Q8_0 block
constexpr u32 kQ8BlockBytes = 34;  // its fp16 scale and its bytes
constexpr u32 kInterleaveK = 128;  // elements of an interleaved chunk
constexpr u32 kFragmentK = 32;     // elements of a group of fragments

// Bytes of a row's elements (with its scales for Packing::blocks).
constexpr u64 row_bytes_of(Quant quant, u64 k) {
    const QuantRow row = row_of(quant);
    if (row.packing == Packing::blocks) return ceil_div(k, u64{kQ8Block}) * kQ8BlockBytes;
    if (row.packing == Packing::interleaved) return ceil_div(k, u64{kInterleaveK}) * (kInterleaveK / 2);
    if (row.packing == Packing::fragments) return ceil_div(k, u64{kFragmentK}) * (kFragmentK / 2);
    return ceil_div(k * row.element_bits, u64{8});
}
// Scales along K; 0 where the format keeps none apart from its elements.
constexpr u64 scale_columns_of(Quant quant, u64 k) {
    const QuantRow row = row_of(quant);
    if (row.scale == ScaleType::none || row.packing == Packing::blocks) return 0;
    return row.block_k == 0 ? 1 : ceil_div(k, u64{row.block_k});
}

// What stands beside the weights: activations x [m, k].
enum class Activation : u8 {
    bf16,
    fp16,
    fp8_128,   // E4M3 with an fp32 scale for 128 of a row
    fp8_32,    // E4M3 with an fp32 scale for 32 of a row
    int8_row,  // signed bytes with an fp32 scale for a row
    q8,        // signed bytes with an fp32 scale for 32 of a row: what Q8_0 weights are multiplied with
};

constexpr const char* name_of(Activation x) {
    switch (x) {
        case Activation::bf16: return "bf16";
        case Activation::fp16: return "fp16";
        case Activation::fp8_128: return "fp8_128";
        case Activation::fp8_32: return "fp8_32";
        case Activation::int8_row: return "int8_row";
        case Activation::q8: return "q8";
    }
    return "?";
}
// Elements of K that share a scale; 0: there is none, or one for the row.
constexpr u32 block_k_of(Activation x) {
    return x == Activation::fp8_128 ? 128 : x == Activation::fp8_32 || x == Activation::q8 ? 32 : 0;
}
constexpr Format element_of(Activation x) {
    switch (x) {
        case Activation::bf16: return Format::bf16;
        case Activation::fp16: return Format::fp16;
        case Activation::int8_row:
        case Activation::q8: return Format::int8;
        default: return Format::fp8_e4m3;
    }
}

// nullptr, or why no kernel multiplies these.
constexpr const char* why_no_product(Quant w, Activation x) {
    const bool q8 = w == Quant::q8_0 || w == Quant::q8_0_split;
    if (q8 != (x == Activation::q8)) return "Q8_0 weights are multiplied with q8 activations, and only they";
    if ((w == Quant::fp16) != (x == Activation::fp16))
        return "fp16 activations are for fp16 weights, and fp16 weights for them";
    if (x == Activation::int8_row && w != Quant::int8_row)
        return "int8 activations are for int8 weights (int8_row)";
    if (x == Activation::fp8_32 && w != Quant::fp8_32)
        return "activations with a scale for 32 are for weights with a scale for 32 (fp8_32)";
    if (x == Activation::fp8_128 && row_of(w).element_bits == 16)
        return "fp8 activations are for weights of 8 or 4 bits";
    return nullptr;
}

}  // namespace deep_gemm
