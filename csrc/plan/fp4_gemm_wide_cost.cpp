// The cost of the wide FP4 GEMM, term by term. Cycles were fitted to 83 timings of a Flash layer (gate+up and
// down, 256 to 16384 tokens, all kinds of scales, bf16 tokens, two terms; one H200 that its power limit slows
// down): 5 % off on average, 26 % at most. Those points are all it knows: expect worse elsewhere.
#include <algorithm>
#include <cmath>

#include "plan/fp4_gemm_load.h"

namespace deep_gemm::plan {
namespace {

// A blob of 64 x 128 weights on one SM: what its warpgroups do one after the other, and what each does for
// itself while the others multiply; both grow with the columns of an item.
struct BlobCycles {
    float shared, shared_per_column, chain, chain_per_column;
};
constexpr BlobCycles kOneScale{96, 1, 240, 3.12f}, kScalesAlongK{96, 1, 344, 3.68f};
constexpr BlobCycles kFast{40, 2.1f, 270, 0};        // the tensor core's queue never ends
constexpr BlobCycles kParts{189, 1.67f, 400, 3.7f};  // bf16 tokens, two terms
constexpr float kSecondSetCycles = 216;  // that rolling chunks take off a warpgroup's chain at most ...
constexpr float kSecondSetCyclesPerColumn = 2;
constexpr float kSecondSetItemCycles = 4800;  // ... and add to each of its items
constexpr float kItemCyclesPerColumn = 5;     // an item's start and stores, for each of its warpgroups
constexpr float kFewestColumns = 32;          // of those timings; fewer are not believed to cost less
constexpr float kArrangeBytesPerUs = 4e6f;    // written
constexpr float kArrangeLatencyUs = 4;        // three waits for memory, one after the other, and a launch

constexpr BlobCycles blob_cycles_of(const Fp4GemmSpec& s) {
    if (in_two_parts(s)) return kParts;
    if (s.fast_accumulation) return kFast;
    return s.per_token ? kOneScale : kScalesAlongK;
}

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
        std::max(static_cast<float>(kFp4BoxRows / s.token_terms), load.columns / std::max(1e-6f, load.tiles));
    const float busiest = std::ceil(units / ctas);

    Fp4Cost cost;
    const float k = k_blocks * kFp4BlockK, n = static_cast<float>(p.n);
    const float terms = static_cast<float>(s.token_terms);
    const float k_bytes = k * static_cast<float>(bytes_of(s.a)) * terms;  // of a token
    cost.arrange_us = kArrangeLatencyUs + load.rows * k_bytes / kArrangeBytesPerUs;
    if (s.token_terms == 2) cost.arrange_us += two_terms_us(load.rows, k);
    const float weights = load.active * blocks_n * blobs * blob_bytes;
    const float uneven = units > ctas ? busiest * ctas / units : 1;
    const float rest = load.columns * (k_bytes + n * static_cast<float>(bytes_of(s.d)));
    cost.dram_us = (weights * uneven + rest) / device.dram_bytes_per_us;
    cost.fill_us = busiest * blobs * blob_bytes / kFp4SmBytesPerUs;
    const float token_bytes = columns * k_bytes / static_cast<float>(s.cluster);
    cost.l2_us = units * (blobs * blob_bytes + token_bytes) / device.l2_bytes_per_us;
    const float counted = std::max(columns * terms, kFewestColumns),
                warpgroups = static_cast<float>(s.warpgroups);
    const BlobCycles cycles = blob_cycles_of(s);
    const bool rolling = s.fragment_sets == 2 && !s.fast_accumulation;
    const float ahead = rolling ? std::min(kSecondSetCycles, kSecondSetCyclesPerColumn * counted) : 0;
    const float chain = cycles.chain + cycles.chain_per_column * counted - ahead;
    const float blob = cycles.shared + cycles.shared_per_column * counted + chain / warpgroups;
    const float item = kItemCyclesPerColumn * counted + (rolling ? kSecondSetItemCycles : 0);
    cost.math_us = busiest * (blobs * blob + item) / (device.clock_ghz * 1e3f);
    cost.launch_us = device.launch_us + device.fill_us + device.load_latency_us +
                     (s.cluster > 1 ? device.cluster_us : 0.0f);
    const float stream_us = std::max(cost.dram_us, cost.fill_us);
    const float largest = std::max({stream_us, cost.l2_us, cost.math_us});
    cost.total_us = cost.launch_us + cost.arrange_us + largest +
                    device.overlap * (stream_us + cost.l2_us + cost.math_us - largest);
    return cost;
}

}  // namespace deep_gemm::plan
