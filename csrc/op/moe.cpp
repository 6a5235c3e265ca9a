#include "op/moe.h"

#include "base/error.h"
#include "op/moe_parts.h"

namespace deep_gemm {

namespace {

constexpr jit::KernelId kGroup{"moe_group", "deep_gemm/kernel/moe_group.cuh"};
constexpr jit::KernelId kSwiglu{"moe_swiglu", "deep_gemm/kernel/moe_swiglu.cuh"};
constexpr jit::KernelId kCombine{"moe_combine", "deep_gemm/kernel/moe_combine.cuh"};

template <typename T>
T* pointer(const TensorView& t) {
    return static_cast<T*>(t.data);
}

u32 extent(const TensorView& t, u32 i) {
    return static_cast<u32>(t.shape[i]);
}

void integers(op::TensorChecks& checks, const char* name, const TensorView& t,
              std::initializer_list<i64> shape) {
    checks.tensor(name, t, {Format::int32}, shape);
    checks.packed(name, t);
}

}  // namespace

op::Prepared<MoeGroupSpec, MoeGroupParams> op::prepare_group(TensorChecks& checks,
                                                             const MoeGroupArguments& a) {
    const MoeGroups& g = a.groups;
    integers(checks, "topk_ids", a.topk_ids, {-1, -1});
    const i64 tokens = a.topk_ids.shape[0], top_k = a.topk_ids.shape[1], pairs = tokens * top_k;
    DG_CHECK(top_k >= 1 && top_k <= kMaxTopK, value,
             "moe_group: topk_ids has shape {}, expected 1 to {} experts a token; route to fewer",
             op::shape_text(a.topk_ids), kMaxTopK);
    DG_CHECK(pairs < (i64{1} << 31), value,
             "moe_group: {} pairs, expected less than 2^31; split the tokens over calls", pairs);
    integers(checks, "ends", g.ends, {-1});
    const i64 experts = g.ends.shape[0];
    DG_CHECK(experts >= 1 && experts <= kMaxExperts, value,
             "moe_group: {} experts, expected 1 to {}; split the experts over calls", experts, kMaxExperts);
    DG_CHECK(a.alignment >= 1 && a.alignment <= 1024, value,
             "moe_group: alignment is {}, expected 1 to 1024; pass 1, or the rows of a block", a.alignment);
    integers(checks, "offsets", g.offsets, {experts + 1});
    integers(checks, "entries", g.entries, {experts, 4});
    integers(checks, "head", g.head, {4});
    for (const auto& [name, t] : {std::pair{"entries", g.entries}, std::pair{"head", g.head}})
        DG_CHECK(op::address_of(t) % 16 == 0, value,
                 "moe_group: {} starts at {:#x}, expected a multiple of 16; pass a copy", name,
                 op::address_of(t));
    integers(checks, "slot_pairs", g.slot_pairs, {-1});
    integers(checks, "slot_tokens", g.slot_tokens, {g.slot_pairs.shape[0]});
    integers(checks, "pair_slots", g.pair_slots, {pairs});
    checks.outputs(
        {{"offsets"}, {"ends"}, {"entries"}, {"head"}, {"slot_pairs"}, {"slot_tokens"}, {"pair_slots"}});
    const u64 slots = moe_slots(static_cast<u64>(pairs), static_cast<u32>(experts), a.alignment);
    DG_CHECK(static_cast<u64>(g.slot_pairs.shape[0]) >= slots, value,
             "moe_group: slot_pairs has {} slots, expected at least {} for {} pairs of {} experts aligned to "
             "{}; allocate as many",
             g.slot_pairs.shape[0], slots, pairs, experts, a.alignment);
    const MoeGroupParams params{
        .topk_ids = pointer<const i32>(a.topk_ids),
        .offsets = pointer<i32>(g.offsets),
        .ends = pointer<i32>(g.ends),
        .entries = pointer<Fp4Entry>(g.entries),
        .head = pointer<Fp4ListHead>(g.head),
        .slot_pairs = pointer<i32>(g.slot_pairs),
        .slot_tokens = pointer<i32>(g.slot_tokens),
        .pair_slots = pointer<i32>(g.pair_slots),
        .pairs = static_cast<u32>(pairs),
        .top_k = static_cast<u32>(top_k),
        .experts = static_cast<u32>(experts),
        .first_expert = a.first_expert,
        .alignment = a.alignment,
    };
    const MoeGroupSpec spec{.max_experts = align_up(params.experts, 256u)};
    return {spec,
            params,
            params.experts,
            {reads(a.topk_ids), writes(g.offsets), writes(g.ends), writes(g.entries), writes(g.head),
             writes(g.slot_pairs), writes(g.slot_tokens), writes(g.pair_slots)}};
}

void moe_group(const MoeGroupArguments& a) {
    op::TensorChecks checks("moe_group");
    const auto prepared = op::prepare_group(checks, a);
    op::launch(checks.device(), kGroup, kMoeThreads, a.stream, prepared);
}

op::Prepared<MoeSwigluSpec, MoeSwigluParams> op::prepare_swiglu(TensorChecks& checks,
                                                                const MoeSwigluArguments& a) {
    checks.tensor("h", a.h, {Format::bf16}, {-1, -1});
    const i64 slots = a.h.shape[0], n = a.h.shape[1] / 2;
    DG_CHECK(a.h.shape[1] % 32 == 0, value,
             "moe_swiglu: h has {} columns, expected gate and up of a multiple of 16 channels each; pad both "
             "with zeros",
             a.h.shape[1]);
    checks.packed("h", a.h);
    checks.rows("h", a.h, 16);
    const bool fp8 = a.codes.format != Format::bf16, two_terms = fp8 && a.codes.rank == 3;
    if (two_terms)
        checks.tensor("codes", a.codes, {Format::fp8_e4m3},
                      {slots, 2, (n + kFp4PadK - 1) / kFp4PadK * kFp4PadK});
    else
        checks.tensor("codes", a.codes, {Format::fp8_e4m3, Format::bf16}, {slots, n});
    checks.packed("codes", a.codes);
    checks.rows("codes", a.codes, fp8 ? 8 : 16);
    DG_CHECK(fp8 == a.scales.present(), value,
             "moe_swiglu: got codes of {} {} scales, expected {}; pass both for FP8, or codes of bf16",
             name_of(a.codes.format), fp8 ? "without" : "with", fp8 ? "both" : "codes alone");
    if (fp8) {
        if (two_terms || a.scales.rank == 1)
            checks.tensor("scales", a.scales, {Format::fp32}, {slots});
        else
            checks.tensor("scales", a.scales, {Format::fp32}, {slots, (n + kQuantizeRow - 1) / kQuantizeRow});
        checks.packed("scales", a.scales);
    }
    integers(checks, "slot_pairs", a.slot_pairs, {slots});
    integers(checks, "num_slots", a.num_slots, {1});
    if (a.weights.present()) {
        checks.tensor("weights", a.weights, {Format::fp32}, {-1});
        checks.packed("weights", a.weights);
    }
    checks.outputs({{"codes"}, {"scales"}});
    DG_CHECK(
        !a.limit || *a.limit > 0, value,
        "moe_swiglu: limit is {}, expected a positive number, or none; leave it out where nothing is clamped",
        a.limit.value_or(0));
    const MoeSwigluSpec spec{.d = a.codes.format,
                             .rule = a.rule,
                             .limited = a.limit.has_value(),
                             .weighted = a.weights.present(),
                             .per_token = fp8 && a.scales.rank == 1,
                             .token_terms = two_terms ? 2u : 1u};
    const MoeSwigluParams params{
        .h = a.h.data,
        .codes = pointer<u8>(a.codes),
        .scales = pointer<float>(a.scales),
        .weights = pointer<const float>(a.weights),
        .slot_pairs = pointer<const i32>(a.slot_pairs),
        .num_slots = pointer<const i32>(a.num_slots),
        .slots = static_cast<u32>(slots),
        .n = static_cast<u32>(n),
        .limit = a.limit.value_or(0),
    };
    const u64 chunks = static_cast<u64>(slots) * (align_up(params.n, kQuantizeRow) / kQuantizeChunk);
    return {spec,
            params,
            spec.per_token ? params.slots : static_cast<u32>(ceil_div(chunks, u64{kMoeThreads})),
            {reads(a.h), writes(a.codes), writes(a.scales), reads(a.slot_pairs), reads(a.num_slots),
             reads(a.weights)}};
}

void moe_swiglu(const MoeSwigluArguments& a) {
    op::TensorChecks checks("moe_swiglu");
    const auto prepared = op::prepare_swiglu(checks, a);
    op::launch(checks.device(), kSwiglu, kMoeThreads, a.stream, prepared);
}

void moe_combine(const MoeCombineArguments& a) {
    op::TensorChecks checks("moe_combine");
    checks.tensor("y", a.y, {Format::bf16}, {-1, -1});
    checks.packed("y", a.y);
    const i64 n = a.y.shape[1];
    DG_CHECK(n % kQuantizeChunk == 0, value,
             "moe_combine: y has {} columns, expected a multiple of {}; pad its rows", n, kQuantizeChunk);
    checks.rows("y", a.y, 16);
    integers(checks, "pair_slots", a.pair_slots, {-1, -1});
    const i64 tokens = a.pair_slots.shape[0], top_k = a.pair_slots.shape[1];
    checks.tensor("d", a.d, {Format::bf16, Format::fp32}, {tokens, n});
    checks.rows("d", a.d, 16);
    if (a.weights.present()) {
        checks.tensor("weights", a.weights, {Format::fp32}, {tokens, top_k});
        checks.packed("weights", a.weights);
    }
    if (a.shared.present()) {
        checks.tensor("shared", a.shared, {Format::bf16}, {tokens, n});
        checks.rows("shared", a.shared, 16);
    }
    checks.outputs({{"d", "shared"}});
    const MoeCombineSpec spec{.d = a.d.format,
                              .top_k = static_cast<u32>(top_k),
                              .combine_weighted = a.weights.present(),
                              .shared = a.shared.present()};
    const char* reason = why_illegal(spec);
    DG_CHECK(!reason, value, "moe_combine: {}", reason);
    if (tokens == 0 || n == 0) return;
    const MoeCombineParams params{
        .y = a.y.data,
        .pair_slots = pointer<const i32>(a.pair_slots),
        .weights = pointer<const float>(a.weights),
        .shared = a.shared.data,
        .d = a.d.data,
        .shared_stride = a.shared.present() ? op::stride_of(a.shared, 0) : 0,
        .d_stride = op::stride_of(a.d, 0),
        .tokens = static_cast<u32>(tokens),
        .n = extent(a.y, 1),
    };
    const u64 chunks = static_cast<u64>(tokens) * (params.n / kQuantizeChunk);
    op::launch(checks.device(), kCombine, spec,
               {static_cast<u32>(ceil_div(chunks, u64{kMoeThreads})), kMoeThreads}, a.stream, params,
               {op::reads(a.y), op::reads(a.pair_slots), op::reads(a.weights), op::reads(a.shared),
                op::writes(a.d)});
}

}  // namespace deep_gemm
