// latent_attention(): all heads over one shared latent row for each position.
#include "op/attention.h"
#include "op/cluster_room.h"
#include "op/latent_check.h"

#include <deep_gemm/spec/latent_mma.h>

#include <algorithm>
#include <optional>

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kAttention{"attention", "deep_gemm/kernel/attention.cuh"};
constexpr const char* kMmaHeader = "deep_gemm/kernel/latent_mma.cuh";
constexpr jit::KernelId kMma{"latent_mma", kMmaHeader}, kMerge{"latent_merge", kMmaHeader},
    kWide{"latent_wide", "deep_gemm/kernel/latent_wide.cuh"},
    kLatentFew{"latent_few", "deep_gemm/kernel/latent_few.cuh"};

// Tokens up to which chunks have CTAs of their own; any number gives the same bits.
constexpr i64 kFewTokens = 24;
// Tokens up to which the CTAs of chunks are clusters.
constexpr i64 kClusterTokens = 8;
constexpr u64 kVectorBytes = 16;

// Tensor cores serve bf16 queries over FP8 rows. What this depends on is the same for any number of tokens.
bool takes_mma(const LatentAttentionArguments& a, const AttentionSpec& spec) {
    const auto aligned = [](const TensorView& t) {
        bool all = address_of(t) % kVectorBytes == 0;
        for (u32 i = 0; i < 2; ++i)
            all = all && (t.shape[i] <= 1 || t.strides[i] * 2 % static_cast<i64>(kVectorBytes) == 0);
        return all;
    };
    return spec.q == Format::bf16 && spec.out == Format::bf16 && spec.rows == Format::fp8_e4m3 &&
           (spec.compressed == Format::none || spec.compressed == Format::fp8_e4m3) &&
           spec.d == kFp8RowChannels && aligned(a.q) && aligned(a.out) &&
           address_of(a.ring.data) % kVectorBytes == 0 && address_of(a.compressed.data) % kVectorBytes == 0;
}

u64 rows_seen(const AttentionParams& p, bool picks) {
    return u64{p.window} + (picks ? p.num_picks : p.compressed.rows);
}

std::vector<i64> records_shape_of(const AttentionParams& p, bool picks) {
    return latent_records_shape(i64{p.tokens}, i64{p.heads}, static_cast<i64>(rows_seen(p, picks)));
}
// Of few tokens; others leave them out.
bool has_records(const LatentAttentionArguments& a, const AttentionParams& p) {
    return a.records.present() && static_cast<i64>(p.tokens) <= kFewTokens;
}

void run_mma(ModelChecks& checks, const LatentAttentionArguments& a, const AttentionSpec& plain,
             const AttentionParams& attention) {
    const std::vector<i64> shape = records_shape_of(attention, plain.picks);
    const bool split = has_records(a, attention) && a.records.shape[2] >= shape[2];
    // Many heads of many tokens; any choice gives the same bits.
    const bool wide = !split && attention.heads > kLatentWideHeads / 2 &&
                      (!plain.rotate || attention.dims <= kFp8RowRotated);
    const LatentMmaSpec spec{.compressed = plain.compressed != Format::none,
                             .picks = plain.picks,
                             .sinks = plain.sinks,
                             .rotate = plain.rotate,
                             .split = split,
                             .tiles = !split && !wide && attention.heads > kLatentMmaHeads ? 2u : 1u,
                             .wide = wide};
    const LatentMmaParams params{.attention = attention,
                                 .records = split ? pointer_of<float>(a.records) : nullptr,
                                 .chunks = split ? as_u32(a.records.shape[2]) : 1,
                                 .eps = 0};
    const u64 units = u64{attention.tokens} * ceil_div(attention.heads, latent_heads_of(spec));
    const std::initializer_list<driver::MemoryRange> memory = {reads(a.q),
                                                               reads(a.ring.data),
                                                               reads(a.ring.table),
                                                               reads(a.compressed.data),
                                                               reads(a.compressed.table),
                                                               reads(a.picks),
                                                               reads(a.sinks),
                                                               reads(a.frequencies),
                                                               reads(a.positions),
                                                               reads(a.sequences),
                                                               split ? writes(a.records) : writes(a.out)};
    if (wide) {
        const u64 at_once = checks.device().properties().num_sms;  // a CTA goes on to further tokens
        return launch(checks.device(), kWide, spec,
                      {grid_of("latent_attention", std::min(units, at_once)), kLatentWideThreads}, a.stream,
                      params, memory);
    }
    launch(checks.device(), kMma, spec,
           {grid_of("latent_attention", units * params.chunks), kLatentMmaThreads}, a.stream, params, memory);
    if (!split) return;
    launch(checks.device(), kMerge, LatentMergeSpec{spec.compressed, spec.picks, spec.sinks, spec.rotate},
           {grid_of("latent_attention", u64{attention.tokens} * attention.heads), kLatentMmaThreads},
           a.stream, params,
           {reads(a.records), reads(a.sinks), reads(a.frequencies), reads(a.positions), reads(a.sequences),
            writes(a.out)});
}

struct Attention {
    AttentionSpec spec;
    AttentionParams params;
};

// Checked arguments; of no tokens or heads, parameters of none.
Attention prepare(ModelChecks& checks, const LatentAttentionArguments& a) {
    checks.array("q", a.q, kReal, {-1, -1, -1}, 4);
    const i64 tokens = a.q.shape[0], heads = a.q.shape[1], d = a.q.shape[2];
    DG_CHECK(
        d % 4 == 0 && d > 0 && d <= kLatentMaxChannels, value,
        "latent_attention: q has {} channels, expected a multiple of 4, at most {}; pad them with zeros, "
        "or split the heads",
        d, kLatentMaxChannels);
    checks.array("out", a.out, kReal, {tokens, heads, d}, 4);
    checks.vector("positions", a.positions, {Format::int32}, {tokens});
    checks.optional_vector("sequences", a.sequences, {Format::int32}, {tokens});
    checks.optional_vector("sinks", a.sinks, {Format::fp32}, {heads});
    const CheckedRows ring = check_latent_rows(checks, "ring", a.ring, d);
    DG_CHECK(
        a.window >= 1 && a.window <= ring.view.rows, value,
        "latent_attention: got a window of {} rows, expected 1 to the ring's {}; pass a smaller window, or "
        "a longer ring",
        a.window, ring.view.rows);
    CheckedRows compressed;
    if (a.compressed.present()) {
        compressed = check_latent_rows(checks, "compressed", a.compressed, d);
        DG_CHECK(
            a.ratio >= 1, value,
            "latent_attention: got ratio 0, expected at least 1 with compressed rows; pass the positions "
            "that a compressed row stands for");
        DG_CHECK(
            compressed.view.sequences >= ring.view.sequences, value,
            "latent_attention: compressed has {} sequences, expected the ring's {}; pass the caches of the "
            "same sequences",
            compressed.view.sequences, ring.view.sequences);
    }
    DG_CHECK(!a.picks.present() || a.compressed.present(), value,
             "latent_attention: got picks without compressed rows, expected both or none; leave the picks "
             "out");
    checks.optional_vector("picks", a.picks, {Format::int32}, {tokens, -1});
    const u32 dims = a.frequencies.present() ? check_frequencies(checks, a.frequencies, d) : 0;
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
    return {spec, params};
}

// latent_few: its kernel, and the CTAs of a cluster, which has the chunks of a token and 16 heads.
struct Few {
    LatentMmaSpec spec;
    u32 chunks;
};

// For few tokens that see few rows, where a CTA has no two chunks and the device has room for the clusters.
std::optional<Few> find_few(Device& device, const LatentAttentionArguments& a, const Attention& attention,
                            bool raw_queries) {
    const AttentionSpec& plain = attention.spec;
    const AttentionParams& p = attention.params;
    const u64 chunks = ceil_div(rows_seen(p, plain.picks), u64{kLatentChunk});
    if (!takes_mma(a, plain) || !has_large_clusters(device) || static_cast<i64>(p.tokens) > kClusterTokens ||
        chunks > kLatentFewChunks || p.dims > kFp8RowRotated)
        return std::nullopt;
    // CTAs without a chunk help to merge: with so many, no thread has more than four channels of one head.
    constexpr u32 kFewest = kLatentMmaHeads * kFp8RowChannels / 4 / kLatentMmaThreads;
    Few few{.spec = {.compressed = plain.compressed != Format::none,
                     .picks = plain.picks,
                     .sinks = plain.sinks,
                     .rotate = plain.rotate,
                     .split = true,
                     .raw = raw_queries},
            .chunks = std::max(static_cast<u32>(chunks), kFewest)};
    const auto fits = [&](bool alone) {
        few.spec.alone = alone;
        return has_cluster_room<LatentMmaParams>(device, kLatentFew, few.spec, few.chunks, kLatentMmaThreads);
    };
    // Few clusters find a multiprocessor for each CTA, in groups of 16 to 18: 0.8 us less of 8.6 (H200).
    const u64 units = u64{p.tokens} * ceil_div(p.heads, kLatentMmaHeads);
    const u64 at_once = u64{device.properties().num_sms} / 18 * (16 / few.chunks);
    if ((units <= at_once && fits(true)) || fits(false)) return few;
    return std::nullopt;
}

void run_few(ModelChecks& checks, const LatentAttentionArguments& a, const Few& few,
             const AttentionParams& attention) {
    const LatentMmaParams params{
        .attention = attention, .records = nullptr, .chunks = few.chunks, .eps = a.eps};
    const u64 units = u64{attention.tokens} * ceil_div(attention.heads, kLatentMmaHeads);
    launch(checks.device(), kLatentFew, few.spec,
           {grid_of("latent_attention", units * few.chunks), kLatentMmaThreads, few.chunks}, a.stream, params,
           {reads(a.q), reads(a.ring.data), reads(a.ring.table), reads(a.compressed.data),
            reads(a.compressed.table), reads(a.picks), reads_constant(a.sinks), reads_constant(a.frequencies),
            reads(a.positions), reads(a.sequences), writes(a.out)});
}

}  // namespace

std::vector<i64> latent_records_shape(i64 tokens, i64 heads, i64 rows) {
    const auto parts = [](i64 count, u32 size) { return (count + size - 1) / size; };
    return {tokens, parts(heads, kLatentMmaHeads), std::max<i64>(parts(rows, kLatentChunk), 1),
            i64{kLatentMmaHeads} * kLatentRecord};
}

bool latent_takes_raw_queries(const LatentAttentionArguments& a) {
    ModelChecks checks("latent_attention");
    const Attention attention = prepare(checks, a);
    return a.frequencies.present() && find_few(checks.device(), a, attention, true);
}

void latent_attention(const LatentAttentionArguments& a) {
    ModelChecks checks("latent_attention");
    const auto [spec, params] = prepare(checks, a);
    const bool is_empty = params.tokens == 0 || params.heads == 0;
    const std::optional<Few> few =
        is_empty ? std::nullopt : find_few(checks.device(), a, {spec, params}, a.raw_queries);
    DG_CHECK(
        !a.raw_queries || ((few || is_empty) && a.frequencies.present()), value,
        "latent_attention: got raw queries, expected few bf16 queries over FP8 rows, with frequencies, on a "
        "device with room for clusters of up to {} blocks; call rope() with norm first",
        kLatentFewChunks);
    if (is_empty) return;
    const bool mma = takes_mma(a, spec);
    if (mma && has_records(a, params)) {
        const std::vector<i64> shape = records_shape_of(params, spec.picks);
        checks.vector("records", a.records, {Format::fp32}, {shape[0], shape[1], -1, shape[3]}, 2);
    }
    checks.outputs({{"out", "q"}, {"records"}});
    if (few) return run_few(checks, a, *few, params);
    if (mma) return run_mma(checks, a, spec, params);
    const u64 blocks = static_cast<u64>(params.tokens) * ceil_div(params.heads, kAttentionHeads);
    launch(checks.device(), kAttention, spec, {grid_of("latent_attention", blocks), kAttentionThreads},
           a.stream, params,
           {reads(a.q), reads(a.ring.data), reads(a.ring.table), reads(a.compressed.data),
            reads(a.compressed.table), reads(a.picks), reads(a.sinks), reads(a.frequencies),
            reads(a.positions), reads(a.sequences), writes(a.out)});
}

}  // namespace deep_gemm::op
