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

constexpr FusedSum fused_sum_of(bool fp8) {
    return fp8 ? FusedSum{13, 13} : FusedSum{25, 23};
}

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

// One row times kBlocks * 8 columns starting at `column`. Returns whether an accumulator was not finite.
template <u32 kBlocks>
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
        alignment[j] = exponent - tile.sum.fraction_bits;
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

    const i64 kept = ~((i64{1} << (52 - tile.sum.result_bits)) - 1);
    float* out_row = tile.out + static_cast<std::size_t>(row) * tile.n + column;
    for (u32 j = 0; j < kBlocks; ++j) {
        const F64x8 products = __builtin_convertvector(reinterpret_cast<I32x8>(total[j]), F64x8);
        const I32x8 aligned_c = __builtin_convertvector(c[j] * scale[j], I32x8);
        const F64x8 sum = __builtin_convertvector(aligned_c, F64x8) + (tile.negate ? -products : products);
        const F64x8 truncated = reinterpret_cast<F64x8>(reinterpret_cast<I64x8>(sum) & kept);
        const F32x8 unit = reinterpret_cast<F32x8>((127 + alignment[j]) << 23);
        const F32x8 fused = __builtin_convertvector(truncated, F32x8) * unit;
        const I32x8 c_kept = reinterpret_cast<I32x8>(c[j]) & static_cast<i32>(kept >> 29);
        *reinterpret_cast<F32x8*>(out_row + j * kLanes) =
            (no_product[j] ? reinterpret_cast<F32x8>(c_kept) : fused) + 0.0f;
    }
    i32 any = 0;
    for (u32 lane = 0; lane < kLanes; ++lane) any |= not_finite[lane];
    return any != 0;
}

DG_VECTOR_CLONES void fused_tile(const Tile& tile, u8* slow_rows) {
    u32 column = 0;
    for (; column + 4 * kLanes <= tile.n; column += 4 * kLanes) {
        for (u32 row = 0; row < tile.a.rows; ++row) slow_rows[row] |= fused_row<4>(tile, row, column);
    }
    for (; column < tile.n; column += kLanes) {
        for (u32 row = 0; row < tile.a.rows; ++row) slow_rows[row] |= fused_row<1>(tile, row, column);
    }
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
    const Tile tile{a, b, d, out.data(), n, fused_sum_of(options.fp8), options.negate};
    if (options.mode == AccumulatorMode::exact) {
        exact_tile(tile);
        if (options.type == AccumulatorType::f16) {
            for (float& value : out)
                value = formats::decode(formats::encode(value, formats::kF16), formats::kF16);
        }
    } else {
        const bool all_slow = options.type == AccumulatorType::f16;
        std::vector<u8> slow_rows(a.slow_rows);
        if (!all_slow) fused_tile(tile, slow_rows.data());
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
