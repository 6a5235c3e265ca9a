// Candidates, choice and launch of an FP4 GEMM plan.
#include "plan/fp4_gemm.h"

#include <algorithm>

#include "base/error.h"

namespace deep_gemm::plan {
namespace {

// Warpgroups of a CTA, CTAs of an SM, blobs of a stage: about 200 KiB of weights in flight in each case.
struct Arrangement {
    u32 warpgroups, ctas_per_sm, k_blocks;
};
constexpr Arrangement kArrangements[] = {{1, 3, 2}, {1, 2, 2}, {2, 2, 1}, {4, 1, 1},
                                         {4, 1, 2}, {2, 1, 1}, {2, 1, 2}};
constexpr u32 kBlocks[] = {8, 16, 24, 32, 40, 48, 64, 96, 128};
constexpr u32 kMostStages = 24;

std::vector<Fp4GemmSpec> candidates(const Fp4Problem& problem) {
    std::vector<Fp4GemmSpec> specs;
    for (const u32 block_m : kBlocks)
        for (const Arrangement& arrangement : kArrangements) {
            Fp4GemmSpec s{.form = problem.form,
                          .split = problem.split,
                          .d = problem.d,
                          .groups = problem.groups,
                          .accumulate = problem.accumulate,
                          .queue = problem.groups == GroupMode::gathered,
                          .block_m = block_m,
                          .warpgroups = arrangement.warpgroups,
                          .k_blocks = arrangement.k_blocks,
                          .stages = kMostStages,
                          .load_warps = block_m > 48 ? 2u : 1u,
                          .ctas_per_sm = arrangement.ctas_per_sm};
            while (s.stages > 3 && plan_smem(s).bytes > max_smem_bytes_of(s)) --s.stages;
            specs.push_back(s);
        }
    return specs;
}

u32 grid_of(const Fp4Problem& p, const Fp4GemmSpec& s, const DeviceModel& device) {
    const u32 sms = p.num_sms > 0 ? std::min(p.num_sms, device.num_sms) : device.num_sms;
    const u64 blocks_n = ceil_div(p.n, fp4_block_n_of(s) * s.cluster), tiles = ceil_div(p.m, s.block_m);
    // The device's counts are not known here: launch for the worst case. A unit is an item of a cluster.
    u64 units = tiles * blocks_n;
    if (p.groups == GroupMode::masked) units *= p.num_groups;
    if (p.groups == GroupMode::psum) units += p.num_groups * blocks_n;
    if (p.groups == GroupMode::gathered) units += std::min(p.num_groups, p.m) * blocks_n;
    if (p.groups == GroupMode::contiguous)
        units = static_cast<u64>(ceil_div(p.m, kGroupAlignment)) * ceil_div(kGroupAlignment, s.block_m) *
                blocks_n;
    const u64 room = std::max<u64>(1, static_cast<u64>(sms) * s.ctas_per_sm / s.cluster);
    return static_cast<u32>(std::max<u64>(1, std::min(units, room))) * s.cluster;
}

const char* why_unfit(const Fp4Problem& p, const Fp4GemmSpec& s) {
    if (s.form != p.form || s.split != p.split || s.d != p.d || s.groups != p.groups ||
        s.accumulate != p.accumulate)
        return "the spec is for other weights, outputs or groups";
    return nullptr;
}

}  // namespace

Fp4Plan plan_fp4_gemm(const Fp4Problem& problem, const DeviceModel& device,
                      std::vector<Fp4Candidate>* considered) {
    Fp4Plan best;
    bool found = false;
    for (const Fp4GemmSpec& spec : candidates(problem)) {
        Fp4Candidate candidate{.spec = spec, .rejected = why_illegal(spec), .cost = {}};
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
    DG_CHECK(found, internal, "{}: no kernel serves this problem", to_string(problem));
    best.grid_blocks = grid_of(problem, best.spec, device);
    return best;
}

Fp4Plan plan_for_spec(const Fp4Problem& problem, const Fp4GemmSpec& spec, const DeviceModel& device) {
    const char* reason = why_illegal(spec);
    DG_CHECK(reason == nullptr, value, "fp4_gemm: the forced spec [{}] is not a legal kernel: {}",
             to_string(spec), reason);
    reason = why_unfit(problem, spec);
    DG_CHECK(reason == nullptr, value, "{}: the forced spec [{}] does not serve it: {}", to_string(problem),
             to_string(spec), reason);
    return {
        .spec = spec, .grid_blocks = grid_of(problem, spec, device), .cost = cost_of(problem, spec, device)};
}

}  // namespace deep_gemm::plan
