// The scales of packed NVFP4 weights (spec/fp4_weights.h) and the bytes of e4m3 that a code becomes with one.
//
// An E4M3 scale has 4 significant bits and E2M1 two, their product up to 6: it is no e4m3. Two ways to
// multiply it on a tensor core that takes e4m3:
//
//   nv_single   one term, weight / 1.5 rounded to nearest. {1.5, 3, 6} / 1.5 are powers of two: these
//   products
//               are exact, those with {0.5, 1, 2, 4} are at most 1 / 26 of the weight off, whatever the
//               scale. row_scale carries the 1.5.
//   nv_exact    two terms, 1.5 = 1 + 0.5, 3 = 2 + 1 and 6 = 4 + 2 times the scale: exact.
//
// Scales of a row are moved into a window of eight octaves, in whose middle all these bytes are normal
// numbers, by a power of two that row_scale takes back. In a code of e4m3, times two is plus 8: the window is
// 64 codes, and a blob holds which of them, in 6 bits.
#pragma once

#include <deep_gemm/spec/codec.h>
#include <deep_gemm/spec/fp4_weights.h>

namespace deep_gemm {

constexpr i32 kNvLowest = 0x20, kNvHighest = 0x5f;  // codes in the window: 1/8 to 30
constexpr i32 kNvOctave = 8;                        // codes from a scale to its double
constexpr u32 kNvLargestScale = 0x7e;               // of a checkpoint: 448; beyond it NaN and signs

// Where a scale of a checkpoint, 1 to kNvLargestScale, stands among codes that go on below the normal
// numbers.
constexpr i32 nv_code_of(u32 scale) {
    i32 code = static_cast<i32>(scale);
    if (scale >= 8) return code;
    i32 octaves = 0;  // a subnormal, scale / 8 of the smallest normal number
    for (; code < 8; code *= 2) ++octaves;
    return code - kNvOctave * octaves;
}
static_assert(nv_code_of(7) == 6 && nv_code_of(4) == 0 && nv_code_of(1) == -16);

// The octaves by which codes `low` to `high` may be moved to lie in the window; none where first > last.
struct NvShifts {
    i32 first, last;
};
constexpr NvShifts nv_shifts(i32 low, i32 high) {
    const auto floor_octaves = [](i32 codes) { return (codes + 128) / kNvOctave - 128 / kNvOctave; };
    return {-floor_octaves(low - kNvLowest), floor_octaves(kNvHighest - high)};
}
static_assert(nv_shifts(kNvLowest, kNvHighest).first == 0 && nv_shifts(kNvLowest, kNvHighest).last == 0 &&
              nv_shifts(-16, 48).first == 6 && nv_shifts(-16, 48).last == 5);

// Bytes of the eight magnitudes with the scale of a code, the first magnitude's lowest; a weight is the sum
// of both.
struct NvBytes {
    u64 high = 0, low = 0;
};
constexpr NvBytes nv_bytes(Fp4Form form, u32 code) {
    const float scale = codec::e4m3_to_f32(code);
    NvBytes bytes;
    for (u32 i = 1; i < 8; ++i) {
        const float magnitude = codec::e2m1_to_f32(i);
        const bool three_halves = i % 2 == 1 && i > 1;  // 1.5, 3 or 6
        const float first =
            (form == Fp4Form::nv_single || three_halves ? magnitude / 1.5f : magnitude) * scale;
        const float second = form == Fp4Form::nv_exact && three_halves ? magnitude / 3 * scale : 0;
        bytes.high |= u64{codec::f32_to_e4m3(first)} << (8 * i);
        bytes.low |= u64{codec::f32_to_e4m3(second)} << (8 * i);
    }
    return bytes;
}
static_assert(nv_bytes(Fp4Form::nv_single, 0x38).high == 0x4843403B38332B00 &&
              nv_bytes(Fp4Form::nv_exact, 0x38).high == 0x4848404038383000 &&
              nv_bytes(Fp4Form::nv_exact, 0x38).low == 0x4000380030000000);

// nv_single: the multiple of the scale that is multiplied in the place of `magnitude` times it.
constexpr double nv_single_of(u32 magnitude, u32 code) {
    const u32 byte = static_cast<u32>(nv_bytes(Fp4Form::nv_single, code).high >> (8 * magnitude)) & 0xff;
    return 1.5 * static_cast<double>(codec::e4m3_to_f32(byte)) /
           static_cast<double>(codec::e4m3_to_f32(code));
}

}  // namespace deep_gemm
