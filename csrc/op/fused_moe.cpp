#include "op/fused_moe.h"

#include "base/error.h"
#include "op/fixed_spec.h"
#include "op/gemm.h"
#include "op/moe_few.h"
#include "op/moe_memory.h"
#include "op/quantize.h"
#include "op/tensor_check.h"

#include <algorithm>
#include <functional>

namespace deep_gemm {

namespace {

constexpr u64 kAlignment = 128;  // of every buffer
constexpr i64 kMaxFirstExpert = (i64{1} << 31) - 1;

// Hands out consecutive pieces of the workspace; without one it only adds up.
class Carver {
  public:
    Carver(Device* device, u8* base) : device_(device), base_(base) {}

    TensorView take(Format format, std::initializer_list<i64> shape) {
        i64 elements = 1;
        for (const i64 extent : shape) elements *= extent;
        u8* const at = base_ ? base_ + bytes_ : nullptr;
        bytes_ += align_up(static_cast<u64>(elements) * bytes_of(format), kAlignment);
        return device_ ? make_view(*device_, at, format, shape) : TensorView{};
    }
    [[nodiscard]] u64 bytes() const { return bytes_; }

  private:
    Device* device_;
    u8* base_;
    u64 bytes_ = 0;
};

struct Buffers {
    MoeGroups groups;
    TensorView num_slots;             // the last of offsets
    TensorView x, x_scale;            // [slots, hidden]; bf16 activations: absent
    TensorView h;                     // [slots, 2 * intermediate]
    TensorView t, t_scale;            // [slots, intermediate]
    TensorView t_terms, term_scales;  // bf16 activations: in the place of t, if two terms are multiplied
    TensorView y;                     // [slots, hidden], in the place of h
    TensorView arranged;  // FP4: bytes for either product's activations in order, if its plan is wide
};

u32 alignment_of(const MoeShape& s) {
    return s.fp4 ? 1 : kGroupAlignment;
}

Buffers carve(const MoeShape& s, Carver& carver) {
    const i64 experts = s.experts, pairs = i64{s.tokens} * s.top_k, hidden = s.hidden,
              channels = s.intermediate;
    const i64 slots = static_cast<i64>(moe_slots(static_cast<u64>(pairs), s.experts, alignment_of(s)));
    const i64 x_rows = s.fp4 ? i64{s.tokens} : slots;
    const auto integers = [&](std::initializer_list<i64> shape) { return carver.take(Format::int32, shape); };
    const auto blocks = [](i64 k) { return (k + kScaleBlock - 1) / kScaleBlock; };
    Buffers b;
    b.groups.offsets = integers({experts + 1});
    b.groups.ends = integers({experts});
    b.groups.entries = integers({experts, 4});
    b.groups.head = integers({4});
    b.groups.slot_pairs = integers({slots});
    b.groups.slot_tokens = integers({slots});
    b.groups.pair_slots = integers({pairs});
    if (s.bf16) {
        // Its rows, or both terms of them, which are padded: then in E4M3, with a scale for each.
        const i64 padded = (channels + kFp4PadK - 1) / kFp4PadK * kFp4PadK;
        b.t_terms = carver.take(Format::fp8_e4m3, {slots, 2, padded});
        b.t = b.t_terms;
        b.t.format = Format::bf16;
        b.t.rank = 2;
        b.t.shape[1] = b.t.strides[0] = channels;
        b.t.strides[1] = 1;
        b.term_scales = carver.take(Format::fp32, {slots});
    } else {
        b.x = carver.take(Format::fp8_e4m3, {x_rows, hidden});
        b.x_scale = carver.take(Format::fp32, {x_rows, blocks(hidden)});
        b.t = carver.take(Format::fp8_e4m3, {slots, channels});
        b.t_scale = carver.take(Format::fp32, {slots, blocks(channels)});
    }
    if (hidden > 2 * channels) {
        b.y = carver.take(Format::bf16, {slots, hidden});
        b.h = b.y;
        b.h.shape[1] = b.h.strides[0] = 2 * channels;
    } else {
        b.h = carver.take(Format::bf16, {slots, 2 * channels});
        b.y = b.h;
        b.y.shape[1] = b.y.strides[0] = hidden;
    }
    if (s.fp4) {
        const auto bytes = [&](u32 k) {
            return op::scratch_bytes({.groups = GroupMode::gathered,
                                      .a = s.bf16 ? Format::bf16 : Format::fp8_e4m3,
                                      .m = static_cast<u32>(slots),
                                      .k = k,
                                      .num_groups = s.experts},
                                     static_cast<u64>(slots));
        };
        b.arranged =
            carver.take(Format::int8, {static_cast<i64>(std::max(bytes(s.hidden), bytes(s.intermediate)))});
    }
    if (b.groups.offsets.present()) {
        b.num_slots = b.groups.offsets;
        b.num_slots.data = static_cast<i32*>(b.groups.offsets.data) + experts;
        b.num_slots.shape[0] = 1;
    }
    return b;
}

MoeShape check(op::TensorChecks& checks, const FusedMoeArguments& a) {
    checks.tensor("x", a.x, {Format::bf16, Format::fp32}, {-1, -1});
    const i64 tokens = a.x.shape[0], hidden = a.x.shape[1];
    DG_CHECK(hidden % 16 == 0, value,
             "fused_moe: x has {} columns, expected a multiple of 16; pad x and the weights with zeros",
             hidden);
    checks.tensor("topk_ids", a.topk_ids, {Format::int32}, {tokens, -1});
    const i64 top_k = a.topk_ids.shape[1];
    checks.tensor("topk_weights", a.topk_weights, {Format::fp32}, {tokens, top_k});
    checks.packed("topk_weights", a.topk_weights);
    i64 experts = 0, rows = 0;
    DG_CHECK(a.first_expert >= 0 && a.first_expert <= kMaxFirstExpert, value,
             "fused_moe: first_expert is {}, expected 0 to {}: the id of the first expert of w13 and w2",
             a.first_expert, kMaxFirstExpert);
    if (const auto* fp4 = std::get_if<MoeFp4Weights>(&a.weights)) {
        const op::Fp4Shape up = fp4->w13.shape, down = fp4->w2.shape;
        experts = up.experts;
        rows = up.n;
        DG_CHECK(up.k == hidden && down.experts == experts && down.n == hidden && down.k == rows / 2, value,
                 "fused_moe: w13 is [{}, {}, {}] and w2 [{}, {}, {}], expected [E, 2 I, {}] and [E, {}, I]; "
                 "pass the two of one layer, for x of its width",
                 up.experts, up.n, up.k, down.experts, down.n, down.k, hidden, hidden);
    } else {
        const auto& w = std::get<MoeFp8Weights>(a.weights);
        checks.tensor("w13", w.w13, {Format::fp8_e4m3}, {-1, -1, hidden});
        experts = w.w13.shape[0];
        rows = w.w13.shape[1];
        checks.tensor("w2", w.w2, {Format::fp8_e4m3}, {experts, hidden, rows / 2});
    }
    const i64 channels = rows / 2;
    DG_CHECK(rows % 32 == 0, value,
             "fused_moe: w13 has {} rows, expected gate and up rows of a multiple of 16 channels each; pad "
             "both, and the columns of w2, with zeros",
             rows);
    checks.rows("x", a.x, 16);
    checks.packed("topk_ids", a.topk_ids);
    DG_CHECK(
        top_k >= 1 && top_k <= kMaxTopK && experts >= 1 && experts <= kMaxExperts, value,
        "fused_moe: {} of {} experts for a token, expected 1 to {} of 1 to {}; split the experts over calls",
        top_k, experts, kMaxTopK, kMaxExperts);
    checks.tensor("out", a.out, {Format::bf16, Format::fp32}, {tokens, hidden});
    checks.rows("out", a.out, 16);
    if (a.shared.present()) {
        checks.tensor("shared", a.shared, {Format::bf16}, {tokens, hidden});
        checks.rows("shared", a.shared, 16);
    }
    const bool fp4 = std::holds_alternative<MoeFp4Weights>(a.weights);
    DG_CHECK(
        !a.bf16_activations || (fp4 && a.x.format == Format::bf16), value,
        "fused_moe: got bf16_activations with x of {} and {} weights, expected x of bf16 and FP4 weights; "
        "cast x, or leave it out",
        name_of(a.x.format), fp4 ? "FP4" : "FP8");
    DG_CHECK(
        !a.bf16_products || a.bf16_activations, value,
        "fused_moe: got bf16_products without bf16_activations, expected both: pass bf16_activations=True");
    DG_CHECK(
        !a.per_token || (fp4 && !a.bf16_activations), value,
        "fused_moe: got per_token with {}, expected FP4 weights and activations that become FP8: leave it out",
        fp4 ? "bf16_activations" : "FP8 weights");
    DG_CHECK(
        !a.swiglu_limit || *a.swiglu_limit > 0, value,
        "fused_moe: swiglu_limit is {}, expected a positive number, or none; leave it out where nothing is "
        "clamped",
        a.swiglu_limit.value_or(0));
    return {.tokens = static_cast<u32>(tokens),
            .top_k = static_cast<u32>(top_k),
            .experts = static_cast<u32>(experts),
            .hidden = static_cast<u32>(hidden),
            .intermediate = static_cast<u32>(channels),
            .fp4 = fp4,
            .bf16 = a.bf16_activations};
}

// ---- The kernel of a product, chosen without looking at the batch

// Rows an expert is taken to have. For FP8 weights one of two: the kernels for both give the same bits.
constexpr u32 kInvariantRows = 16, kInvariantManyRows = 256;

// The cheapest kernel whose sums over K are one chain of blocks of K in rising order.
plan::GemmPlan plan_in_order(const plan::GemmProblem& problem, const plan::DeviceModel& device) {
    std::vector<plan::GemmCandidate> considered;
    plan::GemmPlan best = plan::plan_gemm(problem, device, &considered);
    const auto serves = [](const plan::GemmCandidate& c) {
        return c.rejected == nullptr && c.spec.split_k == 1 && c.spec.k_warpgroups == 1;
    };
    const plan::GemmCandidate* cheapest = nullptr;
    for (const plan::GemmCandidate& one : considered)
        if (serves(one) && (!cheapest || one.cost.total_us < cheapest->cost.total_us)) cheapest = &one;
    DG_CHECK(cheapest, internal, "fused_moe: no kernel adds in order for {}", to_string(problem));
    best.spec = cheapest->spec;
    return best;
}

i64 mean_rows(const MoeShape& s) {
    return static_cast<i64>(ceil_div(u64{s.tokens} * s.top_k, u64{s.experts}));
}

// [rows, blocks] that see one scale for each row as it lies in memory.
TensorView one_for_each(TensorView scales) {
    scales.rank = 1;
    return scales;
}

struct Product {
    const char* name;  // what errors begin with
    TensorView rows, scales, d, source_rows, term_scales;
};
struct Launch {
    std::function<void()> run;
    bool takes_terms = false;  // two terms of bf16 activations, with the product's scales
};

Launch check_product(const FusedMoeArguments& a, const MoeShape& shape, const Buffers& b,
                     const Product& product, const TensorView& weights, const TensorView& weight_scales) {
    op::GemmCall call = op::check_gemm({.groups = GroupMode::psum,
                                        .a = product.rows,
                                        .scale_a = product.scales,
                                        .b = weights,
                                        .scale_b = weight_scales,
                                        .d = product.d,
                                        .group_layout = b.groups.ends,
                                        .expected_m = mean_rows(shape),
                                        .stream = a.stream,
                                        .function = product.name});
    if (a.invariant && !call.empty && !call.no_products) {
        plan::GemmProblem problem = call.problem;
        problem.m = problem.num_groups * kGroupAlignment;
        problem.expected_m = mean_rows(shape) > kInvariantRows ? kInvariantManyRows : kInvariantRows;
        call.spec = op::fixed_spec(call.device, problem, plan_in_order);
    }
    return {[call] { op::run(call); }};
}

Launch check_product(const FusedMoeArguments& a, const MoeShape& shape, const Buffers& b,
                     const Product& product, const op::Fp4WeightViews& weights) {
    op::Fp4GemmCall call = op::check_fp4_gemm({.groups = GroupMode::gathered,
                                               .a = product.rows,
                                               .scale_a = product.scales,
                                               .d = product.d,
                                               .group_layout = b.groups.entries,
                                               .list = b.groups.head,
                                               .a_rows = product.source_rows,
                                               .weights = weights,
                                               .expected_m = mean_rows(shape),
                                               .bf16_products = a.bf16_products,
                                               .stream = a.stream,
                                               .function = product.name});
    if (b.arranged.present()) call.scratch = op::address_of(b.arranged);
    if (a.invariant && !call.empty) {
        plan::Fp4Problem problem = call.problem;
        problem.m = problem.num_groups * kInvariantRows;
        problem.expected_m = kInvariantRows;
        call.spec = op::fixed_spec(call.device, problem,
                                   [](const auto& p, const auto& m) { return plan::plan_fp4_gemm(p, m); });
    }
    if (product.term_scales.present() && op::token_terms_of(call) == 2)
        call.term_scales = op::address_of(product.term_scales);
    const bool takes_terms = call.term_scales != 0;
    return {[call] { op::run(call); }, takes_terms};
}

}  // namespace

u64 moe_workspace_bytes(const MoeShape& shape) {
    Carver carver(nullptr, nullptr);
    carve(shape, carver);
    return carver.bytes();
}

void fused_moe(const FusedMoeArguments& a) {
    op::TensorChecks checks("fused_moe");
    const MoeShape shape = check(checks, a);
    const u64 needed = moe_workspace_bytes(shape);
    checks.tensor("workspace", a.workspace, {Format::int8}, {-1});
    checks.packed("workspace", a.workspace);
    DG_CHECK(
        static_cast<u64>(a.workspace.shape[0]) >= needed && op::address_of(a.workspace) % kAlignment == 0,
        value,
        "fused_moe: workspace has {} bytes at {:#x}, expected at least {} at a multiple of {}; "
        "deep_gemm.moe_workspace(...) makes one",
        a.workspace.shape[0], op::address_of(a.workspace), needed, kAlignment);
    if (shape.tokens == 0) return;
    op::check_moe_memory(a, needed);
    Carver carver(&checks.device(), static_cast<u8*>(a.workspace.data));
    Buffers b = carve(shape, carver);
    if (a.per_token)
        for (TensorView* scales : {&b.x_scale, &b.t_scale}) scales->strides[0] = 1, scales->strides[1] = 0;
    // Every check comes before the first launch.
    const Product gate_up{.name = "fused_moe: w13",
                          .rows = shape.bf16 ? a.x : b.x,
                          .scales = b.x_scale,
                          .d = b.h,
                          .source_rows = b.groups.slot_tokens,
                          .term_scales = {}};
    const Product down{.name = "fused_moe: w2",
                       .rows = b.t,
                       .scales = b.t_scale,
                       .d = b.y,
                       .source_rows = {},
                       .term_scales = b.term_scales};
    Launch up_launch, down_launch;
    if (const auto* fp4 = std::get_if<MoeFp4Weights>(&a.weights)) {
        up_launch = check_product(a, shape, b, gate_up, fp4->w13);
        down_launch = check_product(a, shape, b, down, fp4->w2);
    } else {
        const auto& w = std::get<MoeFp8Weights>(a.weights);
        up_launch = check_product(a, shape, b, gate_up, w.w13, w.w13_scale);
        down_launch = check_product(a, shape, b, down, w.w2, w.w2_scale);
    }

    const i64 pairs = i64{shape.tokens} * shape.top_k;
    if (a.invariant && !shape.bf16 && !a.per_token &&
        !a.grouped.value_or(pairs > op::few_pairs_of(a.weights)) &&
        op::serves_few(checks.device(), a.weights, shape.top_k)) {
        const op::MoeFewArguments few{.x = a.x,
                                      .x_scale = {},
                                      .topk_ids = a.topk_ids,
                                      .topk_weights = a.topk_weights,
                                      .weights = a.weights,
                                      .mid = b.h,
                                      .shared = a.shared,
                                      .out = a.out,
                                      .first_expert = static_cast<u32>(a.first_expert),
                                      .swiglu_limit = a.swiglu_limit,
                                      .weight_before_down = a.weight_before_down,
                                      .stream = a.stream};
        op::moe_few_up(few);
        return op::moe_few_down(few);
    }
    moe_group({.topk_ids = a.topk_ids,
               .groups = b.groups,
               .first_expert = static_cast<u32>(a.first_expert),
               .alignment = alignment_of(shape),
               .stream = a.stream});
    if (!shape.bf16)
        quantize({.recipe = a.per_token ? Recipe::fp8_row : Recipe::fp8_128,
                  .x = a.x,
                  .codes = b.x,
                  .scales = a.per_token ? one_for_each(b.x_scale) : b.x_scale,
                  .source_rows = shape.fp4 ? TensorView{} : b.groups.slot_tokens,
                  .num_rows = shape.fp4 ? TensorView{} : b.num_slots,
                  .stream = a.stream});
    up_launch.run();
    TensorView by_pair = a.topk_weights;
    by_pair.rank = 1;
    by_pair.shape[0] = pairs;
    by_pair.strides[0] = 1;
    moe_swiglu({.h = b.h,
                .codes = down_launch.takes_terms ? b.t_terms : b.t,
                .scales = down_launch.takes_terms ? b.term_scales
                          : a.per_token           ? one_for_each(b.t_scale)
                                                  : b.t_scale,
                .slot_pairs = b.groups.slot_pairs,
                .num_slots = b.num_slots,
                .weights = a.weight_before_down ? by_pair : TensorView{},
                .limit = a.swiglu_limit,
                .stream = a.stream});
    down_launch.run();
    TensorView pair_slots = b.groups.pair_slots;
    pair_slots.rank = 2;
    pair_slots.shape[0] = shape.tokens;
    pair_slots.shape[1] = pair_slots.strides[0] = shape.top_k;
    pair_slots.strides[1] = 1;
    moe_combine({.y = b.y,
                 .pair_slots = pair_slots,
                 .weights = a.weight_before_down ? TensorView{} : a.topk_weights,
                 .shared = a.shared,
                 .d = a.out,
                 .stream = a.stream});
}

}  // namespace deep_gemm
