#include "op/fused_moe.h"

#include "base/error.h"
#include "base/process_local.h"
#include "op/gemm.h"
#include "op/quantize.h"
#include "op/tensor_check.h"

#include <deque>
#include <mutex>

namespace deep_gemm {

namespace {

constexpr u64 kAlignment = 128;  // of every buffer

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
    TensorView num_slots;   // the last of offsets
    TensorView x, x_scale;  // [slots, hidden]
    TensorView h;           // [slots, 2 * intermediate]
    TensorView t, t_scale;  // [slots, intermediate]
    TensorView y;           // [slots, hidden], in the place of h
};

Buffers carve(const MoeShape& s, Carver& carver) {
    const i64 experts = s.experts, pairs = i64{s.tokens} * s.top_k, hidden = s.hidden,
              channels = s.intermediate;
    const i64 slots = static_cast<i64>(moe_slots(static_cast<u64>(pairs), s.experts, kGroupAlignment));
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
    b.x = carver.take(Format::fp8_e4m3, {slots, hidden});
    b.x_scale = carver.take(Format::fp32, {slots, blocks(hidden)});
    b.t = carver.take(Format::fp8_e4m3, {slots, channels});
    b.t_scale = carver.take(Format::fp32, {slots, blocks(channels)});
    if (hidden > 2 * channels) {
        b.y = carver.take(Format::bf16, {slots, hidden});
        b.h = b.y;
        b.h.shape[1] = b.h.strides[0] = 2 * channels;
    } else {
        b.h = carver.take(Format::bf16, {slots, 2 * channels});
        b.y = b.h;
        b.y.shape[1] = b.y.strides[0] = hidden;
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
    DG_CHECK(hidden % 16 == 0, value, "fused_moe: x has {} columns, expected a multiple of 16", hidden);
    checks.tensor("topk_ids", a.topk_ids, {Format::int32}, {tokens, -1});
    const i64 top_k = a.topk_ids.shape[1];
    checks.tensor("topk_weights", a.topk_weights, {Format::fp32}, {tokens, top_k});
    checks.packed("topk_weights", a.topk_weights);
    const MoeFp8Weights& w = a.weights;
    checks.tensor("w13", w.w13, {Format::fp8_e4m3}, {-1, -1, hidden});
    const i64 experts = w.w13.shape[0], channels = w.w13.shape[1] / 2;
    DG_CHECK(w.w13.shape[1] % 32 == 0, value,
             "fused_moe: w13 has shape {}, expected gate and up rows of a multiple of 16 channels each",
             op::shape_text(w.w13));
    checks.tensor("w2", w.w2, {Format::fp8_e4m3}, {experts, hidden, channels});
    checks.rows("x", a.x, 16);
    checks.packed("topk_ids", a.topk_ids);
    DG_CHECK(top_k >= 1 && top_k <= kMaxTopK && experts >= 1 && experts <= kMaxExperts, value,
             "fused_moe: {} of {} experts for a token, expected 1 to {} of 1 to {}", top_k, experts, kMaxTopK,
             kMaxExperts);
    checks.tensor("out", a.out, {Format::bf16, Format::fp32}, {tokens, hidden});
    checks.rows("out", a.out, 16);
    if (a.shared.present()) {
        checks.tensor("shared", a.shared, {Format::bf16}, {tokens, hidden});
        checks.rows("shared", a.shared, 16);
    }
    DG_CHECK(!a.swiglu_limit || *a.swiglu_limit > 0, value,
             "fused_moe: swiglu_limit is {}, expected a positive number, or none",
             a.swiglu_limit.value_or(0));
    return {.tokens = static_cast<u32>(tokens),
            .top_k = static_cast<u32>(top_k),
            .experts = static_cast<u32>(experts),
            .hidden = static_cast<u32>(hidden),
            .intermediate = static_cast<u32>(channels)};
}

// ---- The kernel of a product, chosen without looking at the batch

constexpr u32 kInvariantRows = 16;  // rows an expert is taken to have

struct FixedSpec {
    Device* device;
    plan::GemmProblem problem;
    GemmSpec spec;
};
struct FixedSpecs {
    std::mutex mutex;
    std::deque<FixedSpec> all;  // grows only
};

const GemmSpec* fixed_spec(const op::GemmCall& call) {
    plan::GemmProblem problem = call.problem;
    problem.m = problem.num_groups * kGroupAlignment;
    problem.expected_m = kInvariantRows;
    problem.d_tma = true;
    auto& known = process_local<FixedSpecs>();
    const std::lock_guard lock(known.mutex);
    for (const FixedSpec& one : known.all)
        if (one.device == call.device && one.problem == problem) return &one.spec;
    const driver::DeviceProperties& properties = call.device->properties();
    const plan::GemmPlan plan =
        plan::plan_gemm(problem, plan::device_model(properties.arch, properties.num_sms));
    return &known.all.emplace_back(call.device, problem, plan.spec).spec;
}

op::GemmCall check_product(const FusedMoeArguments& a, const MoeShape& shape, const Buffers& b,
                           const TensorView& rows, const TensorView& scales, const TensorView& weights,
                           const TensorView& weight_scales, const TensorView& d) {
    const GemmArguments gemm{
        .groups = GroupMode::psum,
        .a = rows,
        .scale_a = scales,
        .b = weights,
        .scale_b = weight_scales,
        .d = d,
        .group_layout = b.groups.ends,
        .expected_m = static_cast<i64>(ceil_div(u64{shape.tokens} * shape.top_k, u64{shape.experts})),
        .stream = a.stream};
    op::GemmCall call = op::check_gemm(gemm);
    if (a.invariant && !call.empty && !call.no_products) call.spec = fixed_spec(call);
    return call;
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
        "moe_workspace_bytes() says how many",
        a.workspace.shape[0], op::address_of(a.workspace), needed, kAlignment);
    if (shape.tokens == 0) return;
    Carver carver(&checks.device(), static_cast<u8*>(a.workspace.data));
    const Buffers b = carve(shape, carver);
    const MoeFp8Weights& w = a.weights;
    // Every check comes before the first launch.
    const op::GemmCall up = check_product(a, shape, b, b.x, b.x_scale, w.w13, w.w13_scale, b.h);
    const op::GemmCall down = check_product(a, shape, b, b.t, b.t_scale, w.w2, w.w2_scale, b.y);

    moe_group({.topk_ids = a.topk_ids,
               .groups = b.groups,
               .first_expert = a.first_expert,
               .alignment = kGroupAlignment,
               .stream = a.stream});
    quantize({.x = a.x,
              .codes = b.x,
              .scales = b.x_scale,
              .source_rows = b.groups.slot_tokens,
              .num_rows = b.num_slots,
              .stream = a.stream});
    op::run(up);
    TensorView by_pair = a.topk_weights;
    by_pair.rank = 1;
    by_pair.shape[0] = i64{shape.tokens} * shape.top_k;
    by_pair.strides[0] = 1;
    moe_swiglu({.h = b.h,
                .codes = b.t,
                .scales = b.t_scale,
                .slot_pairs = b.groups.slot_pairs,
                .num_slots = b.num_slots,
                .weights = a.weight_before_down ? by_pair : TensorView{},
                .limit = a.swiglu_limit,
                .stream = a.stream});
    op::run(down);
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
