#include "op/fp4_windows.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace deep_gemm::op {

namespace {

constexpr i32 kUe8m0Bias = 127;
constexpr u32 kUe8m0Nan = 255;
constexpr i32 kNvSmallest = nv_code_of(1);  // has key 0

NvShifts nv_shifts_of(i32 low_key, i32 high_key) {
    return nv_shifts(low_key + kNvSmallest, high_key + kNvSmallest);
}

bool fit_together(Fp4Form form, i32 low, i32 high) {
    if (!is_nvfp4(form)) return high - low < static_cast<i32>(fp4_exponents_of(form));
    const NvShifts shifts = nv_shifts_of(low, high);
    return shifts.first <= shifts.last;
}

// The window sits in the middle of what the form holds, where e4m3 and e5m2 are normal, unless row_scale
// would leave fp32.
i32 lowest_offset(Fp4Form form, const ScaleWindow& window) {
    const i32 room = static_cast<i32>(fp4_exponents_of(form)) - 1 - (window.high - window.low);
    const i32 to_scale = static_cast<i32>(fp4_bias_of(form)) - kUe8m0Bias;
    return std::clamp(room / 2, std::max(0, window.low + to_scale - 127),
                      std::min(room, window.low + to_scale + 126));
}

}  // namespace

i32 ScaleKeys::lowest() const {
    i32 word = 0;
    while (words_[static_cast<size_t>(word)] == 0) ++word;
    return word * 64 + std::countr_zero(words_[static_cast<size_t>(word)]);
}
i32 ScaleKeys::highest() const {
    i32 word = 3;
    while (words_[static_cast<size_t>(word)] == 0) --word;
    return word * 64 + 63 - std::countl_zero(words_[static_cast<size_t>(word)]);
}

u32 scale_key(Fp4Form form, u8 scale) {
    return is_nvfp4(form) ? static_cast<u32>(nv_code_of(scale) - kNvSmallest) : scale;
}

bool is_scale(Fp4Form form, u8 scale) {
    return is_nvfp4(form) ? scale <= kNvLargestScale : scale != kUe8m0Nan;
}

std::vector<ScaleWindow> windows_of(Fp4Form form, const ScaleKeys& used) {
    if (used.none()) return {};
    const i32 lowest = used.lowest(), highest = used.highest();
    if (fit_together(form, lowest, highest)) return {{lowest, highest}};
    std::vector<ScaleWindow> windows;
    for (i32 key = highest; key >= lowest; --key) {
        if (!used.test(static_cast<u32>(key))) continue;
        if (windows.empty() || !fit_together(form, key, windows.back().high))
            windows.push_back({key, key});
        else
            windows.back().low = key;
    }
    return windows;
}

ScalePlacement place_window(Fp4Form form, const ScaleWindow& window, float global) {
    if (is_nvfp4(form)) {
        const NvShifts shifts = nv_shifts_of(window.low, window.high);
        const i32 octaves = std::clamp(0, shifts.first, shifts.last);
        const float unit = form == Fp4Form::nv_single ? 1.5f : 1.0f;
        return {.shift = kNvSmallest + octaves * kNvOctave, .row_scale = std::ldexp(global * unit, -octaves)};
    }
    const i32 shift = lowest_offset(form, window) - window.low;
    return {.shift = shift,
            .row_scale = std::ldexp(1.0f, static_cast<i32>(fp4_bias_of(form)) - kUe8m0Bias - shift)};
}

u32 stored_scale(Fp4Form form, u32 key, i32 shift) {
    const u32 stored = static_cast<u32>(static_cast<i32>(key) + shift);
    return is_nvfp4(form) ? stored - static_cast<u32>(kNvLowest) : stored;
}

u32 octaves_of(Fp4Form form, const ScaleKeys& used) {
    if (used.none()) return 0;
    const i32 octave = is_nvfp4(form) ? kNvOctave : 1;
    return static_cast<u32>(used.highest() / octave - used.lowest() / octave + 1);
}

}  // namespace deep_gemm::op
