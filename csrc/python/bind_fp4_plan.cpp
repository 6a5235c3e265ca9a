// What an FP8 x FP4 kernel is and why it was chosen, as Python sees it: spec, plan and explanation.
#include "op/fp4_gemm.h"
#include "python/checked.h"
#include "python/errors.h"
#include "python/plan_device.h"
#include "python/spec_class.h"

#include <optional>

namespace deep_gemm::python {

namespace {

py::list candidates_of(const plan::Fp4Problem& problem, const plan::DeviceModel& device) {
    std::vector<plan::Fp4Candidate> considered;
    (void)plan::plan_fp4_gemm(problem, device, &considered);
    py::list result;
    for (const plan::Fp4Candidate& candidate : considered) {
        Dict row;
        row["spec"] = py::cast(candidate.spec);
        row["rejected"] = py::cast(candidate.rejected);
        row["us"] = py::cast(candidate.cost.total_us);
        result.append(row);
    }
    return result;
}

}  // namespace

void bind_fp4_plan(py::module_& module) {
    const SpecFields<Fp4GemmSpec, Fp4Form, Format, GroupMode> fields{
        .name = "Fp4GemmSpec",
        .known = {{Fp4Form::mx_e4m3, Fp4Form::mx_e5m2, Fp4Form::nv_single, Fp4Form::nv_exact},
                  {Format::bf16, Format::fp32, Format::fp8_e4m3},
                  {GroupMode::dense, GroupMode::contiguous, GroupMode::psum, GroupMode::masked,
                   GroupMode::gathered}}};
    bind_spec(module, "an FP8 x FP4 kernel", "spec/fp4_gemm.h", fields)
        .def_property_readonly(
            "register_limit", [](const Fp4GemmSpec& spec) { return registers_of(spec); },
            "Registers a thread may take for its CTAs to fit an SM.");
    module.def("fp4_kernel_source", &op::fp4_kernel_source, py::arg("spec"),
               "The source of an Fp4GemmSpec's kernel.");
    module.def(
        "plan_fp4",
        [](const ProblemText& problem, const py::object& device) {
            const plan::Fp4Plan plan =
                plan::plan_fp4_gemm(plan::parse_fp4_problem(problem.value), model_of(device));
            Dict result;
            result["problem"] = py::cast(plan::to_string(plan::parse_fp4_problem(problem.value)));
            result["spec"] = py::cast(plan.spec);
            result["grid_blocks"] = py::cast(plan.grid_blocks);
            result["us"] = py::cast(plan.cost.total_us);
            return result;
        },
        py::arg("problem"), py::arg("device") = py::none(),
        "The plan of 'fp4_gemm gathered groups=256 m=384 n=4096 k=4096': spec, grid_blocks, expected us.");
    module.def(
        "explain_fp4",
        [](const ProblemText& problem, const py::object& device, const Checked<u32, CandidateRows>& rows) {
            return plan::explain(plan::parse_fp4_problem(problem.value), model_of(device), rows.value);
        },
        py::arg("problem"), py::arg("device") = py::none(), py::arg("rows") = 12,
        "The candidates of an FP4 problem with their costs, best first.");
    module.def(
        "fp4_candidates",
        [](const ProblemText& problem, const py::object& device) {
            return candidates_of(plan::parse_fp4_problem(problem.value), model_of(device));
        },
        py::arg("problem"), py::arg("device") = py::none(),
        "Every spec that was considered for the problem: spec, rejected (None, or why), expected us.");
    module.def(
        "last_fp4_plan",
        []() -> std::optional<Dict> {
            const op::Fp4Launched* launched = op::last_fp4_launch();
            if (launched == nullptr) return std::nullopt;
            Dict result;
            result["problem"] = py::cast(plan::to_string(launched->problem));
            result["spec"] = py::cast(launched->plan.spec);
            result["grid_blocks"] = py::cast(launched->plan.grid_blocks);
            return result;
        },
        "What this thread's last FP8 x FP4 operation launched, or None.");
}

}  // namespace deep_gemm::python
