// The steps of a mixture of experts for Python.
#include "op/fused_moe.h"
#include "op/moe.h"
#include "python/casters.h"
#include "python/fp4_weights.h"
#include "python/tensor.h"

#include <optional>

namespace deep_gemm::python {

namespace {

using Tensor = const py::object&;

TensorView optional(TensorReader& reader, Tensor tensor, const char* name, bool writable = false) {
    return tensor.is_none() ? TensorView{} : reader.read(tensor.ptr(), name, writable);
}

void run_group(Tensor topk_ids, Tensor offsets, Tensor ends, Tensor entries, Tensor head, Tensor slot_pairs,
               Tensor slot_tokens, Tensor pair_slots, u32 first_expert, u32 alignment, Tensor device,
               const StreamArgument& stream) {
    TensorReader reader(device.ptr());
    MoeGroupArguments a{.topk_ids = reader.read(topk_ids.ptr(), "topk_ids", false, "int32"),
                        .groups = {.offsets = reader.read(offsets.ptr(), "offsets", true),
                                   .ends = reader.read(ends.ptr(), "ends", true),
                                   .entries = reader.read(entries.ptr(), "entries", true),
                                   .head = reader.read(head.ptr(), "head", true),
                                   .slot_pairs = reader.read(slot_pairs.ptr(), "slot_pairs", true),
                                   .slot_tokens = reader.read(slot_tokens.ptr(), "slot_tokens", true),
                                   .pair_slots = reader.read(pair_slots.ptr(), "pair_slots", true)},
                        .first_expert = first_expert,
                        .alignment = alignment};
    a.stream = reader.stream(stream);
    const py::gil_scoped_release no_gil;
    moe_group(a);
}

void run_swiglu(Tensor h, Tensor codes, Tensor scales, Tensor slot_pairs, Tensor num_slots, Tensor weights,
                std::optional<float> limit, const std::string& scale_rule, Tensor device,
                const StreamArgument& stream) {
    TensorReader reader(device.ptr());
    MoeSwigluArguments a{.h = reader.read(h.ptr(), "h"),
                         .codes = reader.read(codes.ptr(), "codes", true),
                         .scales = optional(reader, scales, "scales", true),
                         .slot_pairs = reader.read(slot_pairs.ptr(), "slot_pairs"),
                         .num_slots = reader.read(num_slots.ptr(), "num_slots"),
                         .weights = optional(reader, weights, "weights"),
                         .limit = limit,
                         .rule = scale_rule_of(scale_rule)};
    a.stream = reader.stream(stream);
    const py::gil_scoped_release no_gil;
    moe_swiglu(a);
}

void run_combine(Tensor y, Tensor pair_slots, Tensor d, Tensor weights, Tensor shared, Tensor device,
                 const StreamArgument& stream) {
    TensorReader reader(device.ptr());
    MoeCombineArguments a{.y = reader.read(y.ptr(), "y"),
                          .pair_slots = reader.read(pair_slots.ptr(), "pair_slots"),
                          .weights = optional(reader, weights, "weights"),
                          .shared = optional(reader, shared, "shared"),
                          .d = reader.read(d.ptr(), "d", true)};
    a.stream = reader.stream(stream);
    const py::gil_scoped_release no_gil;
    moe_combine(a);
}

op::Fp4WeightViews read_fp4(TensorReader& reader, const Fp4Weights& w) {
    return {.blobs = reader.read(w.blobs.ptr(), "blobs of the weights"),
            .row_scales = reader.read(w.row_scales.ptr(), "row scales of the weights"),
            .runs = optional(reader, w.runs, "runs of the weights"),
            .shape = w.shape,
            .form = w.form};
}

// Both Fp4Weights, or both (fp8 tensor, scales).
std::variant<MoeFp8Weights, MoeFp4Weights> read_weights(TensorReader& reader, Tensor w13, Tensor w2) {
    if (py::isinstance<Fp4Weights>(w13) && py::isinstance<Fp4Weights>(w2))
        return MoeFp4Weights{read_fp4(reader, *w13.cast<const Fp4Weights*>()),
                             read_fp4(reader, *w2.cast<const Fp4Weights*>())};
    const auto is_pair = [](Tensor w) { return py::isinstance<py::tuple>(w) && py::len(w) == 2; };
    DG_CHECK(
        is_pair(w13) && is_pair(w2), type,
        "fused_moe: w13 is a {} and w2 a {}, expected (fp8 tensor, fp32 scales) or Fp4Weights, both alike; "
        "pass both as one of them",
        Py_TYPE(w13.ptr())->tp_name, Py_TYPE(w2.ptr())->tp_name);
    const py::tuple up(w13), down(w2);
    return MoeFp8Weights{.w13 = reader.read(up[0].ptr(), "w13"),
                         .w13_scale = reader.read(up[1].ptr(), "scales of w13"),
                         .w2 = reader.read(down[0].ptr(), "w2"),
                         .w2_scale = reader.read(down[1].ptr(), "scales of w2")};
}

void run_fused(Tensor x, Tensor topk_ids, Tensor topk_weights, Tensor w13, Tensor w2, Tensor out,
               Tensor workspace, Tensor shared, std::optional<float> swiglu_limit, i64 first_expert,
               bool weight_before_down, bool invariant, bool bf16_activations, std::optional<bool> grouped,
               bool bf16_products, bool per_token, Tensor device, const StreamArgument& stream) {
    TensorReader reader(device.ptr());
    FusedMoeArguments a;
    a.x = reader.read(x.ptr(), "x");
    a.topk_ids = reader.read(topk_ids.ptr(), "topk_ids", false, "int32");
    a.topk_weights = reader.read(topk_weights.ptr(), "topk_weights", false, "fp32");
    a.weights = read_weights(reader, w13, w2);
    a.out = reader.read(out.ptr(), "out", true);
    a.workspace = reader.read_bytes(workspace.ptr(), "workspace", true);
    a.shared = optional(reader, shared, "shared");
    a.swiglu_limit = swiglu_limit;
    a.first_expert = first_expert;
    a.weight_before_down = weight_before_down;
    a.invariant = invariant;
    a.bf16_activations = bf16_activations;
    a.grouped = grouped;
    a.bf16_products = bf16_products;
    a.per_token = per_token;
    a.stream = reader.stream(stream);
    const py::gil_scoped_release no_gil;
    fused_moe(a);
}

}  // namespace

void bind_moe(py::module_& module) {
    const auto none = py::none();
    module.def("moe_slots", &moe_slots, py::arg("pairs"), py::arg("experts"), py::arg("alignment"),
               "Slots that this many (token, expert) pairs can take, gaps included.");
    module.def(
        "moe_group", &run_group, py::arg("topk_ids"), py::arg("offsets"), py::arg("ends"), py::arg("entries"),
        py::arg("head"), py::arg("slot_pairs"), py::arg("slot_tokens"), py::arg("pair_slots"),
        py::arg("first_expert") = 0, py::arg("alignment") = 1, py::kw_only(), py::arg("device") = none,
        py::arg("stream") = none,
        "Sorts (token, expert) pairs by expert; topk_ids int32 [T, top_k], -1 for none. All int32: offsets "
        "[experts + 1], ends [experts], entries [experts, 4], head [4], slot_pairs and slot_tokens "
        "[moe_slots(...)], pair_slots [T * top_k].");
    module.def(
        "moe_swiglu", &run_swiglu, py::arg("h"), py::arg("codes"), py::arg("scales"), py::arg("slot_pairs"),
        py::arg("num_slots"), py::arg("weights") = none, py::arg("limit") = none,
        py::arg("scale_rule") = "exact", py::kw_only(), py::arg("device") = none, py::arg("stream") = none,
        "codes, scales = fp8(bf16(silu(gate) * up * weight)) of h [slots, 2 n] (gate, then up), a scale for "
        "128 channels or, scales of [slots], for each slot; or bf16 codes and scales None; "
        "gate at most `limit`, up within +-limit; weights [T * top_k] by pair, or None.");
    module.def(
        "moe_combine", &run_combine, py::arg("y"), py::arg("pair_slots"), py::arg("d"),
        py::arg("weights") = none, py::arg("shared") = none, py::kw_only(), py::arg("device") = none,
        py::arg("stream") = none,
        "d [T, n] = sum over j, in order, of weights[t, j] * y[pair_slots[t, j]], plus shared [T, n].");
    module.def(
        "moe_workspace_bytes",
        [](u32 tokens, u32 top_k, u32 experts, u32 hidden, u32 intermediate, bool fp4, bool bf16) {
            return moe_workspace_bytes({tokens, top_k, experts, hidden, intermediate, fp4, bf16});
        },
        py::arg("tokens"), py::arg("top_k"), py::arg("experts"), py::arg("hidden"), py::arg("intermediate"),
        py::arg("fp4") = false, py::arg("bf16_activations") = false,
        "Bytes of workspace that fused_moe needs; a batch of fewer tokens needs no more.");
    module.def(
        "fused_moe_into", &run_fused, py::arg("x"), py::arg("topk_ids"), py::arg("topk_weights"),
        py::arg("w13"), py::arg("w2"), py::arg("out"), py::arg("workspace"), py::arg("shared") = none,
        py::arg("swiglu_limit") = none, py::arg("first_expert") = 0, py::arg("weight_before_down") = true,
        py::arg("invariant") = false, py::arg("bf16_activations") = false, py::arg("grouped") = none,
        py::arg("bf16_products") = false, py::arg("per_token") = false, py::kw_only(),
        py::arg("device") = none, py::arg("stream") = none,
        "What deep_gemm.fused_moe calls, with every tensor given. `grouped` forces one of the forms of "
        "`invariant`, which have the same bits: csrc/op/fused_moe.h.");
}

}  // namespace deep_gemm::python
