// embed() and expand_streams(): what fills the streams of a token.
#include "op/model_check.h"
#include "op/embed.h"

#include <deep_gemm/spec/embed.h>

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kEmbed{"embed", "deep_gemm/kernel/embed.cuh"};

void fill(ModelChecks& checks, const char* name, const TensorView& value, const TensorView& tokens,
          const TensorView& all, bool accumulate, void* stream) {
    const bool gather = tokens.present();
    const TensorView x = with_inner(all);
    checks.array("x", x, kReal, {-1, -1, -1}, 4);
    const i64 rows = x.shape[0], d = x.shape[2];
    DG_CHECK(d % 4 == 0, value, "{}: x has {} columns, expected a multiple of 4; pad its rows",
             checks.operation(), d);
    checks.array(name, value, kReal, {gather ? -1 : rows, d}, 4);
    checks.optional_vector("tokens", tokens, {Format::int32}, {rows});
    checks.outputs({{"x"}});
    const EmbedSpec spec{.value = value.format, .x = x.format, .gather = gather, .accumulate = accumulate};
    const EmbedParams params{.value = view_of(value),
                             .x = view_of(x),
                             .tokens = pointer_of<const i32>(tokens),
                             .vocabulary = as_u32(value.shape[0]),
                             .streams = as_u32(x.shape[1]),
                             .d = as_u32(d)};
    launch(checks.device(), kEmbed, spec, {as_u32(rows), kEmbedThreads}, stream, params,
           {reads(value), reads(tokens), writes(all)});
}

}  // namespace

void embed(const EmbedArguments& a) {
    ModelChecks checks("embed");
    checks.vector("tokens", a.tokens, {Format::int32}, {-1});
    fill(checks, "table", a.table, a.tokens, a.x, false, a.stream);
}

void expand_streams(const ExpandArguments& a) {
    ModelChecks checks("expand_streams");
    fill(checks, "value", a.value, {}, a.x, a.accumulate, a.stream);
}

}  // namespace deep_gemm::op
