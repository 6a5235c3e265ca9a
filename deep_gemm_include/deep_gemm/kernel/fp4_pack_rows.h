// What the packer of FP4 weights (kernel/fp4_pack.cuh) finds out about a row: the keys of its scales, the
// windows they make, and what rounding its weights costs.
#pragma once

#include <deep_gemm/spec/fp4_pack.h>
#include <deep_gemm/ptx/convert.h>
#include <deep_gemm/ptx/math.h>

namespace deep_gemm {
namespace fp4_pack_detail {

constexpr u32 kMagnitudes = 0x77777777;  // of eight codes: all but the signs

/// Bits of word `i` that stand for keys below `bound`.
DG_DEVICE u32 bits_below(i32 bound, u32 i) {
    const i32 bits = bound - static_cast<i32>(i * 32);
    return bits <= 0 ? 0 : bits >= 32 ? 0xffffffffu : (1u << bits) - 1;
}

/// A set of keys, in registers.
struct Keys {
    u32 words[kFp4KeyWords] = {};

    DG_DEVICE void set(u32 key) {
        const u32 bit = 1u << key % 32;
#pragma unroll
        for (u32 i = 0; i < kFp4KeyWords; ++i) words[i] |= key / 32 == i ? bit : 0;
    }
    /// -1 where there is none.
    DG_DEVICE i32 highest() const {
        i32 key = -1;
#pragma unroll
        for (u32 i = 0; i < kFp4KeyWords; ++i)
            if (words[i] != 0) key = static_cast<i32>(i * 32 + ptx::highest_bit(words[i]));
        return key;
    }
    /// The lowest of those at or above `bound`; there is one.
    DG_DEVICE i32 lowest_from(i32 bound) const {
        i32 key = 0;
#pragma unroll
        for (u32 i = kFp4KeyWords; i-- > 0;)
            if (const u32 word = words[i] & ~bits_below(bound, i); word != 0)
                key = static_cast<i32>(i * 32 + ptx::lowest_bit(word));
        return key;
    }
    DG_DEVICE void keep_below(i32 bound) {
#pragma unroll
        for (u32 i = 0; i < kFp4KeyWords; ++i) words[i] &= bits_below(bound, i);
    }
};

/// The lowest and the highest key of a row; none where low > high.
struct Range {
    i32 low = static_cast<i32>(kFp4Keys), high = -1;

    DG_DEVICE void add(Range other) {
        low = other.low < low ? other.low : low;
        high = other.high > high ? other.high : high;
    }
    DG_DEVICE void add(u32 key) { add(Range{static_cast<i32>(key), static_cast<i32>(key)}); }
    /// Whether a window of the narrower of a row's forms may not hold it.
    template <Fp4Form F>
    DG_DEVICE bool wide() const {
        return high >= 0 && low < fp4_lowest_key(is_nvfp4(F) ? F : Fp4Form::mx_e4m3, high);
    }
};

struct Window {
    i32 low = 0, high = -1;  // holds no key
};
/// Takes the topmost window away from `keys`.
template <Fp4Form F>
DG_DEVICE Window pop(Keys& keys) {
    const i32 high = keys.highest();
    if (high < 0) return {};
    const i32 bound = fp4_lowest_key(F, high);
    const Window window{keys.lowest_from(bound), high};
    keys.keep_below(bound);
    return window;
}
template <Fp4Form F>
DG_DEVICE u32 count_windows(Keys keys) {
    u32 count = 0;
    while (pop<F>(keys).high >= 0) ++count;
    return count;
}

DG_DEVICE u32 warp_max(u32 value) {
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) {
        const u32 other = ptx::shfl_bfly_u32(value, mask);
        value = other > value ? other : value;
    }
    return value;
}
DG_DEVICE u32 warp_min(u32 value) {
    return ~warp_max(~value);
}
DG_DEVICE double warp_sum(double value) {
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2)
        value += __builtin_bit_cast(double, ptx::shfl_bfly_u64(__builtin_bit_cast(u64, value), mask));
    return value;
}

/// Sums over the weights of a row in units of its global scale, times a power of two that the end takes back.
struct Rounding {
    double squares = 0, weights = 0;
    u32 mantissas = 0;

    /// `words`: the 16 codes of a group. Magnitudes count in halves: 0 to 12; those that are rounded, apart.
    DG_DEVICE void add(const u32 (&words)[2], u32 scale) {
        constexpr u32 kQuarters = nv_error_quarters();
        i32 all = 0, rounded = 0;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const u32 codes = words[i / 2] >> 16 * (i % 2);
            const u32 halves = ptx::permute_bytes(0x03020100, 0x0c080604, codes);
            const u32 apart = ptx::permute_bytes(0x00020100, 0x00080004, codes);
            all = ptx::dp4a(halves, halves, all);
            rounded = ptx::dp4a(apart, apart, rounded);
        }
        const i32 code = nv_code_of(scale), octave = code >> 3;
        const u32 mantissa = static_cast<u32>(code) & 7, significand = 8 + mantissa;
        const u32 quarters = kQuarters >> 4 * mantissa & 0xf;
        const double unit = __builtin_bit_cast(double, static_cast<u64>(1023 + 2 * octave) << 52);
        weights += static_cast<double>(static_cast<u32>(all) * significand * significand) * unit;
        squares += static_cast<double>(static_cast<u32>(rounded) * quarters * quarters) * unit;
        if (rounded != 0 && quarters != 0) mantissas |= 1u << mantissa;
    }
};
constexpr double kWeightsUnit = 0x1p-22;  // of halves, and of scales that count in 2^-10
constexpr double kSquaresUnit = 0x1p-26;  // and of errors in quarters

}  // namespace fp4_pack_detail
}  // namespace deep_gemm
