// The cost model, one function a term. Rates come from DeviceModel; everything else is counted from the spec.
#include <algorithm>

#include "plan/gemm.h"
#include "plan/gemm_shape.h"

namespace deep_gemm::plan {
namespace {

constexpr float kStepsPerStage = 4;         // wgmma steps in 128 bytes of K
constexpr float kCyclesPerColumn = 0.5f;    // one 64-row wgmma step
constexpr float kMinColumns = 16;           // shorter wgmma take as long
constexpr float kPromoteCycles = 1.03f;     // per accumulator register
constexpr float kSwapPromoteCycles = 2.6f;  // the token scale differs from column to column
constexpr float kSwapChainCycles =
    190;                             // a warpgroup's wait, start and release of one stage, partly overlapped
constexpr float kChainCycles = 180;  // the same where the warpgroup waits for its wgmma before it promotes
constexpr float kExposedPromotion[5] = {0, 1.15f, 1.15f, 1.04f,
                                        1.04f};  // tensor core idle, by warpgroups that take turns
constexpr float kStageCycles = 83;               // tensor core idle between two stages

// Cycles one SM needs for one stage of one block: all of its warpgroups together.
float stage_cycles(const GemmSpec& s, const DeviceModel& device) {
    const float promote = has_scales(s) ? 1.0f : 0.0f;
    const float loads = static_cast<float>(s.block_m + s.block_n) * kBlockKBytes;
    float tensor, smem, chain;
    if (s.swap_ab) {
        const float columns = std::max(static_cast<float>(s.block_m), kMinColumns);
        const float wgmma = columns * kCyclesPerColumn * kStepsPerStage;
        tensor = static_cast<float>(n_warpgroups_of(s)) * wgmma;
        smem = loads + static_cast<float>(n_warpgroups_of(s) * (kMmaRows + s.block_m) * kBlockKBytes);
        chain =
            (wgmma + promote * kSwapPromoteCycles * static_cast<float>(s.block_m) / 2 + kSwapChainCycles) /
            static_cast<float>(s.k_warpgroups);
    } else {
        const float waves = static_cast<float>(s.block_m / kMmaRows),
                    own = waves / static_cast<float>(s.warpgroups);
        const float wgmma = static_cast<float>(s.block_n) * kCyclesPerColumn * kStepsPerStage;
        tensor = waves * wgmma * device.throttle * (has_scales(s) ? kExposedPromotion[s.warpgroups] : 1) +
                 kStageCycles;
        smem = loads + waves * static_cast<float>((kMmaRows + s.block_n) * kBlockKBytes);
        chain = own * (wgmma + promote * kPromoteCycles * static_cast<float>(s.block_n) / 2) + kChainCycles;
    }
    return std::max({tensor, smem / device.smem_bytes_per_cycle, chain});
}

}  // namespace

GemmCost cost_of(const GemmProblem& problem, const GemmSpec& s, const DeviceModel& device) {
    const GemmShape shape = shape_of(problem, s, device);
    const float stages = static_cast<float>(shape.stages_per_block) * static_cast<float>(shape.rounds);
    const float element = static_cast<float>(bytes_of(s.ab)), d_element = static_cast<float>(bytes_of(s.d));
    const float n = static_cast<float>(problem.n), k = static_cast<float>(problem.k);
    const float weights = static_cast<float>(shape.active_groups) * n * k * element;
    const float tokens = static_cast<float>(shape.total_rows);
    const float busy = static_cast<float>(shape.active_ctas) / static_cast<float>(device.num_sms);

    GemmCost cost;
    const float in_flight = static_cast<float>(s.stages * s.block_n * kBlockKBytes * shape.active_ctas);
    cost.dram_us = std::max((weights + tokens * (k * element + n * d_element)) / device.dram_bytes_per_us,
                            weights * device.load_latency_us / in_flight);
    const float tile_bytes = static_cast<float>(s.block_m) / static_cast<float>(s.cluster_n) +
                             static_cast<float>(s.block_n) / static_cast<float>(s.cluster_m);
    const float blocks = static_cast<float>(shape.units) * static_cast<float>(cluster_size_of(s));
    cost.l2_us = blocks * static_cast<float>(shape.stages_per_block) * tile_bytes * kBlockKBytes /
                 (device.l2_bytes_per_us * std::min(1.0f, busy * 4));
    cost.fill_us =
        stages * static_cast<float>((s.block_m + s.block_n) * kBlockKBytes) / device.sm_fill_bytes_per_us;
    cost.math_us = stages * stage_cycles(s, device) / (device.clock_ghz * 1e3f);
    // A block's epilogue hides behind the loads of the next one, an exchange between CTAs does not.
    const float store_us = static_cast<float>(s.block_m * s.block_n) * device.epilogue_us_per_element;
    cost.epilogue_us = device.epilogue_us + store_us + (cluster_size_of(s) > 1 ? device.cluster_us : 0);
    if (s.split_k > 1) {
        const float exchange_us =
            device.exchange_us + static_cast<float>(s.split_k) * device.exchange_us_per_cta;
        cost.epilogue_us += exchange_us + static_cast<float>(shape.rounds - 1) * (exchange_us + store_us);
    }
    // Where two CTAs fit an SM, the next grid's first loads run beside this one's last, uneven round.
    const bool overlaps_next = ctas_per_sm_of(s) == 2 && shape.rounds > 1;
    cost.launch_us = device.launch_us + device.fill_us - (overlaps_next ? device.next_grid_us : 0);

    const float largest = std::max({cost.dram_us, cost.l2_us, cost.fill_us, cost.math_us});
    const float others = cost.dram_us + cost.l2_us + cost.fill_us + cost.math_us - largest;
    cost.total_us = cost.launch_us + cost.epilogue_us + largest + device.overlap * others;
    return cost;
}

}  // namespace deep_gemm::plan
