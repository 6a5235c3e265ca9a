// latent_attention() of model_ops.h: all heads over one shared latent row for each position.
#include "op/latent_check.h"

#include <deep_gemm/spec/attention.h>

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kAttention{"attention", "deep_gemm/kernel/attention.cuh"};

}  // namespace

void latent_attention(const LatentAttentionArguments& a) {
    ModelChecks checks("latent_attention");
    checks.array("q", a.q, kReal, {-1, -1, -1}, 4);
    const i64 tokens = a.q.shape[0], heads = a.q.shape[1], d = a.q.shape[2];
    DG_CHECK(d % 4 == 0 && d > 0 && d <= kLatentMaxChannels, value,
             "latent_attention: q has {} channels, expected a multiple of 4, at most {}", d,
             kLatentMaxChannels);
    checks.array("out", a.out, kReal, {tokens, heads, d}, 4);
    checks.vector("positions", a.positions, {Format::int32}, {tokens});
    checks.optional_vector("sequences", a.sequences, {Format::int32}, {tokens});
    checks.optional_vector("sinks", a.sinks, {Format::fp32}, {heads});
    const CheckedRows ring = check_latent_rows(checks, "ring", a.ring, d);
    DG_CHECK(a.window >= 1 && a.window <= ring.view.rows, value,
             "latent_attention: got a window of {} rows, expected 1 to the ring's {}", a.window,
             ring.view.rows);
    CheckedRows compressed;
    if (a.compressed.present()) {
        compressed = check_latent_rows(checks, "compressed", a.compressed, d);
        DG_CHECK(a.ratio >= 1, value,
                 "latent_attention: got ratio 0, expected at least 1 with compressed rows");
        DG_CHECK(compressed.view.sequences >= ring.view.sequences, value,
                 "latent_attention: compressed has {} sequences, expected the ring's {}",
                 compressed.view.sequences, ring.view.sequences);
    }
    DG_CHECK(!a.picks.present() || a.compressed.present(), value,
             "latent_attention: got picks without compressed rows");
    checks.optional_vector("picks", a.picks, {Format::int32}, {tokens, -1});
    const u32 dims = a.frequencies.present() ? check_frequencies(checks, a.frequencies, d) : 0;
    if (tokens == 0 || heads == 0) return;
    const AttentionSpec spec{.q = a.q.format,
                             .out = a.out.format,
                             .rows = ring.format,
                             .compressed = compressed.format,
                             .d = as_u32(d),
                             .picks = a.picks.present(),
                             .sinks = a.sinks.present(),
                             .rotate = a.frequencies.present()};
    AttentionParams params{};
    params.q = view_of(a.q);
    params.out = view_of(a.out);
    params.rows = ring.view;
    params.compressed = compressed.view;
    params.picks = pointer_of<const i32>(a.picks);
    params.sinks = pointer_of<const float>(a.sinks);
    params.frequencies = pointer_of<const float>(a.frequencies);
    params.positions = pointer_of<const i32>(a.positions);
    params.sequences = pointer_of<const i32>(a.sequences);
    params.tokens = as_u32(tokens);
    params.heads = as_u32(heads);
    params.window = a.window;
    params.ratio = a.ratio;
    params.num_picks = a.picks.present() ? as_u32(a.picks.shape[1]) : 0;
    params.dims = dims;
    params.scale = attention_scale(a.scale, d);
    const u64 blocks = static_cast<u64>(tokens) * ceil_div(params.heads, kAttentionHeads);
    launch(checks.device(), kAttention, spec, {grid_of("latent_attention", blocks), kAttentionThreads},
           a.stream, params,
           {reads(a.q), reads(a.ring.data), reads(a.compressed.data), reads(a.picks), reads(a.sinks),
            reads(a.frequencies), reads(a.positions), reads(a.sequences), writes(a.out)});
}

}  // namespace deep_gemm::op
