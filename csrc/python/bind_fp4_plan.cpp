// What an FP8 x FP4 kernel is and why it was chosen, as Python sees it: spec, plan and explanation.
#include "op/fp4_gemm.h"
#include "python/casters.h"
#include "python/checked.h"
#include "python/errors.h"
#include "python/plan_device.h"

#include <fmt/format.h>
#include <pybind11/typing.h>

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
void set_enum(Enum& field, const char* name, const py::handle& value, std::initializer_list<Enum> all) {
    field = enum_named(py::str(value), fmt::format("Fp4GemmSpec: {}", name).c_str(), all);
}

void set_field(const char* name, Fp4Form& field, const py::handle& value) {
    set_enum(field, name, value, {Fp4Form::mx_e4m3, Fp4Form::mx_e5m2, Fp4Form::nv_single, Fp4Form::nv_exact});
}
void set_field(const char* name, Format& field, const py::handle& value) {
    set_enum(field, name, value, {Format::bf16, Format::fp32, Format::fp8_e4m3});
}
void set_field(const char* name, GroupMode& field, const py::handle& value) {
    set_enum(
        field, name, value,
        {GroupMode::dense, GroupMode::contiguous, GroupMode::psum, GroupMode::masked, GroupMode::gathered});
}
template <typename Number>
void set_field(const char* name, Number& field, const py::handle& value) {
    field = number_of<Number>(fmt::format("Fp4GemmSpec: {}", name), value);
}

void set_fields(Fp4GemmSpec& spec, const py::kwargs& fields) {
    for (const auto& [key, value] : fields) {
        const auto wanted = key.cast<std::string>();
        bool known = false;
        visit_fields(
            [&](const char* name, auto& field) {
                if (wanted != name) return;
                known = true;
                set_field(name, field, value);
            },
            spec);
        DG_CHECK(known, type, "Fp4GemmSpec has no field '{}', expected one of {}; correct the name", wanted,
                 field_names_of<Fp4GemmSpec>());
    }
}

Dict dict_of(const Fp4GemmSpec& spec) {
    Dict result;
    visit_fields([&result](const char* name, auto field) { result[name] = to_python(field); }, spec);
    return result;
}

std::string repr_of_fp4_spec(const Fp4GemmSpec& spec) {
    std::string text;
    visit_fields(
        [&text](const char* name, auto field) {
            text += fmt::format("{}{}={}", text.empty() ? "" : ", ", name,
                                py::repr(to_python(field)).template cast<std::string>());
        },
        spec);
    return "Fp4GemmSpec(" + text + ")";
}

void bind_spec(py::module_& module) {
    const std::string doc = fmt::format(
        "What an FP8 x FP4 kernel is. Fp4GemmSpec(block_m=16, ...) sets fields by name: {}. spec/fp4_gemm.h "
        "says what they mean.",
        field_names_of<Fp4GemmSpec>());
    py::class_<Fp4GemmSpec> type(module, "Fp4GemmSpec", doc.c_str());
    type.def(py::init([](const py::kwargs& fields) {
        Fp4GemmSpec spec;
        set_fields(spec, fields);
        return spec;
    }));
    type.def(
        "replace",
        [](Fp4GemmSpec spec, const py::kwargs& fields) {
            set_fields(spec, fields);
            return spec;
        },
        "A copy with some fields changed.");
    type.def("to_dict", &dict_of, "Its fields by name; deep_gemm's constructor takes them back.");
    type.def_property_readonly(
        "why_illegal",
        [](const Fp4GemmSpec& spec) -> std::optional<std::string> {
            const char* reason = why_illegal(spec);
            return reason ? std::optional<std::string>(reason) : std::nullopt;
        },
        "None, or the sentence that rejects it.");
    type.def_property_readonly(
        "smem_bytes", [](const Fp4GemmSpec& spec) { return plan_smem(spec).bytes; },
        "Shared memory of a block.");
    type.def_property_readonly(
        "threads", [](const Fp4GemmSpec& spec) { return threads_of(spec); }, "Threads of a block.");
    type.def_property_readonly(
        "register_limit", [](const Fp4GemmSpec& spec) { return registers_of(spec); },
        "Registers a thread may take for its CTAs to fit an SM.");
    type.def("__repr__", &repr_of_fp4_spec);
    type.def("__str__", [](const Fp4GemmSpec& spec) { return plan::to_string(spec); });
    type.def("__eq__", [](const Fp4GemmSpec& a, const py::object& b) {
        return py::isinstance<Fp4GemmSpec>(b) && a == b.cast<const Fp4GemmSpec&>();
    });
    type.def("__hash__", [](const Fp4GemmSpec& spec) { return py::hash(py::str(repr_of_fp4_spec(spec))); });
}

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
    bind_spec(module);
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
