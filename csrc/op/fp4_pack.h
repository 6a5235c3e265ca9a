// MXFP4 checkpoints -> the packed weights of spec/fp4_weights.h, on the CPU. Exact for every input: the form
// with the fewest bytes that holds each row's exponents is chosen, rows that fit none are spread over several
// runs, and the report says how many did. Nothing is rounded or flushed.
#pragma once

#include <deep_gemm/spec/fp4_weights.h>

#include <optional>
#include <span>
#include <vector>

namespace deep_gemm::op {

struct Fp4Shape {
    u32 experts = 1, n = 0, k = 0;
};

struct Fp4PackReport {
    u64 rows = 0;
    u64 rows_beyond_e4m3 = 0;  // exponents that mx_e4m3 does not hold in one run
    u64 rows_beyond_e5m2 = 0;
    u64 extra_runs = 0;  // runs beyond one for each block of 64 rows
    u32 widest = 0;      // largest number of exponents from a row's lowest to its highest
};

struct PackedFp4 {
    Fp4Shape shape;
    Fp4Form form = Fp4Form::mx_e4m3;
    bool split = false;
    std::vector<u8> blobs;
    std::vector<float> row_scales;
    std::vector<u32> runs;  // empty unless split
    Fp4PackReport report;
};

// codes: [experts, n, k / 2], two per byte, low nibble first. scales: UE8M0 [experts, n, k / 32]. Fails
// (ErrorKind::value) for a scale of 255 (NaN), naming it, and where a forced `form` is given and sizes that
// do not match.
[[nodiscard]] PackedFp4 pack_fp4(const Fp4Shape& shape, std::span<const u8> codes, std::span<const u8> scales,
                                 std::optional<Fp4Form> form = {});

}  // namespace deep_gemm::op
