// What the rounding of form nv_single (spec/nvfp4_weights.h) costs, for the report of a packer.
#pragma once

#include <deep_gemm/spec/nvfp4_weights.h>

#include <algorithm>
#include <array>

namespace deep_gemm::op {

// Sums over weights.
struct NvRounding {
    double worst = 0;    // largest |error| / |weight|
    double squares = 0;  // of errors
    double weights = 0;  // of weights, squared

    constexpr void add(const NvRounding& other, double scale = 1) {
        worst = std::max(worst, other.worst);
        squares += other.squares * scale * scale;
        weights += other.weights * scale * scale;
    }
};

// For each mantissa of a scale and each pair of codes in a byte. The relative error of all magnitudes that
// are not exact is the same.
struct NvPairRounding {
    double squares = 0, weights = 0;
};
struct NvMantissaRounding {
    double worst = 0;
    std::array<NvPairRounding, 256> pairs{};
};
inline std::array<NvMantissaRounding, 8> nv_rounding_table() {
    std::array<NvMantissaRounding, 8> table{};
    for (u32 mantissa = 0; mantissa < 8; ++mantissa) {
        std::array<NvPairRounding, 8> single{};
        for (u32 i = 1; i < 8; ++i) {
            const double exact = static_cast<double>(codec::e2m1_to_f32(i));
            const double error = nv_single_of(i, 0x38 | mantissa) - exact;
            single[i] = {.squares = error * error, .weights = exact * exact};
            table[mantissa].worst = std::max(table[mantissa].worst, std::max(error, -error) / exact);
        }
        for (u32 pair = 0; pair < 256; ++pair) {
            const NvPairRounding &low = single[pair & 7], &high = single[pair >> 4 & 7];
            table[mantissa].pairs[pair] = {low.squares + high.squares, low.weights + high.weights};
        }
    }
    return table;
}

// Of one group: `codes` two per byte, `scale` an E4M3 that is not zero.
inline NvRounding nv_rounding_of(const u8* codes, u8 scale) {
    static const std::array<NvMantissaRounding, 8> table_of_mantissas = nv_rounding_table();
    const NvMantissaRounding& table = table_of_mantissas[static_cast<u32>(nv_code_of(scale)) % kNvOctave];
    NvPairRounding sums;
    for (u32 i = 0; i < fp4_group_of(Fp4Form::nv_single) / 2; ++i) {
        sums.squares += table.pairs[codes[i]].squares;
        sums.weights += table.pairs[codes[i]].weights;
    }
    const double unit = static_cast<double>(codec::e4m3_to_f32(scale));
    return {.worst = sums.squares > 0 ? table.worst : 0,
            .squares = sums.squares * unit * unit,
            .weights = sums.weights * unit * unit};
}

}  // namespace deep_gemm::op
