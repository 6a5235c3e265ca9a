// top_k(): the largest scores of each token, exactly.
#include "op/model_check.h"
#include "op/top_k.h"

#include <deep_gemm/spec/top_k.h>

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kTopK{"top_k", "deep_gemm/kernel/top_k.cuh"};

// A cluster only for what one CTA cannot hold and would read again in each pass: with 32768 scores it takes
// 21 us, one CTA 12 (H200). The result depends on neither.
// With peaks a CTA reads little of them.
TopKSpec spec_for(u32 columns, bool peaks) {
    constexpr u32 kMostPeaks = kTopKMaxHeld / 2;  // that a CTA keeps beside scores
    TopKSpec spec{.peaks = peaks && columns <= kMostPeaks * kScoresOfPeak};
    if (spec.peaks && columns > kTopKMaxHeld) spec.held = kTopKMaxHeld;
    if (!spec.peaks && columns > kTopKMaxHeld) spec = {.cluster = kTopKMaxCluster, .held = kTopKMaxHeld};
    while (spec.held < kTopKMaxHeld && spec.held * spec.cluster < columns) spec.held *= 2;
    return spec;
}

}  // namespace

void top_k(const TopKArguments& a) {
    ModelChecks checks("top_k");
    checks.array("scores", a.scores, {Format::fp32}, {-1, -1});
    const i64 tokens = a.scores.shape[0];
    checks.vector("positions", a.positions, {Format::int32}, {tokens});
    checks.vector("picks", a.picks, {Format::int32}, {tokens, -1});
    DG_CHECK(a.picks.shape[1] >= 1, value,
             "top_k: picks has shape {}, expected at least one column; allocate one for each pick",
             shape_text(a.picks));
    DG_CHECK(a.ratio >= 1, value,
             "top_k: got ratio 0, expected at least 1; pass the positions that a row stands for");
    if (a.peaks.present())
        checks.array("peaks", a.peaks, {Format::int32},
                     {tokens, ceil_div(as_u32(a.scores.shape[1]), kScoresOfPeak)});
    checks.outputs({{"picks"}});
    const TopKParams params{.scores = pointer_of<const float>(a.scores),
                            .scores_stride = stride_of(a.scores, 0),
                            .peaks = pointer_of<const u32>(a.peaks),
                            .peaks_stride = a.peaks.present() ? stride_of(a.peaks, 0) : 0,
                            .positions = pointer_of<const i32>(a.positions),
                            .picks = pointer_of<i32>(a.picks),
                            .columns = as_u32(a.scores.shape[1]),
                            .k = as_u32(a.picks.shape[1]),
                            .ratio = a.ratio};
    const TopKSpec spec = spec_for(params.columns, a.peaks.present());
    launch(checks.device(), kTopK, spec,
           {grid_of("top_k", static_cast<u64>(tokens) * spec.cluster), kTopKThreads, spec.cluster}, a.stream,
           params, {reads(a.scores), reads(a.positions), reads(a.peaks), writes(a.picks)});
}

}  // namespace deep_gemm::op
