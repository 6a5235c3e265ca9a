// The large-batch form of linear() for Python: its spec as an object, its source, its plans.
#include "op/weight_gemm.h"
#include "python/checked.h"
#include "python/plan_device.h"
#include "python/quant_names.h"
#include "python/spec_class.h"

namespace deep_gemm::python {

void bind_weight_gemm(py::module_& module) {
    const SpecFields<WeightGemmSpec, Quant, Activation, Format, GemvEpilogue> fields{
        .name = "WeightGemmSpec",
        .known = {first_of<Quant>(kNumQuants),
                  first_of<Activation>(static_cast<u32>(Activation::q8) + 1),
                  {Format::bf16, Format::fp16, Format::fp32},
                  {GemvEpilogue::none, GemvEpilogue::swiglu}}};
    bind_spec(module, "a large-batch weight-only kernel", "spec/weight_gemm.h", fields);
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
