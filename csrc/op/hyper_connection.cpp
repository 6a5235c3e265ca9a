// hc_pre(), hc_post() and hc_head(): residual streams and what mixes them.
#include "op/model_check.h"
#include "op/hyper_connection.h"

#include "op/cluster_room.h"
#include "op/workspace.h"

#include <deep_gemm/spec/hc_few.h>

#include <algorithm>

namespace deep_gemm::op {

namespace {

constexpr const char* kHyperConnectionHeader = "deep_gemm/kernel/hyper_connection.cuh";
constexpr jit::KernelId kMix{"hc_mix", kHyperConnectionHeader}, kPost{"hc_post", kHyperConnectionHeader},
    kHcFew{"hc_few", "deep_gemm/kernel/hc_few.cuh"}, kSums{"hc_sums", "deep_gemm/kernel/hc_sums.cuh"},
    kApply{"hc_apply", "deep_gemm/kernel/hc_apply.cuh"};

void check_streams(ModelChecks& checks, const TensorView& x) {
    checks.array("x", x, kReal, {-1, -1, -1}, 4);
    DG_CHECK(x.shape[1] == 2 || x.shape[1] == 4, value,
             "{}: x has {} streams, expected 2 or 4; pass x as [t, streams, channels]", checks.operation(),
             x.shape[1]);
    DG_CHECK(x.shape[2] % 4 == 0 && x.shape[2] > 0, value,
             "{}: x has {} channels, expected a positive multiple of 4; there is no kernel for others",
             checks.operation(), x.shape[2]);
}

// Tokens that a cluster has at a time: as few as fill the device once.
u32 tokens_of(i64 rows, u32 d, u32 streams) {
    constexpr i64 kAtOnce = 16;                 // clusters of a device of 132 SMs
    if (hc_steps_of(d, streams) > 1) return 1;  // their shared memory is full
    u32 tokens = 1;
    while (tokens < kMaxHcTokens && tokens * kAtOnce < rows) tokens *= 2;
    return tokens;
}

// Clusters go through rounds of rows: about four times as many as a device holds at once, because how many it
// does hold depends on how its SMs are grouped.
u32 clusters_of(Device& device, u32 rows, const HcSpec& spec) {
    constexpr u32 kTimes = 4;
    const u32 at_once = std::max(device.properties().num_sms / kHcCluster, 1u);
    return std::min(ceil_div(rows, spec.tokens), kTimes * at_once);
}

// Whether hc_sums and hc_apply serve streams; does not depend on how many rows there are.
bool takes_two(const HcSpec& spec, i64 d) {
    constexpr i64 kGroup = 128;
    return spec.x == Format::bf16 && (spec.add == Format::none || spec.add == Format::bf16) && !spec.head &&
           spec.streams == kHcStreams && d % kGroup == 0 && d <= kMaxHcApplySteps * kHcApplyWarps * kGroup;
}

void run_two(Device& device, const HcPreArguments& a, const HcSpec& spec, const HcParams& params) {
    const u32 slices = params.d / kHcSliceChannels;
    const u64 bytes = u64{params.rows} * slices * kHcRecord * sizeof(float);
    const WorkspaceLease lease = workspace(device, static_cast<driver::Stream>(a.stream), bytes);
    const HcTwoParams two{.p = params,
                          .records = reinterpret_cast<float*>(lease.address),
                          .slices = slices,
                          .row_blocks = std::clamp(device.properties().num_sms / slices, 1u,
                                                   ceil_div(params.rows, kHcSumsTokens))};
    const driver::MemoryRange x = a.add.present() ? writes(a.x) : reads(a.x);
    launch(
        device, kSums, HcSumsSpec{.add = spec.add},
        {grid_of("hc_pre", u64{slices} * two.row_blocks), kHcSumsThreads}, a.stream, two,
        {x, reads_constant(a.fn), reads(a.add), reads(a.post), reads(a.comb), {lease.address, bytes, true}});
    const HcApplySpec apply{.y = spec.y,
                            .weight = spec.weight,
                            .steps = ceil_div(params.d, kHcApplyWarps * 128),
                            .narrow = spec.narrow,
                            .recipe = spec.recipe};
    launch(device, kApply, apply, {params.rows, kHcApplyThreads + 32}, a.stream, two,
           {reads(a.x),
            reads(a.base),
            reads(a.scale),
            reads(a.weight),
            {lease.address, bytes, false},
            writes(a.y),
            writes(a.post),
            writes(a.comb),
            writes(a.narrow.codes),
            writes(a.narrow.scales),
            writes(a.narrow.global_scale)});
}

// Whether hc_few may serve what takes_two() does: its loads of post and comb are 16 bytes. (One that had room for
// eight rows took as long as two launches.)
bool are_few(const HcPreArguments& a, i64 rows) {
    constexpr u64 kVector = 16;
    return rows <= kHcFewMostRows && address_of(a.post) % kVector == 0 && address_of(a.comb) % kVector == 0;
}

// false: the device has no room for the cluster, nothing was launched.
bool run_few(Device& device, const HcPreArguments& a, const HcSpec& spec, const HcParams& params) {
    const HcFewSpec few{.y = spec.y,
                        .weight = spec.weight,
                        .add = spec.add,
                        .steps = ceil_div(params.d, kHcFewRanks * kHcFewGroups * kHcSliceChannels),
                        .narrow = spec.narrow,
                        .recipe = spec.recipe};
    if (!has_cluster_room<HcParams>(device, kHcFew, few, kHcFewRanks, kHcFewThreads)) return false;
    launch(device, kHcFew, few, {kHcFewRanks, kHcFewThreads, kHcFewRanks}, a.stream, params,
           {a.add.present() ? writes(a.x) : reads(a.x), reads_constant(a.fn), reads_constant(a.base),
            reads_constant(a.scale), reads_constant(a.weight), reads(a.add), writes(a.y), writes(a.post),
            writes(a.comb), writes(a.narrow.codes), writes(a.narrow.scales), writes(a.narrow.global_scale)});
    return true;
}

void mix(ModelChecks& checks, const HcPreArguments& a, bool head) {
    check_streams(checks, a.x);
    const i64 rows = a.x.shape[0], streams = a.x.shape[1], d = a.x.shape[2];
    const HcSpec spec{.x = a.x.format,
                      .y = a.y.format,
                      .weight = a.weight.format,
                      .add = a.add.format,
                      .streams = as_u32(streams),
                      .threads = hc_threads_of(as_u32(d), as_u32(streams)),
                      .steps = hc_steps_of(as_u32(d), as_u32(streams)),
                      .tokens = tokens_of(rows, as_u32(d), as_u32(streams)),
                      .head = head,
                      .narrow = a.narrow.present(),
                      .recipe = a.narrow.recipe};
    DG_CHECK(spec.steps <= kMaxHcSteps, value,
             "{}: x has {} streams of {} channels, expected at most {} in all; there is no kernel for others",
             checks.operation(), streams, d, kMaxHcSteps * kHcManyThreads * kHcCluster * 4);
    const i64 mixes = mixes_of(spec);
    checks.vector("fn", a.fn, {Format::fp32}, {mixes, streams * d}, 4);
    checks.vector("base", a.base, {Format::fp32}, {mixes});
    checks.vector("scale", a.scale, {Format::fp32}, {head ? 1 : 3});
    checks.optional_vector("weight", a.weight, kReal, {d}, 4);
    checks.array("y", a.y, kReal, {rows, d}, 4);
    if (a.add.present()) checks.array("add", a.add, kReal, {rows, d}, 4);
    checks.narrow_copy(a.narrow, with_inner(a.y));
    constexpr i64 kNarrowStep = i64{kHcCluster} * 128;
    DG_CHECK(!a.narrow.present() || d % kNarrowStep == 0, value,
             "{}: got a {} copy of {} channels, expected a multiple of {}; ask for no copy, and quantise the "
             "result",
             checks.operation(), name_of(a.narrow.recipe), d, kNarrowStep);
    if (!head) {
        checks.vector("post", a.post, {Format::fp32}, {rows, streams});
        checks.vector("comb", a.comb, {Format::fp32}, {rows, streams, streams});
        DG_CHECK(a.sinkhorn_iterations >= 1, value,
                 "hc_pre: got 0 sinkhorn_iterations, expected at least 1; pass the model's number of them");
    }
    checks.outputs(
        {{"y"}, {"post"}, {"comb"}, {"codes"}, {"scales"}, {"global_scale"}, {a.add.present() ? "x" : ""}});
    const HcParams params{.x = view_of(a.x),
                          .fn = pointer_of<const float>(a.fn),
                          .base = pointer_of<const float>(a.base),
                          .scale = pointer_of<const float>(a.scale),
                          .weight = a.weight.data,
                          .y = view_of(a.y),
                          .add = view_of(a.add),
                          .codes = pointer_of<u8>(a.narrow.codes),
                          .scales = a.narrow.scales.data,
                          .global = pointer_of<float>(a.narrow.global_scale),
                          .post = pointer_of<float>(a.post),
                          .comb = pointer_of<float>(a.comb),
                          .rows = as_u32(rows),
                          .d = as_u32(d),
                          .sinkhorn_iterations = a.sinkhorn_iterations,
                          .clusters = clusters_of(checks.device(), as_u32(rows), spec),
                          .hc_eps = a.hc_eps,
                          .rms_eps = a.rms_eps};
    if (rows == 0) return;
    if (takes_two(spec, d)) {
        Device& device = checks.device();
        if (!are_few(a, rows) || !run_few(device, a, spec, params)) run_two(device, a, spec, params);
        return;
    }
    const driver::DeviceProperties& device = checks.device().properties();
    DG_CHECK(
        plan_smem(spec).bytes <= device.max_smem_per_block, value,
        "{}: got {} streams, whose kernel takes {} bytes of shared memory, expected at most the {} of {}; use bf16 "
        "streams of multiples of 128 channels, or another device",
        checks.operation(), name_of(a.x.format), plan_smem(spec).bytes, device.max_smem_per_block,
        device.name);
    const u32 grid = grid_of(checks.operation(), u64{params.clusters} * kHcCluster);
    launch(checks.device(), kMix, spec, {grid, hc_cta_of(spec), kHcCluster}, a.stream, params,
           {a.add.present() ? writes(a.x) : reads(a.x), reads_constant(a.fn), reads(a.base), reads(a.scale),
            reads(a.weight), reads(a.add), writes(a.y), writes(a.post), writes(a.comb),
            writes(a.narrow.codes), writes(a.narrow.scales), writes(a.narrow.global_scale)});
}

}  // namespace

void hc_pre(const HcPreArguments& a) {
    ModelChecks checks("hc_pre");
    mix(checks, a, false);
}

void hc_head(const HcHeadArguments& a) {
    ModelChecks checks("hc_head");
    HcPreArguments all;
    all.x = a.x;
    all.fn = a.fn;
    all.base = a.base;
    all.scale = a.scale;
    all.weight = a.weight;
    all.y = a.y;
    all.hc_eps = a.hc_eps;
    all.rms_eps = a.rms_eps;
    all.stream = a.stream;
    mix(checks, all, true);
}

void hc_post(const HcPostArguments& a) {
    ModelChecks checks("hc_post");
    check_streams(checks, a.x);
    const i64 rows = a.x.shape[0], streams = a.x.shape[1], d = a.x.shape[2];
    checks.array("y", a.y, kReal, {rows, d}, 4);
    checks.vector("post", a.post, {Format::fp32}, {rows, streams});
    checks.vector("comb", a.comb, {Format::fp32}, {rows, streams, streams});
    checks.array("out", a.out, {a.x.format}, {rows, streams, d}, 4);
    checks.outputs({{"out", "x"}});
    const HcPostSpec spec{.x = a.x.format, .y = a.y.format, .streams = as_u32(streams)};
    const HcPostParams params{.x = view_of(a.x),
                              .out = view_of(a.out),
                              .y = view_of(a.y),
                              .post = pointer_of<const float>(a.post),
                              .comb = pointer_of<const float>(a.comb),
                              .d = as_u32(d)};
    const u64 blocks = static_cast<u64>(rows) * ceil_div(params.d, kHcThreads * 4);
    launch(checks.device(), kPost, spec, {grid_of("hc_post", blocks), kHcThreads}, a.stream, params,
           {reads(a.x), reads(a.y), reads(a.post), reads(a.comb), writes(a.out)});
}

}  // namespace deep_gemm::op
