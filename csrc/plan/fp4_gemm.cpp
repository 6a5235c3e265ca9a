// Candidates, choice and launch of an FP4 GEMM plan.
#include "plan/fp4_gemm.h"

#include <algorithm>
#include <limits>

#include "base/error.h"

namespace deep_gemm::plan {
namespace {

// Warpgroups of a CTA, CTAs of an SM, blobs of a stage: about 200 KiB of weights in flight in each case.
struct Arrangement {
    u32 warpgroups, ctas_per_sm, k_blocks;
};
constexpr Arrangement kArrangements[] = {{1, 3, 2}, {1, 2, 2}, {2, 2, 1}, {4, 1, 1}, {4, 1, 2},
                                         {3, 1, 1}, {3, 1, 2}, {2, 1, 1}, {2, 1, 2}};
// Three warpgroups spread six experts of 4096 rows evenly over 132 SMs. Where CTAs serve item after item,
// four that share the tokens are never slower (H200, 16 and 64 tokens), unless bf16 tokens fill the
// registers.
constexpr u32 kOnlyAtOnce = 3;
constexpr u32 kBlocks[] = {8, 16, 24, 32, 40, 48, 64, 96, 128};
constexpr u32 kLeastWideBlock = 48, kMostWideBlock = 256;  // of the wide kernel
constexpr u32 kMostFp4Stages = 24;

// What a kernel takes from its problem; `stages` for as much memory as there is.
Fp4GemmSpec spec_for(const Fp4Problem& problem, u32 token_terms) {
    return {.form = problem.form,
            .a = token_terms == 2 ? Format::fp8_e4m3 : problem.a,
            .split = problem.split,
            .d = problem.d,
            .groups = problem.groups,
            .accumulate = problem.accumulate,
            .per_token = problem.per_token || token_terms == 2,
            .by_32 = problem.by_32,
            .token_terms = token_terms,
            .stages = kMostFp4Stages};
}
void fit_stages(Fp4GemmSpec& s) {
    while (s.stages > 3 && plan_smem(s).bytes > max_smem_bytes_of(s)) --s.stages;
}

void add_wide(const Fp4Problem& problem, u32 token_terms, std::vector<Fp4GemmSpec>& specs) {
    for (u32 columns = kLeastWideBlock; columns <= kMostWideBlock; columns += kFp4BoxRows)
        for (const u32 warpgroups : {2u, 3u, 4u})
            for (const u32 fragment_sets : {1u, 2u})  // one of two parts is refused with two
                for (const u32 cluster : {2u, 1u}) {
                    Fp4GemmSpec s = spec_for(problem, token_terms);
                    s.fast_accumulation = problem.fast_accumulation;
                    s.block_m = columns / token_terms;
                    s.warpgroups = warpgroups;
                    s.k_blocks = 1;
                    s.wide = true;
                    s.cluster = cluster;
                    s.fragment_sets = fragment_sets;
                    fit_stages(s);
                    specs.push_back(s);
                }
}

// Whether all items of a list find a CTA of their own, however tokens fall: then none has to ask for another.
bool fits_at_once(const Fp4Problem& p, const Fp4GemmSpec& s, u32 sms) {
    return p.groups == GroupMode::gathered &&
           u64{p.m} * ceil_div(p.n, fp4_block_n_of(s)) <= u64{sms} * s.ctas_per_sm;
}

void add_candidates(const Fp4Problem& problem, u32 token_terms, u32 sms, std::vector<Fp4GemmSpec>& specs) {
    for (const u32 columns : kBlocks)
        for (const Arrangement& arrangement : kArrangements) {
            Fp4GemmSpec s = spec_for(problem, token_terms);
            s.block_m = columns / token_terms;
            s.warpgroups = arrangement.warpgroups;
            s.k_blocks = arrangement.k_blocks;
            s.load_warps = columns > 48 ? 2 : 1;
            s.ctas_per_sm = arrangement.ctas_per_sm;
            s.queue = problem.groups == GroupMode::gathered && !fits_at_once(problem, s, sms);
            if (s.warpgroups == kOnlyAtOnce && s.a != Format::bf16 && !fits_at_once(problem, s, sms))
                continue;
            fit_stages(s);
            specs.push_back(s);
        }
    add_wide(problem, token_terms, specs);
}

std::vector<Fp4GemmSpec> candidates(const Fp4Problem& problem, u32 sms) {
    std::vector<Fp4GemmSpec> specs;
    add_candidates(problem, 1, sms, specs);
    if (problem.a == Format::bf16) add_candidates(problem, 2, sms, specs);
    return specs;
}

u32 sms_of(const Fp4Problem& p, const DeviceModel& device) {
    return p.num_sms > 0 ? std::min(p.num_sms, device.num_sms) : device.num_sms;
}

u32 grid_of(const Fp4Problem& p, const Fp4GemmSpec& s, const DeviceModel& device) {
    const u32 sms = sms_of(p, device);
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

}  // namespace

const char* why_unfit(const Fp4Problem& p, const Fp4GemmSpec& s, const DeviceModel& device) {
    const bool two_terms = s.token_terms == 2;
    const bool same_tokens = two_terms ? p.a == Format::bf16 : s.a == p.a && s.per_token == p.per_token;
    if (s.form != p.form || !same_tokens || s.split != p.split || s.d != p.d || s.groups != p.groups ||
        s.accumulate != p.accumulate || s.by_32 != p.by_32)
        return "the spec is for other weights, tokens, scales, outputs or groups";
    if (two_terms && p.bf16_products) return "the problem wants bf16 tokens multiplied as such";
    if (s.fast_accumulation && !p.fast_accumulation) return "the problem wants sums promoted to fp32";
    if (s.cluster > sms_of(p, device)) return "a cluster needs more SMs than there are";
    return nullptr;
}

namespace {

// The problem for a batch like any other.
constexpr u32 kTokensOfAnyBatch = 16;
Fp4Problem of_any_batch(Fp4Problem p) {
    const bool aligned = p.groups == GroupMode::contiguous || p.groups == GroupMode::psum;
    const u32 rows = aligned ? kGroupAlignment : kTokensOfAnyBatch;
    p.m = p.groups == GroupMode::masked ? rows : rows * p.num_groups;
    p.expected_m = p.groups == GroupMode::psum ? kTokensOfAnyBatch : 0;
    return p;
}

// The cheapest candidate's cost; infinity where none is legal.
float least_us(const Fp4Problem& p, u32 token_terms, const DeviceModel& device) {
    std::vector<Fp4GemmSpec> specs;
    add_candidates(p, token_terms, sms_of(p, device), specs);
    float least = std::numeric_limits<float>::infinity();
    for (const Fp4GemmSpec& s : specs)
        if (why_illegal(s) == nullptr && why_unfit(p, s, device) == nullptr)
            least = std::min(least, cost_of(p, s, device).total_us);
    return least;
}

}  // namespace

u32 token_terms_of(const Fp4Problem& problem, const DeviceModel& device) {
    if (problem.a != Format::bf16 || problem.d != Format::bf16 || problem.bf16_products) return 1;
    const Fp4Problem p = of_any_batch(problem);
    return least_us(p, 2, device) < least_us(p, 1, device) ? 2 : 1;
}

Fp4Plan plan_fp4_gemm(const Fp4Problem& problem, const DeviceModel& device,
                      std::vector<Fp4Candidate>* considered) {
    Fp4Plan best;
    bool found = false;
    const u32 token_terms = token_terms_of(problem, device);
    for (const Fp4GemmSpec& spec : candidates(problem, sms_of(problem, device))) {
        Fp4Candidate candidate{.spec = spec, .rejected = why_illegal(spec), .cost = {}};
        if (candidate.rejected == nullptr) candidate.rejected = why_unfit(problem, spec, device);
        if (candidate.rejected == nullptr && spec.token_terms != token_terms)
            candidate.rejected = token_terms == 2
                                     ? "two terms of bf16 tokens are cheaper for most batches"
                                     : "bf16 products are cheaper for most batches, or more exact "
                                       "than two terms in an fp32 output";
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
    reason = why_unfit(problem, spec, device);
    DG_CHECK(reason == nullptr, value, "{}: the forced spec [{}] does not serve it: {}", to_string(problem),
             to_string(spec), reason);
    return {
        .spec = spec, .grid_blocks = grid_of(problem, spec, device), .cost = cost_of(problem, spec, device)};
}

}  // namespace deep_gemm::plan
