// Plans for Python: GemmSpec as an object (force one with `spec=`), the plan of
// a problem, its explanation, the plan that the last call really used, and
// warm-up.
#include "op/fp4_gemm.h"
#include "op/gemm.h"
#include "op/gemm_kernel.h"
#include "python/casters.h"
#include "plan/linear.h"
#include "python/checked.h"
#include "python/plan_device.h"
#include "python/tensor.h"

#include <fmt/format.h>
#include <pybind11/functional.h>
#include <pybind11/typing.h>

#include <functional>
#include <optional>

namespace deep_gemm::python {

namespace {

using Dict = py::typing::Dict<py::str, py::object>;

template <typename Field>
py::object to_python(Field field) {
    if constexpr (std::is_enum_v<Field>)
        return py::str(name_of(field));
    else
        return py::cast(field);
}

template <typename Enum>
Enum enum_of(const char* name, const py::handle& value, std::initializer_list<Enum> all) {
    return enum_named(py::str(value), fmt::format("GemmSpec: {}", name).c_str(), all);
}

void set_field(const char* name, Format& field, const py::handle& value) {
    field = enum_of(name, value, {Format::fp8_e4m3, Format::bf16, Format::fp32});
}
void set_field(const char* name, ScaleB& field, const py::handle& value) {
    field = enum_of(name, value, {ScaleB::none, ScaleB::per_128x128, ScaleB::per_row_128});
}
void set_field(const char* name, GroupMode& field, const py::handle& value) {
    field =
        enum_of(name, value, {GroupMode::dense, GroupMode::contiguous, GroupMode::psum, GroupMode::masked});
}
void set_field(const char* name, Major& field, const py::handle& value) {
    field = enum_of(name, value, {Major::k, Major::mn});
}
template <typename Number>
void set_field(const char* name, Number& field, const py::handle& value) {
    field = number_of<Number>(fmt::format("GemmSpec: {}", name), value);
}

void set_fields(GemmSpec& spec, const py::kwargs& fields) {
    size_t used = 0;
    visit_fields(
        [&](const char* name, auto& field) {
            if (!fields.contains(name)) return;
            set_field(name, field, fields[name]);
            ++used;
        },
        spec);
    if (used == fields.size()) return;
    for (const auto& [key, value] : fields) {
        bool known = false;
        visit_fields(
            [&](const char* name, auto&) { known = known || py::str(key).cast<std::string>() == name; },
            spec);
        DG_CHECK(known, type, "GemmSpec has no field '{}', expected one of {}; correct the name",
                 py::str(key).cast<std::string>(), field_names_of<GemmSpec>());
    }
}

// "GemmSpec(ab='fp8_e4m3', ..., cluster_n=1)": evaluates to an equal spec.
std::string repr_of(const GemmSpec& spec) {
    std::string text;
    visit_fields(
        [&text](const char* name, auto field) {
            text += fmt::format("{}{}={}", text.empty() ? "" : ", ", name,
                                py::repr(to_python(field)).template cast<std::string>());
        },
        spec);
    return "GemmSpec(" + text + ")";
}

Dict dict_of(const GemmSpec& spec) {
    Dict result;
    visit_fields([&result](const char* name, auto field) { result[name] = to_python(field); }, spec);
    return result;
}

void bind_spec(py::module_& module) {
    const std::string doc = fmt::format(
        "What a GEMM kernel is. GemmSpec(block_m=64, ...) sets fields by name: {}. spec/gemm.h says what "
        "they "
        "mean.",
        field_names_of<GemmSpec>());
    py::class_<GemmSpec> type(module, "GemmSpec", doc.c_str());
    type.def(py::init([](const py::kwargs& fields) {
        GemmSpec spec;
        set_fields(spec, fields);
        return spec;
    }));
    type.def(
        "replace",
        [](GemmSpec spec, const py::kwargs& fields) {
            set_fields(spec, fields);
            return spec;
        },
        "A copy with some fields changed.");
    type.def("to_dict", &dict_of, "Its fields by name; deep_gemm's constructor takes them back.");
    type.def("__getattr__", [](const GemmSpec& spec, const std::string& name) {
        py::object found;
        visit_fields(
            [&](const char* field_name, auto field) {
                if (name == field_name) found = to_python(field);
            },
            spec);
        if (!found) throw py::attribute_error("GemmSpec has no field '" + name + "'");
        return found;
    });
    type.def_property_readonly(
        "why_illegal",
        [](const GemmSpec& spec) -> std::optional<std::string> {
            const char* reason = why_illegal(spec);
            return reason ? std::optional<std::string>(reason) : std::nullopt;
        },
        "None, or the sentence that rejects it.");
    type.def_property_readonly(
        "smem_bytes", [](const GemmSpec& spec) { return plan_smem(spec).bytes; },
        "Shared memory of a block.");
    type.def_property_readonly(
        "threads", [](const GemmSpec& spec) { return threads_of(spec); }, "Threads of a block.");
    type.def("__repr__", &repr_of);
    type.def("__str__", [](const GemmSpec& spec) { return plan::to_string(spec); });
    type.def("__eq__", [](const GemmSpec& a, const py::object& b) {
        return py::isinstance<GemmSpec>(b) && a == b.cast<const GemmSpec&>();
    });
    type.def("__hash__", [](const GemmSpec& spec) { return py::hash(py::str(repr_of(spec))); });
}

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
    bind_spec(module);
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
        "...', "
        "'fp4_gemm ...' or 'linear ...'.");
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
