// Candidates, choice and launch of a GEMM plan.
#include "plan/gemm.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "plan/gemm_shape.h"

namespace deep_gemm::plan {
namespace {

struct Tile {
    u32 block_m, block_n, warpgroups, k_warpgroups;
};

constexpr Tile kTiles[] = {{64, 64, 1, 1},   {64, 128, 1, 1},  {64, 192, 1, 1},
                           {128, 64, 2, 1},  {128, 128, 2, 1}, {128, 192, 2, 1},
                           {128, 256, 2, 1}, {192, 128, 3, 1}, {256, 128, 2, 1}};
constexpr u32 kSwapRows[] = {8, 16, 32, 48, 64};  // at 128 FP8 tokens, tokens as rows were faster
constexpr Tile kSwapTiles[] = {{0, 64, 1, 1},  {0, 64, 2, 2},  {0, 64, 3, 3},  {0, 64, 4, 4},
                               {0, 128, 2, 1}, {0, 128, 4, 2}, {0, 192, 3, 1}, {0, 256, 4, 1}};
constexpr u32 kSplits[] = {1, 2, 4};
constexpr u32 kMostStages = 24;

struct Multicast {
    u32 m, n;
};
constexpr Multicast kMulticasts[] = {{1, 1}, {2, 1}, {1, 2}};

// As many stages as fit `bytes` of shared memory.
void fill_stages(GemmSpec& s, u32 bytes) {
    s.stages = kMostStages / s.k_warpgroups * s.k_warpgroups;
    while (s.stages > 2 * s.k_warpgroups && plan_smem(s).bytes > bytes) s.stages -= s.k_warpgroups;
}

std::vector<GemmSpec> candidates(const GemmProblem& problem) {
    std::vector<GemmSpec> specs;
    GemmSpec base{.ab = problem.ab,
                  .d = problem.d,
                  .scale_b = problem.scale_b,
                  .groups = problem.groups,
                  .accumulate = problem.accumulate,
                  .a_major = problem.a_major,
                  .b_major = problem.b_major};
    const auto add = [&](const Tile& tile, u32 split_k, Multicast multicast) {
        GemmSpec s = base;
        s.block_m = tile.block_m;
        s.block_n = tile.block_n;
        s.warpgroups = tile.warpgroups;
        s.k_warpgroups = tile.k_warpgroups;
        s.split_k = split_k;
        s.cluster_m = multicast.m;
        s.cluster_n = multicast.n;
        fill_stages(s, kMaxSmemBytes);
        specs.push_back(s);
        fill_stages(s, kMaxSmemBytesOfTwo);
        if (ctas_per_sm_of(s) == 2 && s.stages != specs.back().stages) specs.push_back(s);
    };
    for (const Tile& tile : kTiles) {
        for (const Multicast& multicast : kMulticasts) add(tile, 1, multicast);
        for (u32 split_k : {2u, 4u}) add(tile, split_k, {1, 1});
    }
    base.swap_ab = true;
    for (u32 rows : kSwapRows)
        for (Tile tile : kSwapTiles)
            for (u32 split_k : kSplits) {
                tile.block_m = rows;
                add(tile, split_k, {1, 1});
            }
    return specs;
}

u32 rows_of_a_group(const GemmProblem& problem) {
    if (problem.expected_m > 0) return std::min(problem.expected_m, problem.m);
    if (problem.groups == GroupMode::dense || problem.groups == GroupMode::masked) return problem.m;
    return ceil_div(problem.m, problem.num_groups);
}

u32 grid_of(const GemmProblem& problem, const GemmSpec& s, const DeviceModel& device) {
    const u32 cluster = cluster_size_of(s);
    const u32 sms = problem.num_sms > 0 ? std::min(problem.num_sms, device.num_sms) : device.num_sms;
    const u64 slots = std::max(1u, sms / cluster);
    u64 units = shape_of(problem, s, device).units;
    // The device's row counts are not known here: launch for the worst case.
    if (problem.groups == GroupMode::masked)
        units = static_cast<u64>(problem.num_groups) * ceil_div(problem.m, s.block_m * s.cluster_m) *
                ceil_div(problem.n, s.block_n * s.cluster_n);
    if (problem.groups == GroupMode::psum)
        units = static_cast<u64>(ceil_div(problem.m, s.block_m) + problem.num_groups) *
                ceil_div(problem.n, s.block_n * s.cluster_n);
    return static_cast<u32>(std::max<u64>(1, std::min(units, slots))) * cluster;
}

// Segmented groups start at multiples of 128 rows, in every position of a taller block alike. A block where
// one starts inside comes twice (sched/gemm_blocks.h).
u32 straddling_units(u32 num_groups, u32 rows, u32 unit_m) {
    const u32 positions = unit_m / std::gcd(unit_m, kGroupAlignment);
    const u32 boundaries = std::min(num_groups, ceil_div(rows, kGroupAlignment)) - 1;
    return boundaries * (positions - 1) / positions;
}

// Rows beyond the matrix in the block of a CTA that has most of them: none where that block starts early.
u32 rows_outside(const GemmProblem& problem, const GemmSpec& s) {
    if (problem.groups != GroupMode::dense) return 0;
    const u32 unit_m = s.block_m * s.cluster_m;
    const u32 outside = align_up(problem.m, unit_m) - problem.m;
    return problem.m >= s.block_m && !s.accumulate ? 0 : std::min(s.block_m, outside) / s.cluster_n;
}

}  // namespace

GemmShape shape_of(const GemmProblem& problem, const GemmSpec& s, const DeviceModel& device) {
    GemmShape shape{};
    const u32 rows = rows_of_a_group(problem), unit_m = s.block_m * s.cluster_m;
    const u64 units_n = ceil_div(problem.n, s.block_n * s.cluster_n);
    const bool segmented = problem.groups == GroupMode::contiguous || problem.groups == GroupMode::psum;
    // Rows that have blocks, of all groups.
    const u32 walked =
        problem.groups == GroupMode::psum ? problem.num_groups * align_up(rows, kGroupAlignment) : problem.m;
    u64 padding_units = 0;
    if (problem.groups == GroupMode::masked) {
        shape.units = static_cast<u64>(problem.num_groups) * ceil_div(rows, unit_m) * units_n;
    } else if (problem.groups == GroupMode::psum && unit_m < kGroupAlignment) {
        shape.units = static_cast<u64>(problem.num_groups) * ceil_div(rows, unit_m) * units_n;
        padding_units = ceil_div(walked, unit_m) * units_n - shape.units;
    } else {
        const u32 twice = segmented ? straddling_units(problem.num_groups, walked, unit_m) : 0;
        shape.units = (ceil_div(walked, unit_m) + twice) * units_n;
    }
    shape.total_rows = problem.groups == GroupMode::masked || problem.groups == GroupMode::psum
                           ? static_cast<u64>(problem.num_groups) * rows
                           : problem.m;
    shape.rows_outside = rows_outside(problem, s);
    shape.active_groups = problem.groups == GroupMode::dense ? 1
                          : problem.groups == GroupMode::masked
                              ? problem.num_groups
                              : std::min(problem.num_groups, ceil_div(problem.m, kGroupAlignment));
    const u32 cluster = cluster_size_of(s);
    const u32 sms = problem.num_sms > 0 ? std::min(problem.num_sms, device.num_sms) : device.num_sms;
    // Clusters of more than two do not tile every GPC of the chip.
    shape.slots = std::max(1u, cluster > 2 ? sms * 31 / 32 / cluster : sms / cluster);
    shape.rounds = ceil_div(std::max<u64>(1, shape.units), static_cast<u64>(shape.slots));
    shape.padding_rounds = ceil_div(padding_units, static_cast<u64>(shape.slots));
    shape.active_ctas = static_cast<u32>(std::min<u64>(std::max<u64>(1, shape.units), shape.slots)) * cluster;
    const u32 stages = ceil_div(problem.k, block_k_of(s));
    shape.stages_per_block =
        s.split_k == 1 ? stages
                       : std::min(stages, ceil_div(ceil_div(stages, kScaleChunk), s.split_k) * kScaleChunk);
    return shape;
}

const char* why_unfit(const GemmProblem& problem, const GemmSpec& s) {
    if (s.ab != problem.ab || s.d != problem.d || s.scale_b != problem.scale_b ||
        s.groups != problem.groups || s.accumulate != problem.accumulate)
        return "the spec is for other formats, scales or groups";
    if (s.a_major != problem.a_major || s.b_major != problem.b_major)
        return "the spec is for operands that are contiguous along another dimension";
    if (!problem.d_tma && stores_by_tma(s)) return "D or C is not aligned to 16 bytes, which TMA needs";
    return nullptr;
}

// The same for a spec nobody forced: it would serve, but never well.
const char* why_poor(const GemmProblem& problem, const GemmSpec& s) {
    if (problem.num_sms > 0 && cluster_size_of(s) > problem.num_sms)
        return "the cluster has more CTAs than num_sms allows";
    if (s.swap_ab && problem.d_tma && rows_of_a_group(problem) > s.block_m)
        return "swap_ab is for rows that fit one block";
    // Measured on streams of weights: 62.8 us against 64.2 for eight groups of 4096 x 7168.
    if (s.swap_ab && has_scales(s) && s.block_m >= 64 && s.block_n > 64 && problem.d_tma)
        return "with 64 tokens and more than 64 weight rows, tokens as rows are faster";
    if (s.split_k > 1 && ceil_div(problem.k, block_k_of(s)) < kScaleChunk * s.split_k)
        return "too few blocks of K to split";
    return nullptr;
}

GemmPlan plan_gemm(const GemmProblem& problem, const DeviceModel& device,
                   std::vector<GemmCandidate>* considered) {
    GemmPlan best;
    bool found = false;
    for (const GemmSpec& spec : candidates(problem)) {
        GemmCandidate candidate{.spec = spec, .rejected = why_illegal(spec), .cost = {}};
        if (candidate.rejected == nullptr) candidate.rejected = why_unfit(problem, spec);
        if (candidate.rejected == nullptr) candidate.rejected = why_poor(problem, spec);
        if (candidate.rejected == nullptr) {
            candidate.cost = cost_of(problem, spec, device);
            // Ties go to the earlier candidate: the list's order is part of the contract.
            if (!found || candidate.cost.total_us < best.cost.total_us) {
                best.spec = spec;
                best.cost = candidate.cost;
                found = true;
            }
        }
        if (considered != nullptr) considered->push_back(candidate);
    }
    DG_CHECK(found, value,
             "{}: no kernel serves this problem; expected n and k of at least 1 and a D that TMA or plain "
             "stores reach: pad d",
             to_string(problem));
    best.grid_blocks = grid_of(problem, best.spec, device);
    return best;
}

GemmPlan plan_for_spec(const GemmProblem& problem, const GemmSpec& spec, const DeviceModel& device) {
    const char* reason = why_illegal(spec);
    DG_CHECK(reason == nullptr, value, "gemm: the forced spec [{}] is not a legal kernel: {}",
             to_string(spec), reason);
    reason = why_unfit(problem, spec);
    DG_CHECK(reason == nullptr, value, "{}: the forced spec [{}] does not serve it: {}", to_string(problem),
             to_string(spec), reason);
    return {
        .spec = spec, .grid_blocks = grid_of(problem, spec, device), .cost = cost_of(problem, spec, device)};
}

std::vector<GemmSpec> enumerate_specs(GemmProblem problem, u32 max_m, const DeviceModel& device) {
    std::vector<GemmSpec> specs;
    const auto add = [&](u32 m, u32 expected_m) {
        problem.m = m;
        problem.expected_m = expected_m;
        const GemmSpec spec = plan_gemm(problem, device).spec;
        if (std::find(specs.begin(), specs.end(), spec) == specs.end()) specs.push_back(spec);
    };
    // Plans depend on m through numbers of blocks: far up they change only where a block of some height
    // begins or is full, which is at multiples of 8 rows, or of 64 where tokens are the rows of wgmma.
    const auto next = [max_m](u32 m) {
        const u32 height = m < 256 ? 1 : m < 4096 ? 8 : 64, past = m % height;
        if (m == max_m) return max_m + 1;
        return std::min(past == 0 ? m + 1 : m - past + height, max_m);
    };
    const bool expects = problem.groups == GroupMode::masked || problem.groups == GroupMode::psum;
    for (u32 m = 1; m <= max_m; m = next(m)) {
        if (expects) add(max_m, m);
        add(m, problem.groups == GroupMode::masked ? m : 0);
    }
    return specs;
}

}  // namespace deep_gemm::plan
