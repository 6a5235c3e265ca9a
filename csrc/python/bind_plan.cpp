// Plans for Python: GemmSpec as an object (force one with `spec=`), the plan of
// a problem, its explanation, the plan that the last call really used, and
// warm-up.
#include "op/fp4_gemm.h"
#include "op/gemm.h"
#include "op/gemm_kernel.h"
#include "plan/linear.h"
#include "python/checked.h"
#include "python/plan_device.h"
#include "python/spec_class.h"
#include "python/tensor.h"

#include <fmt/format.h>
#include <pybind11/functional.h>

#include <functional>
#include <optional>

namespace deep_gemm::python {

namespace {

Dict dict_of(const plan::GemmCost& cost) {
    Dict result;
    result["dram_us"] = cost.dram_us;
    result["l2_us"] = cost.l2_us;
    result["fill_us"] = cost.fill_us;
    result["math_us"] = cost.math_us;
    result["epilogue_us"] = cost.epilogue_us;
    result["launch_us"] = cost.launch_us;
    result["total_us"] = cost.total_us;
    return result;
}

Dict dict_of(const plan::GemmProblem& problem, const plan::GemmPlan& plan) {
    Dict result;
    result["problem"] = plan::to_string(problem);
    result["spec"] = plan.spec;
    result["grid_blocks"] = plan.grid_blocks;
    result["cost"] = dict_of(plan.cost);
    return result;
}

py::list candidates_of(const plan::GemmProblem& problem, const plan::DeviceModel& device) {
    std::vector<plan::GemmCandidate> considered;
    (void)plan::plan_gemm(problem, device, &considered);
    py::list result;
    for (const plan::GemmCandidate& candidate : considered) {
        Dict row;
        row["spec"] = candidate.spec;
        row["rejected"] = candidate.rejected;
        row["cost"] = dict_of(candidate.cost);
        result.append(row);
    }
    return result;
}

}  // namespace

void bind_plan(py::module_& module) {
    const SpecFields<GemmSpec, Format, ScaleB, GroupMode, Major> fields{
        .name = "GemmSpec",
        .known = {{Format::fp8_e4m3, Format::bf16, Format::fp32},
                  {ScaleB::none, ScaleB::per_128x128, ScaleB::per_row_128},
                  {GroupMode::dense, GroupMode::contiguous, GroupMode::psum, GroupMode::masked},
                  {Major::k, Major::mn}}};
    bind_spec(module, "a GEMM kernel", "spec/gemm.h", fields);
    module.def(
        "plan",
        [](const ProblemText& problem, const py::object& device) {
            const plan::GemmProblem parsed = op::problem_of(problem.value);
            return dict_of(parsed, plan::plan_gemm(parsed, model_of(device)));
        },
        py::arg("problem"), py::arg("device") = py::none(),
        "The plan of a problem such as 'gemm m=64 n=7168 k=2048 a=fp8_e4m3 d=bf16': spec, grid_blocks, cost "
        "terms. `device` may also be 'arch:num_sms' ('90a:132'), which needs no GPU.");
    module.def(
        "explain",
        [](const ProblemText& problem, const py::object& device, const Checked<u32, CandidateRows>& rows) {
            const std::string_view text = problem.value;
            const std::string_view first = text.substr(0, text.find(' '));
            if (first == "linear")
                return plan::explain_linear(text, model_of(device, plan::linear_device_model), rows.value);
            const plan::DeviceModel model = model_of(device);
            if (first == "fp4_gemm") return plan::explain(plan::parse_fp4_problem(text), model, rows.value);
            return plan::explain(op::problem_of(text), model, rows.value);
        },
        py::arg("problem"), py::arg("device") = py::none(), py::arg("rows") = 12,
        "A table of the best candidates with their cost terms, and why the others were rejected: of 'gemm "
        "...', 'fp4_gemm ...' or 'linear ...'.");
    module.def(
        "candidates",
        [](const ProblemText& problem, const py::object& device) {
            return candidates_of(op::problem_of(problem.value), model_of(device));
        },
        py::arg("problem"), py::arg("device") = py::none(),
        "Every spec that was considered for the problem: spec, rejected (None, or why), cost terms.");
    module.def(
        "enumerate_specs",
        [](const ProblemText& problem, const py::object& device) {
            const plan::GemmProblem parsed = op::problem_of(problem.value);
            return plan::enumerate_specs(parsed, parsed.m, model_of(device));
        },
        py::arg("problem"), py::arg("device") = py::none(),
        "Every spec that the problem can choose for 1 to m rows.");
    module.def(
        "last_plan",
        []() -> py::object {
            const op::Launcher* launcher = op::last_launcher();
            if (!launcher) return py::none();
            Dict result = dict_of(launcher->problem, launcher->plan);
            result["device"] = launcher->device_name;
            result["kernel"] = launcher->kernel->name();
            return result;
        },
        "What the last operation of this thread really launched: problem, spec, grid_blocks, cost, device, "
        "kernel. None before the first.");
    module.def(
        "num_plans", [] { return op::num_launchers() + op::num_fp4_plans(); },
        "How many planned problems the process remembers; the oldest are forgotten at some thousands.");
    module.def(
        "warmup",
        [](const ProblemTexts& problems, const py::object& device,
           const std::optional<std::function<void(u32, u32, const std::string&)>>& progress) {
            Device& target = device_of(device);
            const py::gil_scoped_release no_gil;
            const WarmupReport report = deep_gemm::warmup(target, problems.value, progress.value_or(nullptr));
            return std::pair(report.num_kernels, report.seconds);
        },
        py::arg("problems"), py::arg("device") = py::none(), py::arg("progress") = py::none(),
        "Builds, in parallel, every kernel that these problems can choose for 1 to m rows; returns their "
        "number and the seconds it took. progress(done, total, kernel) is called after each.");
}

}  // namespace deep_gemm::python
