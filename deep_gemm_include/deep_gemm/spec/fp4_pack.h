// Packing FP4 weights on the device: what the kernel is (Fp4PackSpec), what it is called with (Fp4PackParams)
// and what it says of each block of 64 rows (Fp4PackRecord). A CTA packs one block: it reads the block's
// codes and scales once to find the windows of its rows (spec/fp4_windows.h), and once more, out of L2, to
// write its blobs. The records tell the host which form takes the fewest bytes and whether some row needs
// more runs than one; what was written is right unless that is another form, or more runs, than this launch
// was for.
#pragma once

#include <deep_gemm/spec/fp4_windows.h>

namespace deep_gemm {

constexpr u32 kFp4PackThreads = 256;
constexpr u32 kFp4PackWarpgroups = kFp4PackThreads / 128;  // each takes the blobs of its turn
constexpr u32 kFp4PackWarps = kFp4PackThreads / 32;
constexpr u32 kFp4NoneBad = 0xffffffff;

struct Fp4PackSpec {
    Fp4Form form = Fp4Form::mx_e4m3;

    friend constexpr bool operator==(const Fp4PackSpec&, const Fp4PackSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const Fp4PackSpec& s) {
    visit("form", s.form);
}

// [0]: with the windows of mx_e4m3 or of NVFP4; [1]: with those of mx_e5m2, MXFP4 only.
struct Fp4PackRecord {
    u32 runs[2];         // that the block needs
    u32 rows_beyond[2];  // rows that need more than one
    u32 widest;          // octaves from a row's lowest scale to its highest, at most
    u32 bad_scale;       // row in block * groups along K + group of the first that is none; kFp4NoneBad
    u32 bad_global;      // the first row of the block whose global scale is out of range; kFp4NoneBad
    u32 mantissas;       // nv_single: bit m: a weight whose scale has mantissa m was rounded
    double squares;      // nv_single: of errors, and of the weights
    double weights;
};

struct Fp4PackParams {
    const u8* codes;       // [experts, n, k / 2], starts at a multiple of 16
    const u8* scales;      // [experts, n, k / group]
    const float* globals;  // NVFP4: [experts, n] at the strides below; null: ones
    const u32* runs;       // [experts * blocks] as of packed weights; null: one for each block
    u8* blobs;
    float* row_scales;
    Fp4PackRecord* records;  // [experts * blocks]
    u64 globals_stride_expert, globals_stride_row;
    u32 experts, n, k;
};

struct Fp4PackSmem {
    u32 ranges;  // i32[warpgroups][64 rows][2]: lowest and highest key
    u32 keys;    // u32[warpgroups][64 rows][8]: a bit for each key, of rows that one window may not hold
    u32 bad;     // u32[warps][2]: bad_scale, mantissas
    u32 sums;    // double[warps][2]: squares, weights
    u32 rows;    // u32[4 warps][6]: runs, rows_beyond, widest, bad_global
    u32 bytes;
};
constexpr u32 kFp4KeyWords = kFp4Keys / 32;
constexpr u32 kFp4RowWords = 6;
constexpr Fp4PackSmem plan_smem(const Fp4PackSpec&) {
    Fp4PackSmem p{};
    p.sums = 0;
    p.bad = p.sums + kFp4PackWarps * 16;
    p.rows = p.bad + kFp4PackWarps * 8;
    p.ranges = p.rows + 4 * kFp4RowWords * 4;
    p.keys = p.ranges + kFp4PackWarpgroups * kFp4BlockRows * 8;
    p.bytes = p.keys + kFp4PackWarpgroups * kFp4BlockRows * kFp4KeyWords * 4;
    return p;
}

// nv_single: by how many quarters of (8 + mantissa) / 8 times 1 / 8 of a weight's magnitude its rounding is
// off, for each mantissa of a scale, 4 bits each: |error| = magnitude * 2^octave * quarters / 4 in the units
// in which the scale is (8 + mantissa) * 2^octave. Magnitudes 1.5, 3 and 6 are exact.
constexpr u32 nv_error_quarters() {
    u32 all = 0;
    for (u32 mantissa = 0; mantissa < 8; ++mantissa) {
        const double off = nv_single_of(1, 0x38 | mantissa) * 2 - 1;
        const double quarters = (off < 0 ? -off : off) * (8 + mantissa) * 4;
        all |= static_cast<u32>(quarters + 0.5) << (4 * mantissa);
    }
    return all;
}
static_assert(nv_error_quarters() == 0x02201101);

}  // namespace deep_gemm
