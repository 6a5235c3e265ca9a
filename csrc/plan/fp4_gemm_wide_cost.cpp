// The cost of the wide FP4 GEMM, term by term. Cycles were fitted by least squares to 344 timings of a Flash
// layer (gate+up and down, 1024 to 16384 tokens, both kinds of scales, one H200 that its power limit slows
// down): 4 % off on average, 18 % at most; the plan chosen at the 20 points is 2.3 % slower than the best on
// average. Those points are all it knows: expect worse elsewhere. Blobs in two parts (bf16 tokens, two terms)
// were not measured: their second part is taken to cost what tensor cores and decoding need.
#include <algorithm>
#include <cmath>

#include "plan/fp4_gemm_load.h"

namespace deep_gemm::plan {
namespace {

// A blob of 64 x 128 weights on one SM: what its warpgroups do one after the other, and what each does for
// itself while the others multiply.
constexpr float kBlobCycles = 214;
constexpr float kChainCyclesPerColumn = 5.85f;
constexpr float kScaleCyclesPerColumn = 1.16f;     // of these: reading a token's scale for each blob
constexpr float kPromotionCyclesPerColumn = 0.7f;  // the rest of them that fast accumulation spares: assumed
constexpr float kSecondSetCycles = 41;             // that decoding ahead takes off a warpgroup's chain
constexpr float kSecondPartCyclesPerColumn = 2;    // of tensor cores
constexpr float kItemCyclesPerColumn = 18;         // an item's start and stores, for each of its warpgroups
constexpr float kFewestColumns = 32;               // of those timings; fewer are not believed to cost less
constexpr float kArrangeBytesPerUs = 4e6f;         // written
constexpr float kArrangeLatencyUs = 4;  // three waits for memory, one after the other, and a launch

}  // namespace

Fp4Cost fp4_wide_cost_of(const Fp4Problem& p, const Fp4GemmSpec& s, const DeviceModel& device) {
    const Fp4Load load = fp4_load_of(p, s);
    const u32 used_sms = p.num_sms > 0 ? std::min(p.num_sms, device.num_sms) : device.num_sms;
    const float ctas = static_cast<float>(std::max(1u, used_sms / s.cluster) * s.cluster);
    const float k_blocks = static_cast<float>(fp4_k_blocks(p.k));
    const float blobs = static_cast<float>(s.warpgroups) * k_blocks;  // of an item
    // CTAs of a cluster take neighbouring blocks of weights, those beyond n too.
    const float blocks_n = static_cast<float>(ceil_div(p.n, fp4_block_n_of(s) * s.cluster) * s.cluster);
    const float blob_bytes = static_cast<float>(fp4_blob_bytes_of(s.form));
    const float units = std::max(1.0f, load.tiles * blocks_n);
    const float columns =
        std::max(static_cast<float>(kFp4BoxRows), load.columns / std::max(1e-6f, load.tiles));
    const float busiest = std::ceil(units / ctas);

    Fp4Cost cost;
    const float k = k_blocks * kFp4BlockK, n = static_cast<float>(p.n);
    const float k_bytes = k * static_cast<float>(bytes_of(s.a));
    cost.arrange_us = kArrangeLatencyUs + load.rows * k_bytes / kArrangeBytesPerUs;
    const float weights = load.active * blocks_n * blobs * blob_bytes;
    const float uneven = units > ctas ? busiest * ctas / units : 1;
    const float rest = load.columns * (k_bytes + n * static_cast<float>(bytes_of(s.d)));
    cost.dram_us = (weights * uneven + rest) / device.dram_bytes_per_us;
    cost.fill_us = busiest * blobs * blob_bytes / kFp4SmBytesPerUs;
    const float token_bytes = columns * k_bytes / static_cast<float>(s.cluster);
    cost.l2_us = units * (blobs * blob_bytes + token_bytes) / device.l2_bytes_per_us;
    const float counted = std::max(columns, kFewestColumns);
    const float ahead = s.fragment_sets == 2 ? kSecondSetCycles : 0;
    const float parts = in_two_parts(s) ? 2 : 1;
    const float per_column = kChainCyclesPerColumn - (scales_in_loop(s) ? 0 : kScaleCyclesPerColumn) -
                             (s.fast_accumulation ? kPromotionCyclesPerColumn : 0) +
                             (parts - 1) * kSecondPartCyclesPerColumn;
    const float chain = (per_column + kItemCyclesPerColumn / k_blocks) * counted - ahead;
    const float blob = parts * kBlobCycles + chain / static_cast<float>(s.warpgroups);
    cost.math_us = busiest * blobs * blob / (device.clock_ghz * 1e3f);
    cost.launch_us = device.launch_us + device.fill_us + device.load_latency_us +
                     (s.cluster > 1 ? device.cluster_us : 0.0f);
    const float stream_us = std::max(cost.dram_us, cost.fill_us);
    const float largest = std::max({stream_us, cost.l2_us, cost.math_us});
    cost.total_us = cost.launch_us + cost.arrange_us + largest +
                    device.overlap * (stream_us + cost.l2_us + cost.math_us - largest);
    return cost;
}

}  // namespace deep_gemm::plan
