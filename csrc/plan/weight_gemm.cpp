#include "plan/weight_gemm.h"

#include "base/error.h"

#include <algorithm>
#include <cmath>

namespace deep_gemm::plan {

namespace {

// Estimates from instruction counts and the published rates of the tensor core; not fitted.
constexpr float kSmBytesPerUs = 40e3f;    // weights that one SM pulls from DRAM while the others do
constexpr float kLeastTensorCycles = 32;  // a wgmma, however few its columns
constexpr float kUnitCycles = 12;         // a warp's new unit, beside its multiplications
constexpr float kUnitChainCycles = 60;  // from one wgmma to the next of a lone warpgroup, beside its decoding
constexpr float kEpilogueCycles = 1200;  // of a block, and for each token
constexpr float kEpilogueCyclesPerToken = 10;

constexpr u32 kBlocks[] = {16, 32, 64, 96, 128, 192, 256};
struct Arrangement {
    u32 warpgroups, cluster, ctas_per_sm;
};
constexpr Arrangement kArrangements[] = {{2, 1, 1}, {2, 2, 1}, {1, 1, 2}, {1, 2, 2}, {1, 1, 1}};
constexpr u32 kMostTokenStages = 16, kMostWeightStages = 8;

// Cycles of a scheduler for a warp's share (eight weights a lane) of a step of 16 along K.
float decode_cycles(Quant w, u32 block_m) {
    const QuantRow row = row_of(w);
    const float decode = row.element == Format::fp8_e4m3   ? 46.f
                         : row.element_bits == 8           ? 32.f
                         : row.element == Format::fp4_e2m1 ? 42.f
                                                           : 34.f;
    if (!changes_units(w)) return decode;
    const float steps = static_cast<float>(row.block_k) / 16;
    return decode + (2 * kUnitCycles + static_cast<float>(block_m) / 2) / steps;
}

// Stages of weights beside many tokens. Where sums change their units the two warpgroups drift apart, and a
// stage of 8 bits holds half as much of K as one of 4: three would make one wait for the other.
u32 weight_stages_of_large(Quant w) {
    return changes_units(w) && row_of(w).element_bits == 8 ? 5 : 3;
}

// Rings as deep as shared memory allows: weights first where they are what the kernel waits for.
WeightGemmSpec with_stages(WeightGemmSpec s) {
    if (multiplies_stored(s)) {  // the rings turn together
        s.weight_stages = s.token_stages = kMostWeightStages;
        while (s.token_stages > 2 && plan_smem(s).bytes > max_smem_bytes_of(s))
            --s.token_stages, --s.weight_stages;
        return s;
    }
    s.weight_stages = s.block_m >= 128 ? weight_stages_of_large(s.w) : kMostWeightStages;
    s.token_stages = kMostTokenStages;
    while (s.token_stages > 4 && plan_smem(s).bytes > max_smem_bytes_of(s)) --s.token_stages;
    while (s.weight_stages > 2 && plan_smem(s).bytes > max_smem_bytes_of(s)) --s.weight_stages;
    while (s.token_stages > 2 && plan_smem(s).bytes > max_smem_bytes_of(s)) --s.token_stages;
    return s;
}

std::vector<WeightGemmSpec> candidates(const WeightProblem& p) {
    std::vector<WeightGemmSpec> specs;
    for (const u32 block_m : kBlocks)
        for (const Arrangement& a : kArrangements)
            specs.push_back(with_stages({.w = p.w,
                                         .x = p.x,
                                         .y = p.y,
                                         .epilogue = p.epilogue,
                                         .block_m = block_m,
                                         .warpgroups = a.warpgroups,
                                         .cluster = a.cluster,
                                         .ctas_per_sm = a.ctas_per_sm,
                                         .whole_scales = p.whole_scales}));
    return specs;
}

u64 units_of(const WeightProblem& p, const WeightGemmSpec& s) {
    return u64{ceil_div(p.m, s.block_m)} * ceil_div(p.n, matrix_rows_of(s) * s.cluster);
}

u32 grid_of(const WeightProblem& p, const WeightGemmSpec& s, const DeviceModel& device) {
    const u64 clusters = std::max(1u, device.num_sms * s.ctas_per_sm / s.cluster);
    return static_cast<u32>(std::max<u64>(1, std::min(units_of(p, s), clusters)) * s.cluster);
}

}  // namespace

WeightCost cost_of(const WeightProblem& p, const WeightGemmSpec& s, const DeviceModel& device) {
    const QuantRow row = row_of(p.w);
    const auto f = [](u64 value) { return static_cast<float>(value); };
    const u32 stages = ceil_div(p.k, weight_stage_k_of(p.w));
    const float steps = f(stages * weight_stage_k_of(p.w) / 16);
    const float row_bytes = f(row_bytes_of(p.w, p.k)) +
                            f(scale_columns_of(p.w, p.k)) *
                                (f(bytes_of(row.scale)) + (row.has_zero ? 1.f : 0.f)) / f(row.block_rows);
    const float rows = f(block_rows_of(s)), tokens = f(s.block_m);
    const u32 grid = grid_of(p, s, device);
    const float units = f(units_of(p, s)), busiest = std::ceil(units / f(grid / s.cluster));
    // CTAs that really share an SM.
    const float resident = f(std::min(s.ctas_per_sm, std::max(1u, ceil_div(grid, device.num_sms))));
    const float x_bytes = f(p.k) * f(bytes_of(element_of(p.x)));  // of a token
    const float tile_weights = rows * row_bytes, tile_tokens = tokens * x_bytes;

    WeightCost cost;
    cost.dram_us =
        (f(num_matrices_of(s)) * f(p.n) * row_bytes + f(p.m) * (x_bytes + f(p.n) * f(bytes_of(p.y)))) /
        device.dram_bytes_per_us;
    cost.fill_us =
        busiest * resident * (tile_weights / kSmBytesPerUs + tile_tokens / device.sm_fill_bytes_per_us);
    cost.l2_us = units * f(s.cluster) * (tile_weights + tile_tokens / f(s.cluster)) / device.l2_bytes_per_us;
    // Bytes go twice as fast as bf16, and as they are.
    const bool integers = p.x == Activation::int8_row;
    const float tensor = std::max(kLeastTensorCycles, tokens / 2) * device.throttle / (integers ? 2.f : 1.f);
    const float decode = multiplies_stored(s) ? 0 : decode_cycles(p.w, s.block_m);
    // A lone warpgroup decodes beside its own wgmma as well, but waits for both at their ends.
    const float groups = f(s.warpgroups) * resident;
    const float step =
        groups > 1 ? groups * std::max(tensor, decode) : std::max(tensor, decode) + kUnitChainCycles / 4;
    const float epilogue = resident * (kEpilogueCycles + kEpilogueCyclesPerToken * tokens);
    cost.math_us = busiest * (steps * step + epilogue) / (device.clock_ghz * 1e3f);
    cost.launch_us =
        device.launch_us + device.fill_us + device.load_latency_us + (s.cluster > 1 ? device.cluster_us : 0);
    const float stream_us = std::max(cost.dram_us, cost.fill_us);
    const float largest = std::max({stream_us, cost.l2_us, cost.math_us});
    cost.total_us =
        cost.launch_us + largest + device.overlap * (stream_us + cost.l2_us + cost.math_us - largest);
    return cost;
}

WeightPlan plan_weight_gemm(const WeightProblem& problem, const DeviceModel& device,
                            std::vector<WeightCandidate>* considered) {
    WeightPlan best;
    bool found = false;
    for (const WeightGemmSpec& spec : candidates(problem)) {
        WeightCandidate candidate{.spec = spec, .rejected = why_illegal(spec), .cost = {}};
        if (!candidate.rejected) {
            candidate.cost = cost_of(problem, spec, device);
            // Ties go to the earlier candidate: the list's order is part of the contract.
            if (!found || candidate.cost.total_us < best.cost.total_us)
                best = {.spec = spec, .grid_blocks = 0, .cost = candidate.cost};
            found = true;
        }
        if (considered) considered->push_back(candidate);
    }
    DG_CHECK(found, internal, "linear: no large-batch kernel serves {} m={} n={} k={}", name_of(problem.w),
             problem.m, problem.n, problem.k);
    best.grid_blocks = grid_of(problem, best.spec, device);
    return best;
}

WeightPlan plan_for_spec(const WeightProblem& problem, const WeightGemmSpec& spec,
                         const DeviceModel& device) {
    const char* reason = why_illegal(spec);
    DG_CHECK(!reason, value, "linear: the forced spec [{}] is not a legal kernel: {}", to_string(spec),
             reason);
    DG_CHECK(spec.epilogue == problem.epilogue, value,
             "linear: the forced spec has epilogue {}, expected {}; pass a spec of that epilogue",
             name_of(spec.epilogue), name_of(problem.epilogue));
    DG_CHECK(
        spec.w == problem.w && spec.x == problem.x && spec.y == problem.y, value,
        "linear: the forced spec is for {} weights, {} tokens and {} outputs, expected {}, {} and {}; pass "
        "a spec for those, or none",
        name_of(spec.w), name_of(spec.x), name_of(spec.y), name_of(problem.w), name_of(problem.x),
        name_of(problem.y));
    DG_CHECK(
        problem.whole_scales || !spec.whole_scales, value,
        "linear: the forced spec loads whole vectors of scales, which k={} or their address does not allow; "
        "use whole_scales=False",
        problem.k);
    return {
        .spec = spec, .grid_blocks = grid_of(problem, spec, device), .cost = cost_of(problem, spec, device)};
}

std::string to_string(const WeightGemmSpec& s) {
    return fmt::format("{}x{} {}+{} stages, {} CTAs{}{}", s.block_m, block_rows_of(s), s.token_stages,
                       s.weight_stages, s.ctas_per_sm, s.cluster == 2 ? ", pairs" : "",
                       s.whole_scales ? "" : ", scales one by one");
}

}  // namespace deep_gemm::plan
