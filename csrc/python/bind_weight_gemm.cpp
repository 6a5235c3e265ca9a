// The large-batch form of linear() for Python: its spec as an object, its source, its plans.
#include "op/weight_gemm.h"
#include "python/casters.h"
#include "python/checked.h"
#include "python/plan_device.h"
#include "python/quant_names.h"

#include <optional>

namespace deep_gemm::python {

namespace {

void set_field(const char*, Quant& field, const py::handle& value) {
    field = quant_of(py::str(value));
}
void set_field(const char*, Activation& field, const py::handle& value) {
    field = activation_of(py::str(value));
}
void set_field(const char*, GemvEpilogue& field, const py::handle& value) {
    const std::string name = py::str(value);
    DG_CHECK(name == "none" || name == "swiglu", value,
             "WeightGemmSpec: epilogue is '{}', expected none or swiglu; pass one of them", name);
    field = name == "none" ? GemvEpilogue::none : GemvEpilogue::swiglu;
}
void set_field(const char*, Format& field, const py::handle& value) {
    field = format_of(py::str(value));
}
template <typename Number>
void set_field(const char* name, Number& field, const py::handle& value) {
    field = number_of<Number>(fmt::format("WeightGemmSpec: {}", name), value);
}

WeightGemmSpec with_fields(WeightGemmSpec spec, const py::kwargs& fields) {
    size_t used = 0;
    visit_fields(
        [&](const char* name, auto& field) {
            if (!fields.contains(name)) return;
            set_field(name, field, fields[name]);
            ++used;
        },
        spec);
    DG_CHECK(used == fields.size(), type,
             "WeightGemmSpec: got {}, expected the fields of spec/weight_gemm.h; correct the name",
             py::repr(fields).cast<std::string>());
    return spec;
}

void bind_spec(py::module_& module) {
    py::class_<WeightGemmSpec> type(module, "WeightGemmSpec",
                                    "What a large-batch weight-only kernel is. WeightGemmSpec(w='mxfp4', "
                                    "block_m=64, ...) sets fields by name; see spec/weight_gemm.h.");
    type.def(py::init([](const py::kwargs& fields) { return with_fields({}, fields); }));
    type.def("replace", &with_fields, "A copy with some fields changed.");
    type.def_property_readonly(
        "why_illegal",
        [](const WeightGemmSpec& spec) -> std::optional<std::string> {
            const char* reason = why_illegal(spec);
            return reason ? std::optional<std::string>(reason) : std::nullopt;
        },
        "None, or the sentence that rejects it.");
    type.def_property_readonly(
        "smem_bytes", [](const WeightGemmSpec& spec) { return plan_smem(spec).bytes; },
        "Shared memory of a block.");
    type.def_property_readonly(
        "threads", [](const WeightGemmSpec& spec) { return threads_of(spec); }, "Threads of a block.");
    type.def_property_readonly(
        "w", [](const WeightGemmSpec& spec) { return name_of(spec.w); }, "The format of the weights.");
    type.def_property_readonly(
        "block_m", [](const WeightGemmSpec& spec) { return spec.block_m; }, "Tokens of a block.");
    type.def("__repr__", [](const WeightGemmSpec& spec) {
        return fmt::format("<WeightGemmSpec {} {}>", name_of(spec.w), plan::to_string(spec));
    });
}

}  // namespace

void bind_weight_gemm(py::module_& module) {
    bind_spec(module);
    module.def(
        "weight_gemm_source", [](const WeightGemmSpec& spec) { return op::source_of(spec); }, py::arg("spec"),
        "The source of a WeightGemmSpec's kernel.");
    module.def(
        "plan_weight_gemm",
        [](const std::string& w, u32 m, u32 n, u32 k, const std::string& y, const std::string& x,
           const py::object& device) {
            const Quant quant = quant_of(w);
            const bool whole = row_of(quant).element_bits == 16 || k % weight_stage_k_of(quant) == 0;
            return plan::plan_weight_gemm({.w = quant,
                                           .x = activation_of(x),
                                           .y = format_of(y),
                                           .m = m,
                                           .n = n,
                                           .k = k,
                                           .whole_scales = whole},
                                          model_of(device))
                .spec;
        },
        py::arg("w"), py::arg("m"), py::arg("n"), py::arg("k"), py::arg("y") = "bf16", py::arg("x") = "bf16",
        py::arg("device") = py::none(), "The large-batch kernel that a plan chooses.");
    module.def(
        "explain_linear",
        [](const ProblemText& problem, const py::object& device, const Checked<u32, CandidateRows>& rows) {
            return plan::explain_linear(problem.value, model_of(device, plan::linear_device_model),
                                        rows.value);
        },
        py::arg("problem"), py::arg("device") = py::none(), py::arg("rows") = 12,
        "Which form serves 'linear w=mxfp4 m=512 n=14336 k=4096', with costs or the reason.");
}

}  // namespace deep_gemm::python
