// Two kernels in portable vector code, compiled for AVX2 and for the baseline and chosen at load time.
// Elements outside their domain (NaN, infinity, extreme exponents) are computed again, one by one, in double.
#include "emulator/tensor/accumulate.h"

#include "emulator/formats/float_layout.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#define DG_VECTOR_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define DG_VECTOR_CLONES
#endif
#define DG_ALWAYS_INLINE __attribute__((always_inline)) inline

namespace deep_gemm::emulator {

namespace {

constexpr u32 kLanes = 8;
typedef float F32x8 __attribute__((vector_size(32), aligned(4)));
typedef i32 I32x8 __attribute__((vector_size(32), aligned(4)));
typedef u32 U32x8 __attribute__((vector_size(32), aligned(4)));
typedef double F64x8 __attribute__((vector_size(64), aligned(8)));
typedef i64 I64x8 __attribute__((vector_size(64), aligned(8)));
typedef i16 I16x8 __attribute__((vector_size(16), aligned(2)));

struct FusedSum {
    i32 fraction_bits = 0;  // F
    u32 result_bits = 0;    // R
};

constexpr FusedSum kFp8Sum{13, 13}, kWideSum{25, 23};

// Rows with a NaN, an infinity or an extreme accumulator are reported for the slow path.
struct Tile {
    const DecodedOperand& a;
    const DecodedOperand& b;
    const float* c;  // [a.rows][n]
    float* out;      // [a.rows][n]
    u32 n;
    FusedSum sum;
    bool negate;
};

constexpr i32 fraction_mask(u32 bits) {
    return ~((1 << (23 - bits)) - 1);
}

// products + c, truncated toward zero to the result's fraction bits, as fp32. Vectors go by reference: by
// value they would change the calling convention between the two targets.
template <FusedSum kSum>
DG_ALWAYS_INLINE void truncated_sum(const I32x8& products, const I32x8& c, F32x8& out) {
    if constexpr (kSum.fraction_bits <= 18) {  // 32 products below 2^(F + 2): the sum is exact in fp32
        const F32x8 sum = __builtin_convertvector(products + c, F32x8);
        out = reinterpret_cast<F32x8>(reinterpret_cast<I32x8>(sum) & fraction_mask(kSum.result_bits));
    } else {
        const F64x8 sum = __builtin_convertvector(products, F64x8) + __builtin_convertvector(c, F64x8);
        constexpr i64 kKept = ~((i64{1} << (52 - kSum.result_bits)) - 1);
        out = __builtin_convertvector(reinterpret_cast<F64x8>(reinterpret_cast<I64x8>(sum) & kKept), F32x8);
    }
}

// One row times kBlocks * 8 columns starting at `column`. Returns whether an accumulator was not finite.
template <FusedSum kSum, u32 kBlocks>
DG_ALWAYS_INLINE bool fused_row(const Tile& tile, u32 row, u32 column) {
    const DecodedOperand& a = tile.a;
    const DecodedOperand& b = tile.b;
    const i16* a_exponents = a.exponents.data() + static_cast<std::size_t>(row) * a.pitch;
    const float* a_values = a.values.data() + static_cast<std::size_t>(row) * a.pitch;

    I16x8 largest[kBlocks];
    for (u32 j = 0; j < kBlocks; ++j)
        largest[j] = I16x8{} + static_cast<i16>(2 * DecodedOperand::kZeroExponent);
    for (u32 k = 0; k < a.k; ++k) {
        const i16 exponent = a_exponents[k];
        const i16* other = b.exponents.data() + static_cast<std::size_t>(k) * b.pitch + column;
        for (u32 j = 0; j < kBlocks; ++j) {
            const I16x8 sum = *reinterpret_cast<const I16x8*>(other + j * kLanes) + exponent;
            largest[j] = sum > largest[j] ? sum : largest[j];
        }
    }

    // Align to the accumulator's exponent too; below the fast domain there is no product, only the
    // accumulator.
    constexpr i32 kLowest = 2 * DecodedOperand::kMinFastExponent;
    F32x8 c[kBlocks], scale[kBlocks];
    I32x8 alignment[kBlocks], no_product[kBlocks], not_finite{};
    const float* c_row = tile.c + static_cast<std::size_t>(row) * tile.n + column;
    for (u32 j = 0; j < kBlocks; ++j) {
        c[j] = *reinterpret_cast<const F32x8*>(c_row + j * kLanes);
        const I32x8 c_exponent = ((reinterpret_cast<I32x8>(c[j]) >> 23) & 0xff) - 127;
        const I32x8 products = __builtin_convertvector(largest[j], I32x8);
        no_product[j] = products < kLowest;
        I32x8 exponent = products > c_exponent ? products : c_exponent;
        exponent = exponent < kLowest ? I32x8{} + kLowest : exponent;
        alignment[j] = exponent - kSum.fraction_bits;
        scale[j] = reinterpret_cast<F32x8>((127 - alignment[j]) << 23);
        not_finite |= c_exponent == 128;
    }

    U32x8 total[kBlocks]{};
    for (u32 k = 0; k < a.k; ++k) {
        const float value = a_values[k];
        const float* other = b.values.data() + static_cast<std::size_t>(k) * b.pitch + column;
        for (u32 j = 0; j < kBlocks; ++j) {
            // The product is exact; scaling by a power of two is too; the conversion truncates toward zero.
            const F32x8 product = *reinterpret_cast<const F32x8*>(other + j * kLanes) * value;
            total[j] += reinterpret_cast<U32x8>(__builtin_convertvector(product * scale[j], I32x8));
        }
    }

    float* out_row = tile.out + static_cast<std::size_t>(row) * tile.n + column;
    for (u32 j = 0; j < kBlocks; ++j) {
        const I32x8 products = reinterpret_cast<I32x8>(total[j]);
        const I32x8 aligned_c = __builtin_convertvector(c[j] * scale[j], I32x8);
        const F32x8 unit = reinterpret_cast<F32x8>((127 + alignment[j]) << 23);
        F32x8 fused;
        truncated_sum<kSum>(tile.negate ? -products : products, aligned_c, fused);
        const I32x8 c_kept = reinterpret_cast<I32x8>(c[j]) & fraction_mask(kSum.result_bits);
        const F32x8 result = no_product[j] ? reinterpret_cast<F32x8>(c_kept) : fused * unit;
        *reinterpret_cast<F32x8*>(out_row + j * kLanes) = result + 0.0f;  // a sum that is zero is +0
    }
    i32 any = 0;
    for (u32 lane = 0; lane < kLanes; ++lane) any |= not_finite[lane];
    return any != 0;
}

template <FusedSum kSum>
DG_ALWAYS_INLINE void fused_rows(const Tile& tile, u8* slow_rows) {
    u32 column = 0;
    for (; column + 4 * kLanes <= tile.n; column += 4 * kLanes) {
        for (u32 row = 0; row < tile.a.rows; ++row) slow_rows[row] |= fused_row<kSum, 4>(tile, row, column);
    }
    for (; column < tile.n; column += kLanes) {
        for (u32 row = 0; row < tile.a.rows; ++row) slow_rows[row] |= fused_row<kSum, 1>(tile, row, column);
    }
}

DG_VECTOR_CLONES void fused_tile_fp8(const Tile& tile, u8* slow_rows) {
    fused_rows<kFp8Sum>(tile, slow_rows);
}
DG_VECTOR_CLONES void fused_tile_wide(const Tile& tile, u8* slow_rows) {
    fused_rows<kWideSum>(tile, slow_rows);
}

// A product of two operand elements is exact in fp32, so a multiply and an add are the fused multiply-add.
template <u32 kBlocks>
DG_ALWAYS_INLINE void exact_row(const Tile& tile, u32 row, u32 column) {
    const float* a_values = tile.a.values.data() + static_cast<std::size_t>(row) * tile.a.pitch;
    const float* c_row = tile.c + static_cast<std::size_t>(row) * tile.n + column;
    float* out_row = tile.out + static_cast<std::size_t>(row) * tile.n + column;
    F32x8 total[kBlocks];
    for (u32 j = 0; j < kBlocks; ++j) total[j] = *reinterpret_cast<const F32x8*>(c_row + j * kLanes);
    for (u32 k = 0; k < tile.a.k; ++k) {
        const float value = tile.negate ? -a_values[k] : a_values[k];
        const float* other = tile.b.values.data() + static_cast<std::size_t>(k) * tile.b.pitch + column;
        for (u32 j = 0; j < kBlocks; ++j)
            total[j] += *reinterpret_cast<const F32x8*>(other + j * kLanes) * value;
    }
    for (u32 j = 0; j < kBlocks; ++j) *reinterpret_cast<F32x8*>(out_row + j * kLanes) = total[j];
}

DG_VECTOR_CLONES void exact_tile(const Tile& tile) {
    u32 column = 0;
    for (; column + 8 * kLanes <= tile.n; column += 8 * kLanes) {
        for (u32 row = 0; row < tile.a.rows; ++row) exact_row<8>(tile, row, column);
    }
    for (; column < tile.n; column += kLanes) {
        for (u32 row = 0; row < tile.a.rows; ++row) exact_row<1>(tile, row, column);
    }
}

// The definition, one output at a time. Also the only code for FP16 destinations.
float fused_element(const Tile& tile, AccumulatorType type, u32 row, u32 column) {
    const float c = tile.c[static_cast<std::size_t>(row) * tile.n + column];
    i32 largest =
        c == 0.0f || !std::isfinite(c) ? DecodedOperand::kZeroExponent : std::max(std::ilogb(c), -126);
    double plain = c;
    for (u32 k = 0; k < tile.a.k; ++k) {
        const u32 i = tile.a.index(row, k), j = tile.b.index(column, k);
        plain += double{tile.a.values[i]} * tile.b.values[j] * (tile.negate ? -1 : 1);
        if (tile.a.exponents[i] > DecodedOperand::kZeroExponent &&
            tile.b.exponents[j] > DecodedOperand::kZeroExponent) {
            largest = std::max(largest, i32{tile.a.exponents[i]} + tile.b.exponents[j]);
        }
    }
    if (std::isnan(plain)) return std::bit_cast<float>(0x7fffffffu);
    if (std::isinf(plain)) return static_cast<float>(plain);
    if (largest == DecodedOperand::kZeroExponent) return 0.0f;

    const i32 up = tile.sum.fraction_bits - largest;
    double products = 0;
    for (u32 k = 0; k < tile.a.k; ++k) {
        const double product =
            double{tile.a.values[tile.a.index(row, k)]} * tile.b.values[tile.b.index(column, k)];
        products += std::trunc(std::ldexp(product, up));
    }
    const double sum = std::trunc(std::ldexp(double{c}, up)) + (tile.negate ? -products : products);
    const double value = std::ldexp(sum, -up);
    if (type == AccumulatorType::f16)
        return formats::decode(formats::encode(value, formats::kF16), formats::kF16);
    constexpr double kOverflow = 0x1p128;
    if (std::fabs(value) >= kOverflow)
        return std::copysign(std::numeric_limits<float>::infinity(), static_cast<float>(sum));
    const u32 mantissa = tile.sum.result_bits;
    const formats::FloatLayout layout{8,    mantissa, 127, (0xffu << mantissa) - 1, (0x100u << mantissa) - 1,
                                      true, true};
    return formats::decode(formats::encode(value, layout, formats::Rounding::zero), layout) + 0.0f;
}

}  // namespace

void accumulate(const AccumulateOptions& options, const DecodedOperand& a, const DecodedOperand& b,
                float* d) {
    const u32 n = b.rows;
    const std::size_t size = static_cast<std::size_t>(a.rows) * n;
    if (!options.scale_d) std::fill_n(d, size, 0.0f);
    thread_local std::vector<float> out;  // keeps its capacity between the thousands of calls of a launch
    out.resize(size);
    const Tile tile{a, b, d, out.data(), n, options.fp8 ? kFp8Sum : kWideSum, options.negate};
    if (options.mode == AccumulatorMode::exact) {
        exact_tile(tile);
        if (options.type == AccumulatorType::f16) {
            for (float& value : out)
                value = formats::decode(formats::encode(value, formats::kF16), formats::kF16);
        }
    } else {
        const bool all_slow = options.type == AccumulatorType::f16;
        std::vector<u8> slow_rows(a.slow_rows);
        if (!all_slow) (options.fp8 ? fused_tile_fp8 : fused_tile_wide)(tile, slow_rows.data());
        for (u32 row = 0; row < a.rows; ++row) {
            if (!all_slow && !slow_rows[row] && !b.any_slow) continue;
            for (u32 column = 0; column < n; ++column) {
                if (all_slow || slow_rows[row] || b.slow_rows[column]) {
                    out[static_cast<std::size_t>(row) * n + column] =
                        fused_element(tile, options.type, row, column);
                }
            }
        }
    }
    std::memcpy(d, out.data(), size * sizeof(float));
}

}  // namespace deep_gemm::emulator
