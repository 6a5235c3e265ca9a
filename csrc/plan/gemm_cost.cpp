// The cost model of a GEMM, one function a term. What is counted comes from the spec, the parameters from one
// row of constants.
#include <algorithm>
#include <cmath>

#include "plan/gemm.h"
#include "plan/gemm_shape.h"

namespace deep_gemm::plan {
namespace {

// Parameters of a fit, no measurements of the hardware: they trade against each other, so a term may differ from
// the rate of the same words in plan/device.h, which the models of the other families use. Of this one only the
// stream from memory (dram_bytes_per_us) and the number of SMs come from there; another architecture needs a fit
// of its own. Fitted to 9075 timings of FP8 kernels on one H200 (213 dense, contiguous, psum and masked problems, up to
// 64 plans each: bench/results/gemm-plans-h200-2026-11-29-480e446.json), so that the time lost by a wrong
// choice is least. BF16 uses the same numbers.
struct GemmFit {
    float clock_ghz;              // without load
    float throttle;               // tensor cycles with every SM multiplying (power) / without load
    float throttle_power;         // of the share of SMs that multiply
    float imbalance;              // power of 1 / that share: few streams do not fill the memory's bandwidth
    float l2_bytes_per_us;        // operand tiles from L2, all SMs pulling
    float sm_fill_bytes_per_us;   // tiles into one SM's shared memory
    float smem_bytes_per_cycle;   // one SM, loads and wgmma operands together
    float load_latency_us;        // one stage: request to data
    float ring_us;                // one stage: request to data, to the math, to the next request
    float launch_us;              // graph launch to first wgmma, and the last store to the next kernel
    float next_grid_us;           // what an early start of the next grid hides
    float epilogue_us;            // last wgmma to end, fixed part
    float epilogue_us_per_block;  // and for an output block of 128 x 128 elements
    float between_us_per_block;   // of such a block, what the next one's loads do not hide, split among
                                  // warpgroups
    float exchange_us_per_block;  // the same for sums that go through shared memory (swap_ab, split K)
    float meeting_us;             // split K: CTAs of a cluster meet
    float meeting_us_per_cta;
    float meeting_us_per_block;
    float padding_block_us;  // a block without valid rows
    float outside_row_us;    // a stage's row beyond the matrix: TMA fills it slower than it loads one
    float cluster_us;        // clusters start later than CTAs
    float overlap;           // share of every other resource that does not hide behind the largest
    // Cycles of a stage.
    float promote;       // an accumulator register
    float swap_promote;  // the same where the token scale differs from column to column
    float chain;         // a warpgroup's wait, start and release, beside wgmma and promotion
    float swap_chain;    // the same, partly overlapped
    float stage;         // tensor core idle between two stages
    float multicast;     // more of it where two CTAs wait for each other
    float exposed[5];    // tensor cycles with exposed promotion / without, by warpgroups that take turns
};

constexpr GemmFit kFit{
    .clock_ghz = 1.98f,
    .throttle = 1.05f,
    .throttle_power = 4.45f,
    .imbalance = 0.232f,
    .l2_bytes_per_us = 19.5e6f,
    .sm_fill_bytes_per_us = 119e3f,
    .smem_bytes_per_cycle = 139.0f,
    .load_latency_us = 1.48f,
    .ring_us = 1.46f,
    .launch_us = 1.6f,
    .next_grid_us = 2.48f,
    .epilogue_us = 0.173f,
    .epilogue_us_per_block = 0.384f,
    .between_us_per_block = 0.488f,
    .exchange_us_per_block = 0.105f,
    .meeting_us = 0.0507f,
    .meeting_us_per_cta = 0.204f,
    .meeting_us_per_block = 1.46f,
    .padding_block_us = 0.699f,
    .outside_row_us = 0.00262f,
    .cluster_us = 1.51f,
    .overlap = 0.131f,
    .promote = 1.27f,
    .swap_promote = 2.81f,
    .chain = 198.0f,
    .swap_chain = 215.0f,
    .stage = 47.7f,
    .multicast = 16.0f,
    .exposed = {0, 1.21f, 1.18f, 1.13f, 1.13f},
};

constexpr float kStepsPerStage = 4;       // wgmma steps in 128 bytes of K
constexpr float kCyclesPerColumn = 0.5f;  // one 64-row wgmma step
constexpr float kMinColumns = 16;         // shorter wgmma take as long
constexpr float kBlockElements = 128 * 128;

// Cycles one SM needs for one stage of one block, all of its warpgroups together, when `share` of the SMs
// multiply.
float stage_cycles(const GemmSpec& s, float share) {
    const GemmFit& r = kFit;
    const float promote = has_scales(s) ? 1.0f : 0.0f;
    const float loads = static_cast<float>(s.block_m + s.block_n) * kBlockKBytes;
    float tensor, smem, chain;
    if (s.swap_ab) {
        const float columns = std::max(static_cast<float>(s.block_m), kMinColumns);
        const float wgmma = columns * kCyclesPerColumn * kStepsPerStage;
        tensor = static_cast<float>(n_warpgroups_of(s)) * wgmma;
        smem = loads + static_cast<float>(n_warpgroups_of(s) * (kMmaRows + s.block_m) * kBlockKBytes);
        chain = (wgmma + promote * r.swap_promote * static_cast<float>(s.block_m) / 2 + r.swap_chain) /
                static_cast<float>(s.k_warpgroups);
    } else {
        const float waves = static_cast<float>(s.block_m / kMmaRows),
                    own = waves / static_cast<float>(s.warpgroups);
        const float wgmma = static_cast<float>(s.block_n) * kCyclesPerColumn * kStepsPerStage;
        const float throttle = 1 + (r.throttle - 1) * std::pow(share, r.throttle_power);
        tensor = waves * wgmma * throttle * (has_scales(s) ? r.exposed[s.warpgroups] : 1) + r.stage +
                 (multicasts(s) ? r.multicast : 0);
        smem = loads + waves * static_cast<float>((kMmaRows + s.block_n) * kBlockKBytes);
        chain = own * (wgmma + promote * r.promote * static_cast<float>(s.block_n) / 2) + r.chain;
    }
    return std::max({tensor, smem / r.smem_bytes_per_cycle, chain});
}

// What a CTA does between two of its blocks while no wgmma runs.
float between_us(const GemmSpec& s) {
    const float elements = static_cast<float>(s.block_m * s.block_n) / kBlockElements;
    if (s.swap_ab) return kFit.exchange_us_per_block * elements;
    return (s.split_k > 1 ? kFit.exchange_us_per_block : kFit.between_us_per_block) * elements /
           static_cast<float>(s.warpgroups);
}

}  // namespace

GemmCost cost_of(const GemmProblem& problem, const GemmSpec& s, const DeviceModel& device) {
    const GemmFit& r = kFit;
    const GemmShape shape = shape_of(problem, s, device);
    const float rounds = static_cast<float>(shape.rounds);
    const float stages = static_cast<float>(shape.stages_per_block) * rounds;
    const float element = static_cast<float>(bytes_of(s.ab)), d_element = static_cast<float>(bytes_of(s.d));
    const float n = static_cast<float>(problem.n), k = static_cast<float>(problem.k);
    const float weights = static_cast<float>(shape.active_groups) * n * k * element;
    const float tokens = static_cast<float>(shape.total_rows), sms = static_cast<float>(device.num_sms);
    const float blocks = static_cast<float>(shape.units) * static_cast<float>(cluster_size_of(s));
    const float share = std::min(1.0f, blocks / (sms * rounds));  // of the SMs, averaged over the rounds
    const float busy = static_cast<float>(shape.active_ctas) / sms;

    GemmCost cost;
    const float in_flight = static_cast<float>(s.stages * s.block_n * kBlockKBytes * shape.active_ctas);
    const float outputs = n * d_element * (problem.accumulate ? 2.0f : 1.0f);  // C is read
    cost.dram_us = std::max((weights + tokens * (k * element + outputs)) / device.dram_bytes_per_us,
                            weights * r.load_latency_us / in_flight) *
                   std::pow(1 / share, r.imbalance);
    const float tile_bytes = static_cast<float>(s.block_m) / static_cast<float>(s.cluster_n) +
                             static_cast<float>(s.block_n) / static_cast<float>(s.cluster_m);
    cost.l2_us = blocks * static_cast<float>(shape.stages_per_block) * tile_bytes * kBlockKBytes /
                 (r.l2_bytes_per_us * std::min(1.0f, busy * 4));
    const float stage_us =
        std::max(stage_cycles(s, share) / (r.clock_ghz * 1e3f), r.ring_us / static_cast<float>(s.stages));
    const float load_us = static_cast<float>((s.block_m + s.block_n) * kBlockKBytes) / r.sm_fill_bytes_per_us;
    const float outside = static_cast<float>(shape.rows_outside);
    const float last_stage_us =
        outside == 0 ? stage_us : std::max(stage_us, load_us + outside * r.outside_row_us);
    cost.fill_us = stages * load_us;
    cost.math_us = static_cast<float>(shape.stages_per_block) * ((rounds - 1) * stage_us + last_stage_us) +
                   (rounds - 1) * between_us(s) +
                   static_cast<float>(shape.padding_rounds) * r.padding_block_us;
    const float elements = static_cast<float>(s.block_m * s.block_n) / kBlockElements;
    const float store_us = elements * r.epilogue_us_per_block;
    cost.epilogue_us = r.epilogue_us + store_us + (cluster_size_of(s) > 1 ? r.cluster_us : 0);
    if (s.split_k > 1) {
        const float meeting_us = r.meeting_us + static_cast<float>(s.split_k) * r.meeting_us_per_cta;
        cost.epilogue_us +=
            meeting_us + elements * r.meeting_us_per_block + (rounds - 1) * (meeting_us + store_us);
    }
    // Where two CTAs fit an SM, the next grid's first loads run beside this one's last, uneven round.
    const bool overlaps_next = ctas_per_sm_of(s) == 2 && shape.rounds > 1;
    cost.launch_us = r.launch_us - (overlaps_next ? r.next_grid_us : 0);

    const float largest = std::max({cost.dram_us, cost.l2_us, cost.fill_us, cost.math_us});
    const float others = cost.dram_us + cost.l2_us + cost.fill_us + cost.math_us - largest;
    cost.total_us = cost.launch_us + cost.epilogue_us + largest + r.overlap * others;
    return cost;
}

}  // namespace deep_gemm::plan
