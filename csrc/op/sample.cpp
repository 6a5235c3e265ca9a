// From logits to tokens: argmax, distribution, draw and the acceptance of drafts, as sample.h describes them.
#include "op/model_check.h"
#include "op/sample.h"

#include <deep_gemm/spec/sample.h>

namespace deep_gemm::op {

namespace {

constexpr const char* kSampleHeader = "deep_gemm/kernel/sample.cuh";
constexpr jit::KernelId kArgmax{"argmax", kSampleHeader}, kDistribution{"sample_distribution", kSampleHeader},
    kDraw{"sample_draw", kSampleHeader}, kAccept{"accept_drafts", kSampleHeader},
    kPositions{"fill_positions", kSampleHeader};

// Columns of rows over the vocabulary.
i64 vocabulary_of(ModelChecks& checks, const char* name, const TensorView& t) {
    checks.array(name, t, {Format::fp32}, {-1, -1});
    DG_CHECK(t.shape[1] >= 1 && t.shape[1] <= i64{kMaxVocabulary}, value,
             "{}: {} has {} columns, expected 1 to {}; pass logits of one row for each token",
             checks.operation(), name, t.shape[1], kMaxVocabulary);
    return t.shape[1];
}

}  // namespace

void argmax(const ArgmaxArguments& a) {
    ModelChecks checks("argmax");
    const i64 v = vocabulary_of(checks, "logits", a.logits), rows = a.logits.shape[0];
    checks.vector("tokens", a.tokens, {Format::int32}, {rows});
    checks.outputs({{"tokens"}});
    const ArgmaxParams params{.logits = pointer_of<const float>(a.logits),
                              .stride = stride_of(a.logits, 0),
                              .tokens = pointer_of<i32>(a.tokens),
                              .v = as_u32(v)};
    launch(checks.device(), kArgmax, SampleSpec{},
           {grid_of("argmax", static_cast<u64>(rows) * kArgmaxCluster), kArgmaxThreads, kArgmaxCluster},
           a.stream, params, {reads(a.logits), writes(a.tokens)});
}

void sample_distribution(const DistributionArguments& a) {
    ModelChecks checks("sample_distribution");
    const i64 v = vocabulary_of(checks, "logits", a.logits), rows = a.logits.shape[0];
    checks.array("probabilities", a.probabilities, {Format::fp32}, {rows, v});
    checks.vector("temperature", a.temperature, {Format::fp32}, {rows});
    checks.vector("top_k", a.top_k, {Format::int32}, {rows});
    checks.vector("top_p", a.top_p, {Format::fp32}, {rows});
    checks.vector("min_p", a.min_p, {Format::fp32}, {rows});
    checks.outputs({{"probabilities"}});
    const DistributionParams params{.logits = pointer_of<const float>(a.logits),
                                    .probabilities = pointer_of<float>(a.probabilities),
                                    .stride = stride_of(a.logits, 0),
                                    .out_stride = stride_of(a.probabilities, 0),
                                    .temperature = pointer_of<const float>(a.temperature),
                                    .top_k = pointer_of<const i32>(a.top_k),
                                    .top_p = pointer_of<const float>(a.top_p),
                                    .min_p = pointer_of<const float>(a.min_p),
                                    .v = as_u32(v)};
    launch(checks.device(), kDistribution, SampleSpec{}, {as_u32(rows), kSampleThreads}, a.stream, params,
           {reads(a.logits), reads(a.temperature), reads(a.top_k), reads(a.top_p), reads(a.min_p),
            writes(a.probabilities)});
}

void sample_draw(const DrawArguments& a) {
    ModelChecks checks("sample_draw");
    const i64 v = vocabulary_of(checks, "probabilities", a.probabilities), rows = a.probabilities.shape[0];
    checks.vector("seed", a.seed, {Format::int32}, {2});
    checks.vector("positions", a.positions, {Format::int32}, {rows});
    checks.vector("tokens", a.tokens, {Format::int32}, {rows});
    checks.outputs({{"tokens"}});
    const DrawParams params{.probabilities = pointer_of<const float>(a.probabilities),
                            .stride = stride_of(a.probabilities, 0),
                            .seed = pointer_of<const i32>(a.seed),
                            .positions = pointer_of<const i32>(a.positions),
                            .tokens = pointer_of<i32>(a.tokens),
                            .v = as_u32(v),
                            .purpose = a.purpose};
    launch(checks.device(), kDraw, SampleSpec{}, {as_u32(rows), kSampleThreads}, a.stream, params,
           {reads(a.probabilities), reads(a.seed), reads(a.positions), writes(a.tokens)});
}

void accept_drafts(const AcceptArguments& a) {
    ModelChecks checks("accept_drafts");
    const bool sampled = a.p.present();
    checks.vector("tokens", a.tokens, {Format::int32}, {-1});
    const i64 n = a.tokens.shape[0];
    DG_CHECK(n >= 1, value,
             "accept_drafts: tokens is empty, expected the committed token at least; put it first");
    DG_CHECK(
        sampled != a.targets.present(), value,
        "accept_drafts: got {} of targets and p, expected one: targets (greedy) or p, q and seed (sampled)",
        sampled ? "both" : "none");
    AcceptParams params{};
    params.n = as_u32(n);
    if (sampled) {
        const i64 v = vocabulary_of(checks, "p", a.p);
        checks.array("p", a.p, {Format::fp32}, {n, v});
        if (n > 1) checks.array("q", a.q, {Format::fp32}, {n - 1, v});
        checks.vector("seed", a.seed, {Format::int32}, {2});
        params.p = pointer_of<const float>(a.p);
        params.q = pointer_of<const float>(a.q);
        params.p_stride = stride_of(a.p, 0);
        params.q_stride = n > 1 ? stride_of(a.q, 0) : 0;
        params.v = as_u32(v);
    } else {
        checks.vector("targets", a.targets, {Format::int32}, {n});
    }
    checks.vector("positions", a.positions, {Format::int32}, {n});
    checks.vector("record", a.record, {Format::int32}, {4});
    checks.outputs({{"record"}});
    params.tokens = pointer_of<const i32>(a.tokens);
    params.targets = pointer_of<const i32>(a.targets);
    params.seed = pointer_of<const i32>(a.seed);
    params.positions = pointer_of<const i32>(a.positions);
    params.record = pointer_of<i32>(a.record);
    launch(checks.device(), kAccept, SampleSpec{.sampled = sampled}, {1, kSampleThreads}, a.stream, params,
           {reads(a.tokens), reads(a.targets), reads(a.p), reads(a.q), reads(a.seed), reads(a.positions),
            writes(a.record)});
}

void fill_positions(const PositionsArguments& a) {
    ModelChecks checks("fill_positions");
    checks.vector("base", a.base, {Format::int32}, {1});
    checks.optional_vector("count", a.count, {Format::int32}, {1});
    checks.vector("positions", a.positions, {Format::int32}, {-1});
    checks.outputs({{"positions"}});
    const PositionsParams params{.base = pointer_of<const i32>(a.base),
                                 .count = pointer_of<const i32>(a.count),
                                 .positions = pointer_of<i32>(a.positions),
                                 .offset = a.offset,
                                 .n = as_u32(a.positions.shape[0])};
    launch(checks.device(), kPositions, SampleSpec{}, {ceil_div(params.n, kSampleThreads), kSampleThreads},
           a.stream, params, {reads(a.base), reads(a.count), writes(a.positions)});
}

}  // namespace deep_gemm::op
