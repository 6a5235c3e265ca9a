// Problem -> kernel of the small-batch family. The order of a sum is the format's, so a plan changes speed
// and nothing else.
#pragma once

#include <deep_gemm/spec/gemv.h>
#include <deep_gemm/spec/gemv_quantize.h>

#include <span>
#include <string>

namespace deep_gemm::plan {

struct GemvProblem {
    Quant w = Quant::bf16;
    Activation x = Activation::bf16;
    Format y = Format::bf16;
    GemvEpilogue epilogue = GemvEpilogue::none;
    u32 m = 1, k = 0;
    std::span<const u32> n;    // rows of each matrix
    bool aligned = true;       // rows of w and x start at multiples of 16 bytes
    bool scale_pairs = true;   // E4M3 scales start at even addresses
    u32 scale_alignment = 16;  // of rows of scales (scale_alignment_of)
    u32 row_alignment = 16;    // Q8_0: GemvSpec's
    bool bulk = true;          // Q8_0: bulk copies may bring the rows (has_bulk_rows)
    bool strict = false;       // every row of x by the kernel of one row
    bool dependent_launch = true;
    bool native_fp8 = true;
    u32 num_sms = 132;
    u32 smem_bytes = 227 * 1024;  // that a block may have
    GemvTuning tuning = {};
};

struct GemvPlan {
    GemvSpec spec;
    u32 grid_x = 0, grid_y = 0;
    u32 tokens_per_block = 0;
    u32 smem_bytes = 0;
    GemvDeal deal = {};
};

[[nodiscard]] GemvPlan plan_gemv(const GemvProblem& problem);

// "gemv w=q8_0 x=q8 y=bf16 tokens=4 ...".
[[nodiscard]] std::string to_string(const GemvSpec& spec);

}  // namespace deep_gemm::plan
