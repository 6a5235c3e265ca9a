// How the scales of a row of FP4 weights fit the forms of spec/fp4_weights.h: which of them share a run, what
// they are stored as, and what row_scale makes up for. The packers of host and device compute no more than
// this.
//
// A *key* is a scale as an integer in the order of values, 0 to 255: the byte of UE8M0, or the code
// nv_code_of() of E4M3 from the smallest up. A *window* is a stretch of a row's keys that one run holds,
// [low, high], both used; windows are cut from the top down, so that a row whose scales fit has one.
#pragma once

#include <deep_gemm/spec/nvfp4_weights.h>

namespace deep_gemm {

constexpr i32 kNvSmallest = nv_code_of(1);  // has key 0
constexpr u32 kFp4Keys = 256;
constexpr float kFp4SmallestGlobal = 0x1p-100f, kFp4LargestGlobal = 0x1p100f;

// Whether a checkpoint may hold the byte: no NaN, and no sign. Zero, which E4M3 has, stands for zeros.
constexpr bool fp4_is_scale(Fp4Form form, u32 scale) {
    return is_nvfp4(form) ? scale <= kNvLargestScale : scale != codec::kUe8m0Nan;
}
constexpr u32 fp4_key_of(Fp4Form form, u32 scale) {
    return is_nvfp4(form) ? static_cast<u32>(nv_code_of(scale) - kNvSmallest) : scale;
}
// The octave of a key; only differences mean something.
constexpr i32 fp4_octave_of(Fp4Form form, i32 key) {
    return is_nvfp4(form) ? key / kNvOctave : key;
}

// The lowest key, used or not, that shares a run with key `high`; may be negative.
constexpr i32 fp4_lowest_key(Fp4Form form, i32 high) {
    if (!is_nvfp4(form)) return high - static_cast<i32>(fp4_exponents_of(form)) + 1;
    const i32 code = high + kNvSmallest;
    return kNvLowest - nv_shifts(code, code).last * kNvOctave - kNvSmallest;
}
// A stored scale is key + shift; row_scale takes the shift back. `global`: of NVFP4, kFp4SmallestGlobal to
// kFp4LargestGlobal.
struct Fp4Placement {
    i32 shift = 0;
    float row_scale = 1;
};
constexpr Fp4Placement fp4_placement(Fp4Form form, i32 low, i32 high, float global) {
    const auto power_of_two = [](i32 exponent) {
        return codec::float_of_bits(static_cast<u32>(exponent + static_cast<i32>(codec::kBias))
                                    << codec::kMantissaBits);
    };
    const auto clamp = [](i32 value, i32 least, i32 most) {
        return value < least ? least : value > most ? most : value;
    };
    if (is_nvfp4(form)) {
        const NvShifts shifts = nv_shifts(low + kNvSmallest, high + kNvSmallest);
        const i32 octaves = clamp(0, shifts.first, shifts.last);
        const float unit = form == Fp4Form::nv_single ? 1.5f : 1.0f;
        return {kNvSmallest + octaves * kNvOctave, global * unit * power_of_two(-octaves)};
    }
    // The window sits in the middle of what the form holds, where e4m3 and e5m2 are normal, unless row_scale
    // would leave the normal numbers of fp32.
    const i32 room = static_cast<i32>(fp4_exponents_of(form)) - 1 - (high - low);
    const i32 to_scale = static_cast<i32>(fp4_bias_of(form)) - static_cast<i32>(codec::kBias);
    const i32 least = low + to_scale - 127, most = low + to_scale + 126;
    const i32 lowest = clamp(room / 2, least > 0 ? least : 0, most < room ? most : room);
    return {lowest - low, power_of_two(to_scale - (lowest - low))};
}
// The bits that a blob holds.
constexpr u32 fp4_stored_scale(Fp4Form form, u32 key, i32 shift) {
    const u32 stored = static_cast<u32>(static_cast<i32>(key) + shift);
    return is_nvfp4(form) ? stored - static_cast<u32>(kNvLowest) : stored;
}

}  // namespace deep_gemm
