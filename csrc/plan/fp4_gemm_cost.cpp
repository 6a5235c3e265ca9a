// The cost of an FP4 GEMM for few tokens, term by term. Cycles were fitted by hand to the 40 timings of a
// Flash layer in bench/results (four arrangements at each point, one H200), so its regret there says little
// about others; the chain and the rate of one SM come from a prototype, the hand-over of a stage from the 20
// points of gate+up where every plan was timed.
#include <algorithm>
#include <cmath>

#include "plan/fp4_gemm_load.h"

namespace deep_gemm::plan {
namespace {

constexpr float kDecodeCycles = 170;  // a blob of 64 x 128 weights on one SM, several warpgroups at it
constexpr float kNvTableCycles = 24;  // more, for tables computed of E4M3 scales
constexpr float kBlobCyclesPerColumn = 0.5f;  // its wgmma and promotion, which add to it
constexpr float kFeedCycles = 60;             // bringing a blob's tokens, shared by the CTA's warpgroups ...
constexpr float kFeedCyclesPerColumn = 6.5f;
constexpr float kStageCycles = 10;          // hand-over of a stage to the warpgroups and back ...
constexpr float kStageCyclesPerColumn = 7;  // for each column beyond the first eight
// Two terms: a token's columns share an address, and no stage has scales (76 timings of a Flash layer, 1 to 1024
// tokens, one H200: the plan's choice takes 1.011 of the best one's time at most).
constexpr float kTermFeedCyclesPerColumn = 2;
constexpr float kTermStageCyclesPerColumn = 3;
constexpr float kBlobChainCycles =
    290;  // a warpgroup alone: from one blob to the next, two sets of fragments
constexpr float kLoneChainCycles = 340;  // one set
constexpr float kLoneChainPerColumn = 2.8f;
// Items of such an SM, where there are fewer than SMs and each has room for more than one (96 items, room for
// two: 1.38 times as long as with room for one; Qwen3's gate and up, one token).
constexpr float kMeeting = 1.3f;
// bf16 tokens, blocks of 8: the loop for 8 columns alone took 7 % longer than the same one beside that for
// 16 (64 tokens, one H200); why is not known.
constexpr float kLoneBf16Loop = 1.07f;

}  // namespace

Fp4Cost cost_of(const Fp4Problem& p, const Fp4GemmSpec& s, const DeviceModel& device) {
    if (s.wide) return fp4_wide_cost_of(p, s, device);
    const Fp4Load load = fp4_load_of(p, s);
    const u32 used_sms = p.num_sms > 0 ? std::min(p.num_sms, device.num_sms) : device.num_sms;
    const float sms = static_cast<float>(used_sms);
    const float blobs = static_cast<float>(s.warpgroups * fp4_k_blocks(p.k));  // of an item
    const float blocks_n = static_cast<float>(ceil_div(p.n, fp4_block_n_of(s)));
    const float blob_bytes = static_cast<float>(fp4_blob_bytes_of(s.form));
    const float units = std::max(1.0f, load.tiles * blocks_n);
    const float columns =
        std::max(8.0f / static_cast<float>(s.token_terms), load.columns / std::max(1e-6f, load.tiles));

    // Items of the busiest SM: all take about as long. A queue shares them out one by one as SMs come free,
    // fixed turns by rounds of all CTAs.
    const float slots = sms * static_cast<float>(s.ctas_per_sm), even = units / sms;
    float busiest = std::ceil(even);
    // Too few for all SMs: CTAs start where the launch before leaves room, and some meet on one.
    if (units <= sms && units > 1 && s.ctas_per_sm > 1) busiest = kMeeting;
    if (units > slots && !s.queue) busiest = std::ceil(units / slots) * static_cast<float>(s.ctas_per_sm);

    Fp4Cost cost;
    const float k = static_cast<float>(p.k), n = static_cast<float>(p.n);
    const float weights = load.active * blocks_n * blobs * blob_bytes;
    const float token_width = static_cast<float>(bytes_of(s.a) * s.token_terms);
    const float rest = load.columns * (k * token_width + n * static_cast<float>(bytes_of(s.d)));
    const float uneven = units > slots ? busiest / even : 1;
    cost.dram_us = (weights * uneven + rest) / device.dram_bytes_per_us;
    cost.fill_us = busiest * blobs * blob_bytes / kFp4SmBytesPerUs;
    const float token_bytes =
        columns * kFp4BlockK * token_width * static_cast<float>(fp4_k_blocks(p.k));  // of an item
    cost.l2_us = units * (blobs * blob_bytes + token_bytes) / device.l2_bytes_per_us;
    const float brought = std::max(8.0f, columns * static_cast<float>(s.token_terms));  // columns of tokens
    const bool two_terms = s.token_terms == 2;
    const float feed_per_column = two_terms ? kTermFeedCyclesPerColumn : kFeedCyclesPerColumn;
    const float stage_per_column = two_terms ? kTermStageCyclesPerColumn : kStageCyclesPerColumn;
    const float feed = (kFeedCycles + feed_per_column * brought) / static_cast<float>(s.warpgroups);
    const float stage = (kStageCycles + stage_per_column * (brought - 8)) / static_cast<float>(s.k_blocks);
    const float multiplied = brought * static_cast<float>(fp4_groups_of(s));  // columns of wgmma
    const float terms = in_two_parts(s) ? 2 : 1;  // two are decoded and multiplied in turn
    const float decode = kDecodeCycles + (s.form == Fp4Form::nv_single ? kNvTableCycles : 0);
    const float lone = has_bf16_tokens(s) && s.block_m == 8 && s.queue ? kLoneBf16Loop : 1;
    const float shared = lone * terms * (decode + kBlobCyclesPerColumn * multiplied) + feed + stage;
    const float chain = terms > 1 || brought <= static_cast<float>(kFp4OverlapColumns)
                            ? terms * (kBlobChainCycles + multiplied)
                            : kLoneChainCycles + kLoneChainPerColumn * multiplied;
    const float resident = std::min(static_cast<float>(s.ctas_per_sm), std::max(1.0f, std::ceil(even)));
    const float warpgroups = static_cast<float>(s.warpgroups) * resident;
    cost.math_us = busiest * blobs * std::max(shared, chain / warpgroups) / (device.clock_ghz * 1e3f);
    // The first products wait for a whole stage.
    const float first_stage = static_cast<float>(s.warpgroups * s.k_blocks) * blob_bytes;
    cost.launch_us =
        device.launch_us + device.fill_us + device.load_latency_us + first_stage / kFp4SmBytesPerUs;
    if (two_terms) cost.arrange_us = two_terms_us(load.rows, k);
    // Weights reach the busiest SM while they leave DRAM: the longer of the two.
    const float stream_us = std::max(cost.dram_us, cost.fill_us);
    const float largest = std::max({stream_us, cost.l2_us, cost.math_us});
    cost.total_us = cost.launch_us + cost.arrange_us + largest +
                    device.overlap * (stream_us + cost.l2_us + cost.math_us - largest);
    return cost;
}

}  // namespace deep_gemm::plan
