// Correct single rounding to a narrow float of results computed in double: a sum that double cannot hold is
// rounded to odd first, so that the final rounding sees on which side of a tie it lies.
#pragma once

#include "emulator/formats/formats.h"

#include <bit>
#include <cmath>

namespace deep_gemm::emulator {

// a + b: exact, or with the lowest bit set.
inline double add_to_odd(double a, double b) {
    const double sum = a + b;
    const double part = sum - a;
    const double error = (a - (sum - part)) + (b - part);
    if (error == 0 || !std::isfinite(sum)) return sum;
    const u64 bits = std::bit_cast<u64>(sum);
    if (bits & 1) return sum;
    return std::bit_cast<double>((error > 0) == (sum > 0) ? bits + 1 : bits - 1);
}

}  // namespace deep_gemm::emulator
