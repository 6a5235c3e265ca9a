#include "runtime/packed_experts.h"

#include <algorithm>
#include <numeric>

namespace deep_gemm::runtime {

bool can_pack_experts(const Device& device, i64 experts, i64 hidden, i64 width, i64 top_k) {
    constexpr i64 kColumns = 128;
    return device.properties().arch == "90a" && experts <= kMaxExperts && top_k <= kMaxTopK &&
           hidden % kColumns == 0 && width % kColumns == 0;
}

ExpertsSpace::ExpertsSpace(Device& device, const PackedExperts& w, i64 rows, i64 top_k) {
    const i64 experts = w.w13.shape.experts, width = w.w2.shape.k, hidden = w.w2.shape.n,
              pairs = rows * top_k;
    const i64 slots = static_cast<i64>(moe_slots(static_cast<u64>(pairs), w.w13.shape.experts, 1));
    const auto ints = [&](std::vector<i64> shape) {
        return DeviceTensor(device, Format::int32, std::move(shape));
    };
    offsets = ints({experts + 1}), ends = ints({experts}), entries = ints({experts, 4}), head = ints({4});
    slot_pairs = ints({slots}), slot_tokens = ints({slots}), pair_slots = ints({pairs});
    up = {device, Format::bf16, {slots, 2 * width}};
    codes = {device, Format::fp8_e4m3, {slots, width}};
    scales = {device, Format::fp32, {slots, width / 128}};
    down = {device, Format::bf16, {slots, hidden}};
}

SharedSpace::SharedSpace(Device& device, i64 rows, i64 width)
    : up(device, Format::bf16, {rows, 2 * width}),
      codes(device, Format::fp8_e4m3, {rows, width}),
      scales(device, Format::fp32, {rows, width / 128}),
      slots(device, Format::int32, {rows}),
      counts(device, Format::int32, {rows + 1}) {
    std::vector<i32> values(static_cast<size_t>(rows) + 1);
    std::iota(values.begin(), values.end(), 0);
    const auto bytes = std::as_bytes(std::span(values));
    device.copy_to_device(slots.address(), bytes.first(slots.bytes()), nullptr);
    device.copy_to_device(counts.address(), bytes, nullptr);
    device.synchronize(nullptr);
}

void shared_expert_up(const SharedExpertCall& c, const Projection& beside, const TensorView& x) {
    const i64 t = c.y.shape[0], width = c.space.codes.extent(1);
    const auto half = [&](i64 first) {
        TensorView view = c.space.up.rows(0, t);
        view.data = static_cast<u8*>(view.data) + static_cast<u64>(first) * bytes_of(view.format);
        view.shape[1] = width;
        return view;
    };
    project_many({beside, {&c.w.w1, half(0)}, {&c.w.w3, half(width)}}, x, c.low, c.stream);
}

MoeSwigluArguments shared_activation(const SharedExpertCall& c) {
    const SharedSpace& s = c.space;
    const i64 t = c.y.shape[0];
    return {.h = s.up.rows(0, t),
            .codes = s.codes.rows(0, t),
            .scales = s.scales.rows(0, t),
            .slot_pairs = s.slots.rows(0, t),
            .num_slots = s.counts.rows(t, 1),
            .limit = c.limit > 0 ? std::optional<float>(c.limit) : std::nullopt,
            .rule = c.rule,
            .stream = c.stream};
}
op::ProjectArguments shared_expert_down(const SharedExpertCall& c) {
    const i64 t = c.y.shape[0];
    return {.x = c.space.codes.rows(0, t),
            .x_scale = c.space.scales.rows(0, t),
            .w = c.w.w2.data.view(),
            .w_scale = c.w.w2.scale.view(),
            .y = c.y,
            .add = {},
            .stream = c.stream};
}

bool are_few(const PackedExpertsCall& c) {
    const i64 pairs = c.chosen.shape[0] * c.chosen.shape[1];
    return pairs <= op::kFewFp4Pairs && op::serves_few(*c.y.device, few_of(c).weights, c.chosen.shape[1]);
}

op::MoeFewArguments few_of(const PackedExpertsCall& c) {
    return {.x = c.low.x,
            .x_scale = c.low.scale,
            .topk_ids = c.chosen,
            .topk_weights = c.weights,
            .weights = MoeFp4Weights{.w13 = c.w.w13.views(), .w2 = c.w.w2.views()},
            .mid = c.space.up.view(),
            .shared = c.add,
            .out = c.y,
            .swiglu_limit = c.limit > 0 ? std::optional<float>(c.limit) : std::nullopt,
            .weight_before_down = c.weigh == WeighExperts::before_down,
            .rule = c.rule,
            .stream = c.stream};
}

MoeGroupArguments grouping_of(const PackedExpertsCall& c) {
    const ExpertsSpace& s = c.space;
    const i64 pairs = c.chosen.shape[0] * c.chosen.shape[1];
    const auto slots = static_cast<i64>(moe_slots(static_cast<u64>(pairs), c.w.w13.shape.experts, 1));
    const MoeGroups groups{.offsets = s.offsets.view(),
                           .ends = s.ends.view(),
                           .entries = s.entries.view(),
                           .head = s.head.view(),
                           .slot_pairs = s.slot_pairs.rows(0, slots),
                           .slot_tokens = s.slot_tokens.rows(0, slots),
                           .pair_slots = s.pair_slots.rows(0, pairs)};
    return {.topk_ids = c.chosen, .groups = groups, .stream = c.stream};
}

void run_packed_experts(const PackedExpertsCall& c) {
    const ExpertsSpace& s = c.space;
    const i64 t = c.chosen.shape[0], top_k = c.chosen.shape[1], pairs = t * top_k;
    if (t == 0) return;
    const i64 experts = c.w.w13.shape.experts;
    const MoeGroups groups = grouping_of(c).groups;
    const i64 slots = groups.slot_pairs.shape[0];
    const bool before = c.weigh == WeighExperts::before_down;
    const i64 mean_rows = (pairs + experts - 1) / experts;
    const auto product = [&](const PackedMatrix& w, const Input& x, const TensorView& rows,
                             const TensorView& d) {
        op::run(op::check_fp4_gemm({.groups = GroupMode::gathered,
                                    .a = x.x,
                                    .scale_a = x.scale,
                                    .d = d,
                                    .group_layout = groups.entries,
                                    .list = groups.head,
                                    .a_rows = rows,
                                    .weights = w.views(),
                                    .expected_m = mean_rows,
                                    .stream = c.stream}));
    };
    const TensorView up = s.up.rows(0, slots), codes = s.codes.rows(0, slots),
                     scales = s.scales.rows(0, slots), down = s.down.rows(0, slots);
    product(c.w.w13, c.low, groups.slot_tokens, up);
    TensorView by_pair = c.weights;
    by_pair.rank = 1;
    by_pair.shape[0] = pairs, by_pair.strides[0] = 1;
    moe_swiglu({.h = up,
                .codes = codes,
                .scales = scales,
                .slot_pairs = groups.slot_pairs,
                .num_slots = s.offsets.rows(experts, 1),
                .weights = before ? by_pair : TensorView{},
                .limit = c.limit > 0 ? std::optional<float>(c.limit) : std::nullopt,
                .rule = c.rule,
                .stream = c.stream});
    product(c.w.w2, {codes, scales}, {}, down);
    moe_combine({.y = down,
                 .pair_slots = s.pair_slots.as({t, top_k}),
                 .weights = before ? TensorView{} : c.weights,
                 .shared = c.add,
                 .d = c.y,
                 .stream = c.stream});
}

}  // namespace deep_gemm::runtime
