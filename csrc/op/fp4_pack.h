// FP4 checkpoints -> the packed weights of spec/fp4_weights.h, on the CPU; op/fp4_pack_device.h does the same
// on a device. MXFP4 and NVFP4's two terms are exact for every input; NVFP4's single term rounds as
// spec/nvfp4_weights.h says. Rows whose scales fit no form are spread over several runs, and the report says
// how many did. Nothing is flushed.
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
    u64 rows_beyond_e4m3 = 0;  // MXFP4: exponents that mx_e4m3 does not hold in one run
    u64 rows_beyond_e5m2 = 0;
    u64 rows_beyond_window = 0;  // NVFP4: scales that one run does not hold
    u64 extra_runs = 0;          // runs beyond one for each block of 64 rows
    u32 widest = 0;              // largest number of octaves from a row's lowest scale to its highest
    double worst_error = 0;      // nv_single: largest |error| / |weight|
    double rms_error = 0;        // root of the sum of squared errors over that of squared weights
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

// codes: [experts, n, k / 2], two per byte, low nibble first. Without `globals`, MXFP4: scales UE8M0
// [experts, n, k / 32]; the form with the fewest bytes is chosen unless `form` forces one. With globals,
// NVFP4: scales E4M3 [experts, n, k / 16], globals [experts, n], one for each row, 2^-100 to 2^100; `form` is
// nv_single unless it says otherwise. Fails (ErrorKind::value) for a scale that is NaN or has a sign, naming
// it, and for sizes that do not match.
[[nodiscard]] PackedFp4 pack_fp4(const Fp4Shape& shape, std::span<const u8> codes, std::span<const u8> scales,
                                 std::optional<Fp4Form> form = {}, std::span<const float> globals = {});

// ---- What both packers decide alike

// The forms to choose from, by default the first of them. Fails (ErrorKind::value) for one of the other
// format.
[[nodiscard]] std::span<const Fp4Form> fp4_forms(bool nvfp4, std::optional<Fp4Form> form);

// The one of `forms` whose blobs take the fewest bytes; runs[i] are those that each (expert, block) needs in
// forms[i].
struct Fp4Choice {
    Fp4Form form = Fp4Form::mx_e4m3;
    u64 blob_bytes = ~u64{0}, extra_runs = 0;
    std::vector<u32> first_run;  // of each (expert, block), and the end

    [[nodiscard]] std::vector<u32> table() const;  // the packed weights' `runs`
};
[[nodiscard]] Fp4Choice choose_fp4_form(const Fp4Shape& shape, std::span<const Fp4Form> forms,
                                        std::span<const std::vector<u32>> runs);

// `index`: of the scale in [experts, n, groups]; `row`: of the global scale in [experts, n].
[[noreturn]] void refuse_fp4_scale(const Fp4Shape& shape, Fp4Form form, u64 index, u8 scale);
[[noreturn]] void refuse_fp4_global(const Fp4Shape& shape, u64 row, float global);

}  // namespace deep_gemm::op
