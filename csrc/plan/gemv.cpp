#include "plan/gemv.h"

#include "base/error.h"

#include <algorithm>

namespace deep_gemm::plan {

namespace {

// Whether the last of these tiles, dealt evenly, are more than half of one.
bool has_long_rest(const GemvProblem& problem, GemvSpec spec) {
    spec.groups = std::min(2u, max_groups_of(spec));
    if (!may_deal_evenly(spec) || problem.n.size() != 1) return false;
    return deal_of(spec, problem.n[0], 1, problem.num_sms).rest_rows * 2 > block_rows_of(spec);
}

// Rows of the one of `units` that has most, where tiles are dealt in turn.
u32 most_rows(const GemvProblem& problem, const GemvSpec& spec, u32 units) {
    u32 tiles = 0;
    for (const u32 n : problem.n) tiles += ceil_div(n, block_rows_of(spec));
    return ceil_div(tiles, units) * block_rows_of(spec);
}

// Whether tiles of 16 rows leave the busiest SM and its busier group fewer rows than tiles of 32.
bool deals_better_narrow(const GemvProblem& problem, const GemvSpec& wide) {
    GemvSpec narrow = wide;
    narrow.row_tiles = 1;
    const u32 sms = problem.num_sms;
    return most_rows(problem, narrow, sms) < most_rows(problem, wide, sms) &&
           most_rows(problem, narrow, 2 * sms) < most_rows(problem, wide, 2 * sms);
}

// Tiles of 32 rows read x half as often and are worth it where the weights are narrow, where x is too large to
// stay in L1, or where rows can be dealt evenly in them, unless an SM would have no second tile or the registers
// no second group. H200, 2026-11-29, us by 16 / 32 rows, bf16, one token: 4096 x 14336 30.4 / 29.7, 8192 x 8192
// 34.0 / 33.1; where the rest is half a tile or less: 4096 x 4096 10.2 / 10.4, 3584 x 18944 33.6 / 34.8. FP8 there 20.6 / 21.4,
// and at 4096 x 14336 17.7 / 17.4.
u32 row_tiles_of(const GemvProblem& problem, const GemvSpec& spec) {
    constexpr u64 kLargeTokenBytes = 57 * 1024;
    if (spec.epilogue == GemvEpilogue::swiglu) return 2;
    if (has_warp_rows(spec)) return spec.tokens > 1 ? 2 : 1;  // rows share what L1 delivers of x
    GemvSpec wide = spec;
    wide.row_tiles = 2;
    if (is_q8(spec) || max_groups_of(wide) < 2) return 1;
    u32 tiles = 0;
    for (const u32 n : problem.n) tiles += ceil_div(n, block_rows_of(wide));
    const u64 token_bytes = u64{std::min(problem.m, spec.tokens)} * problem.k * 2;
    const bool narrow_weights = row_bits_of(spec) <= 8 && !deals_better_narrow(problem, wide);
    const bool worth = narrow_weights || token_bytes > kLargeTokenBytes || has_long_rest(problem, wide);
    return worth && tiles > problem.num_sms ? 2 : 1;
}

// Visits that a warp has on their way. More make the first ones late, for which everyone waits when there is
// one tile to a group; 16-byte vectors around Q8_0 blocks are more bytes than blocks.
u32 stages_of(const GemvProblem& problem, const GemvSpec& spec) {
    constexpr u32 kWarpRowStages = 3;
    if (has_warp_rows(spec)) return kWarpRowStages;
    u32 tiles = 0;
    for (const u32 n : problem.n) tiles += ceil_div(n, block_rows_of(spec));
    return spec.row_tiles == 1 && spec.w != Quant::q8_0 && tiles > 2 * problem.num_sms ? 3 : 2;
}

constexpr u32 kResidentForm = 2, kBulkForm = 3;  // of GemvTuning

// A pass over W costs the same for every number of tokens up to the kernel's.
u32 tokens_of(const GemvProblem& problem) {
    return problem.strict || problem.m <= kMmaTileTokens ? kMmaTileTokens : kMaxGemvTokens;
}

// What the vector loads of scales need besides aligned rows: E4M3 scales of two blocks are one 16-bit load.
bool loads_vectors(const GemvProblem& problem) {
    return problem.aligned && (problem.w != Quant::nvfp4 || (problem.k % 32 == 0 && problem.scale_pairs));
}

// Whether x fits shared memory beside a ring, and every piece of scales is an aligned vector.
bool fits_resident(const GemvProblem& problem, const GemvSpec& spec) {
    const u32 tokens = problem.strict ? 1 : std::min(problem.m, spec.tokens);
    return (is_q8(spec) || problem.scale_alignment != 0) &&
           smem_bytes_of(spec, problem.k, tokens) <= problem.smem_bytes;
}

// Where instructions bound a kernel and not the bytes of W: 4 bits, a scale for 32 elements, or 8 bits, beside FP8 for
// few tokens. H200, 2026-11-29, us by x in memory / shared memory, 4096 x 14336: FP8 beside bf16 of 1 token 17.2 / 16.2,
// of 4 17.6 / 16.7, of 16 22.7 / 20.9; INT8 17.7 / 16.7, of 16 22.9 / 21.1; FP8 beside FP8 of 1 token 16.6 / 15.8, of 8
// 17.5 / 16.8, of 16 21.0 / 21.5; that 8192 x 29568 of 4 tokens 59.8 / 59.6, of 8 (with one group) 60.1 / 66.4.
bool gains_by_residence(const GemvProblem& problem, const GemvSpec& spec) {
    constexpr u64 kFewElements = 1 << 15;  // of a block's x
    const u64 tokens = problem.strict ? 1 : std::min(problem.m, spec.tokens);
    if (row_bits_of(spec) == 4 || is_q8(spec) || spec.w == Quant::fp8_32) return true;
    const bool few = spec.x == Activation::fp8_128 && tokens * problem.k <= kFewElements;
    return row_bits_of(spec) == 8 && (spec.x == Activation::bf16 || few);
}

// Tiles of 32 rows share what a tile and a visit cost; worth it where they do not leave SMs without work.
bool has_wide_residence(const GemvProblem& problem, const GemvSpec& spec) {
    constexpr u32 kTilesOfGroup = 3;
    if (spec.epilogue == GemvEpilogue::swiglu) return true;
    GemvSpec wide = spec;
    wide.resident = true;
    wide.row_tiles = wide.stages = wide.groups = 2;
    if (row_bits_of(spec) != 4 || max_groups_of(wide) < 2 || !fits_resident(problem, wide)) return false;
    u32 tiles = 0;
    for (const u32 n : problem.n) tiles += ceil_div(n, block_rows_of(wide));
    return tiles > kTilesOfGroup * wide.groups * problem.num_sms;
}

// Fewer groups, then a shorter ring, then none.
void fit_smem(GemvSpec& spec, u32 smem_bytes) {
    while (plan_smem(spec).bytes > smem_bytes && (spec.groups > 1 || spec.stages > 2))
        --(spec.groups > 1 ? spec.groups : spec.stages);
    if (plan_smem(spec).bytes > smem_bytes) spec.vector = false;
}

// Where a warp has few visits in all, a short ring has the first of them sooner.
u32 resident_stages_of(const GemvProblem& problem, const GemvSpec& spec) {
    constexpr u32 kFewVisits = 16;
    if (row_bits_of(spec) != 4) return spec.bulk ? 4 : is_q8(spec) ? 2 : 3;
    u32 tiles = 0;
    for (const u32 n : problem.n) tiles += ceil_div(n, block_rows_of(spec));
    const u32 visits = ceil_div(problem.k, visit_k_of(spec)) * tiles / (kGemvWarps * 2 * problem.num_sms);
    return spec.row_tiles == 2 || visits <= kFewVisits ? 2 : 3;
}

// The resident form of `spec`: a shorter ring where x needs the room, then fewer groups, but not fewer than
// the other form has, which are worth more.
bool make_resident(const GemvProblem& problem, GemvSpec& spec) {
    const GemvTuning& tuning = problem.tuning;
    GemvSpec s = spec;
    s.row_tiles = row_tiles_of(problem, spec);
    const u32 fewest = tuning.groups ? 1 : std::min(2u, max_groups_of(s));
    s.resident = true;
    if (!is_q8(s) && problem.scale_alignment == 2) s.row_alignment = 2;
    s.row_tiles = tuning.row_tiles ? tuning.row_tiles : has_wide_residence(problem, spec) ? 2 : 1;
    const u32 stages = tuning.stages ? tuning.stages : resident_stages_of(problem, s);
    const u32 fewest_stages = s.bulk && !tuning.stages ? 3 : 2;  // two wait for the slowest of eight warps
    for (s.groups = std::min(tuning.groups ? tuning.groups : 2, max_groups_of(s)); s.groups >= fewest;
         --s.groups) {
        for (s.stages = stages; s.stages >= fewest_stages; --s.stages) {
            if (!fits_resident(problem, s)) continue;
            spec = s;
            return true;
        }
    }
    return false;
}

// Which form, and how wide it is.
GemvSpec with_form(const GemvProblem& problem, GemvSpec spec) {
    const GemvTuning& tuning = problem.tuning;
    const bool wanted = tuning.form == 0 ? gains_by_residence(problem, spec) : tuning.form >= kResidentForm;
    if (wanted && may_be_resident(spec)) {
        spec.bulk = is_q8(spec) && problem.bulk && spec.dependent_launch && tuning.form != kResidentForm;
        if (make_resident(problem, spec)) return spec;
        spec.bulk = false;
        if (make_resident(problem, spec)) return spec;
    }
    spec.row_tiles = tuning.row_tiles ? tuning.row_tiles : row_tiles_of(problem, spec);
    spec.stages = tuning.stages ? tuning.stages : stages_of(problem, spec);
    spec.groups = std::min(tuning.groups ? tuning.groups : 2, max_groups_of(spec));
    return spec;
}

// Which of the Q8_0 kernels: one token by dp4a where bulk copies cannot bring the rows, and two that do not fit
// shared memory; more that do not take passes of eight, which have x in L1. One token, H200, 2026-11-29, us by dp4a /
// bulk copies: 4096 x 4096 7.9 / 7.6, 4096 x 14336 19.6 / 17.9, 8192 x 8192 23.9 / 20.9, 3584 x 18944 22.5 / 20.2,
// 8192 x 29568 66.7 / 64.8, 4096 x 129280 137.7 / 135.1.
GemvSpec with_q8_form(const GemvProblem& problem, const GemvSpec& plain) {
    const u32 m = problem.strict ? 1 : problem.m;
    GemvSpec spec = with_form(problem, plain);
    const bool worth = m > 1 || (spec.bulk && !problem.strict);
    if ((spec.resident && worth) || problem.tuning.form >= kResidentForm) return spec;
    if (m > kMaxWarpRowTokens && spec.tokens == kMmaTileTokens) return spec;
    spec = plain;
    spec.tokens = m <= kMaxWarpRowTokens ? m : kMmaTileTokens;
    return with_form(problem, spec);
}

}  // namespace

GemvPlan plan_gemv(const GemvProblem& problem) {
    const bool paired = problem.epilogue == GemvEpilogue::swiglu;
    GemvPlan plan;
    GemvSpec& spec = plan.spec;
    spec = {.w = problem.w, .x = problem.x, .y = problem.y, .epilogue = problem.epilogue};
    spec.tokens = tokens_of(problem);
    spec.vector = loads_vectors(problem);
    spec.dependent_launch = problem.dependent_launch;
    spec.native_fp8 = problem.native_fp8;
    const GemvTuning& tuning = problem.tuning;
    spec = is_q8(spec) ? with_q8_form(problem, spec) : with_form(problem, spec);
    fit_smem(spec, problem.smem_bytes);
    if (spec.w == Quant::q8_0 && spec.vector && !has_warp_rows(spec))
        spec.row_alignment = problem.row_alignment;
    plan.tokens_per_block = problem.strict ? 1 : spec.tokens;
    plan.smem_bytes =
        static_cast<u32>(smem_bytes_of(spec, problem.k, std::min(problem.m, plan.tokens_per_block)));
    plan.grid_y = ceil_div(problem.m, plan.tokens_per_block);
    for (const u32 n : problem.n.first(paired ? 1 : problem.n.size()))
        plan.grid_x += ceil_div(n, block_rows_of(spec));
    if (!has_warp_rows(spec)) plan.grid_x = std::min(plan.grid_x, problem.num_sms);
    if (tuning.grid_x && !has_warp_rows(spec)) plan.grid_x = tuning.grid_x;
    plan.deal = deal_of(spec, problem.n[0], static_cast<u32>(problem.n.size()), plan.grid_x);
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
