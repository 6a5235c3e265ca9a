#include "plan/gemv.h"

#include "base/error.h"

#include <algorithm>

namespace deep_gemm::plan {

namespace {

// A pass over W costs the same for every number of tokens up to the kernel's; Q8_0 pays for each of them.
u32 tokens_of(const GemvProblem& problem) {
    const u32 m = problem.strict ? 1 : problem.m;
    if (problem.x == Activation::q8) return m <= 4 ? m : 8;
    return m <= kMmaTileTokens ? kMmaTileTokens : kMaxGemvTokens;
}

// Two rows of a warp halve what it reads of x, which is more than W from four tokens on; worth it where
// enough warps are left to pull W.
u32 rows_of_warp(const GemvProblem& problem, u32 tokens) {
    constexpr u32 kEnoughBlocks = 2;
    u64 rows = 0;
    for (const u32 n : problem.n) rows += n;
    return tokens >= 4 && rows >= u64{2} * kGemvWarps * problem.num_sms * kEnoughBlocks ? 2 : 1;
}

// What the vector loads of scales need besides aligned rows: E4M3 scales of two blocks are one 16-bit load.
bool loads_vectors(const GemvProblem& problem) {
    return problem.aligned && (problem.w != Quant::nvfp4 || problem.k % 32 == 0);
}

}  // namespace

GemvPlan plan_gemv(const GemvProblem& problem) {
    const bool paired = problem.epilogue == GemvEpilogue::swiglu;
    GemvPlan plan;
    GemvSpec& spec = plan.spec;
    spec = {.w = problem.w, .x = problem.x, .y = problem.y, .epilogue = problem.epilogue};
    spec.tokens = tokens_of(problem);
    spec.row_tiles = paired ? 2 : problem.x == Activation::q8 ? rows_of_warp(problem, spec.tokens) : 1;
    const GemvTuning& tuning = problem.tuning;
    if (tuning.row_tiles) spec.row_tiles = tuning.row_tiles;
    spec.stages = 8 / spec.row_tiles / 2;
    if (tuning.stages) spec.stages = tuning.stages;
    if (tuning.ctas) spec.ctas = tuning.ctas;
    spec.vector = loads_vectors(problem);
    spec.dependent_launch = problem.dependent_launch;
    spec.native_fp8 = problem.native_fp8;
    plan.tokens_per_block = problem.strict ? 1 : spec.tokens;
    plan.grid_y = ceil_div(problem.m, plan.tokens_per_block);
    for (const u32 n : problem.n.first(paired ? 1 : problem.n.size()))
        plan.grid_x += ceil_div(n, block_rows_of(spec));
    if (problem.x != Activation::q8)
        plan.grid_x = std::min(plan.grid_x, problem.num_sms * ctas_per_sm_of(spec));
    if (tuning.grid_x) plan.grid_x = tuning.grid_x;
    const char* reason = why_illegal(spec);
    DG_CHECK(!reason, value, "linear: {}", reason);
    return plan;
}

std::string to_string(const GemvSpec& spec) {
    std::string text = "gemv";
    visit_fields(
        [&text](const char* name, const auto& field) {
            if constexpr (requires { name_of(field); })
                text += fmt::format(" {}={}", name, name_of(field));
            else
                text += fmt::format(" {}={}", name, field);
        },
        spec);
    return text;
}

}  // namespace deep_gemm::plan
