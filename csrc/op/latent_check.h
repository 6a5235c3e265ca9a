// Latent cache rows, positions and frequencies: checks, and the views that kernels get.
#pragma once

#include "op/cache_rows.h"
#include "op/model_check.h"

#include <deep_gemm/spec/latent.h>

namespace deep_gemm::op {

// Which narrow rows an operation takes: those of keys and values, of the indexer, or both.
enum class Narrow : u8 { fp8, fp4, both };

struct CheckedRows {
    LatentView view{};
    Format format = Format::none;  // fp8_e4m3, fp4_e2m1 for FP8, FP4 rows
};
[[nodiscard]] CheckedRows check_latent_rows(ModelChecks& checks, const char* name, const LatentRows& rows,
                                            i64 d, Narrow narrow = Narrow::fp8);

// fp32 [dims / 2, 2]; gives dims, at most d.
[[nodiscard]] u32 check_frequencies(ModelChecks& checks, const TensorView& frequencies, i64 d);

// Channels of a row: a multiple of 4, at most 512; what `finish` needs.
void check_row(ModelChecks& checks, const char* name, i64 d, u32 dims, RowFinish finish);

}  // namespace deep_gemm::op
