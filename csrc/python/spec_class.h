// A kernel's spec (spec/*.h) as a Python class: made of fields by name, compared, shown as what evaluates to
// an equal one, and asked why it is no kernel. Everything is read off visit_fields, so that a new field is
// known here by itself.
#pragma once

#include "python/casters.h"

#include <fmt/format.h>
#include <pybind11/typing.h>

#include <optional>
#include <tuple>

namespace deep_gemm::python {

using Dict = py::typing::Dict<py::str, py::object>;

// The first `count` values of an enumeration that starts at 0.
template <typename Enum>
std::vector<Enum> first_of(u32 count) {
    std::vector<Enum> values;
    for (u32 i = 0; i < count; ++i) values.push_back(static_cast<Enum>(i));
    return values;
}

template <typename Field>
py::object to_python(Field field) {
    if constexpr (std::is_enum_v<Field>)
        return py::str(name_of(field));
    else
        return py::cast(field);
}

template <typename Spec>
Dict dict_of_spec(const Spec& spec) {
    Dict result;
    visit_fields([&result](const char* name, auto field) { result[name] = to_python(field); }, spec);
    return result;
}

// Reads and shows the fields of a Spec called `name`; `known`: what its enumerations may be, a list for each.
template <typename Spec, typename... Enums>
struct SpecFields {
    const char* name;
    std::tuple<std::vector<Enums>...> known;

    // "block_m, block_n, ..."
    [[nodiscard]] static std::string names() {
        std::string text;
        Spec spec;
        visit_fields([&text](const char* field,
                             auto&) { text += fmt::format("{}{}", text.empty() ? "" : ", ", field); },
                     spec);
        return text;
    }

    [[nodiscard]] Spec with(Spec spec, const py::kwargs& values) const {
        for (const auto& [key, value] : values) {
            const auto wanted = key.template cast<std::string>();
            bool found = false;
            visit_fields(
                [&](const char* field_name, auto& field) {
                    if (wanted != field_name) return;
                    found = true;
                    field = read<std::remove_reference_t<decltype(field)>>(field_name, value);
                },
                spec);
            DG_CHECK(found, type, "{} has no field '{}', expected one of {}; correct the name", name, wanted,
                     names());
        }
        return spec;
    }

    [[nodiscard]] std::string repr(const Spec& spec) const {
        std::string text;
        visit_fields(
            [&text](const char* field_name, auto field) {
                text += fmt::format("{}{}={}", text.empty() ? "" : ", ", field_name,
                                    py::repr(to_python(field)).template cast<std::string>());
            },
            spec);
        return fmt::format("{}({})", name, text);
    }

  private:
    template <typename Field>
    [[nodiscard]] Field read(const char* field_name, const py::handle& value) const {
        const std::string what = fmt::format("{}: {}", name, field_name);
        if constexpr (std::is_enum_v<Field>)
            return enum_named<Field>(py::str(value), what.c_str(), std::get<std::vector<Field>>(known));
        else
            return number_of<Field>(what, value);
    }
};

// The class; more may be defined on it. `what` ("a GEMM kernel") and `header` ("spec/gemm.h") are for its
// docstring.
template <typename Spec, typename... Enums>
py::class_<Spec> bind_spec(py::module_& module, const char* what, const char* header,
                           const SpecFields<Spec, Enums...>& fields) {
    const std::string doc =
        fmt::format("What {0} is. {1}(block_m=64, ...) sets fields by name: {2}. {3} says what they mean.",
                    what, fields.name, fields.names(), header);
    py::class_<Spec> type(module, fields.name, doc.c_str());
    type.def(py::init([fields](const py::kwargs& values) { return fields.with({}, values); }));
    type.def(
        "replace", [fields](const Spec& spec, const py::kwargs& values) { return fields.with(spec, values); },
        "A copy with some fields changed.");
    type.def("to_dict", &dict_of_spec<Spec>, "Its fields by name; deep_gemm's constructor takes them back.");
    type.def("__getattr__", [fields](const Spec& spec, const std::string& name) {
        py::object found;
        visit_fields(
            [&](const char* field_name, auto field) {
                if (name == field_name) found = to_python(field);
            },
            spec);
        if (!found) throw py::attribute_error(fmt::format("{} has no field '{}'", fields.name, name));
        return found;
    });
    type.def_property_readonly(
        "why_illegal",
        [](const Spec& spec) -> std::optional<std::string> {
            const char* reason = why_illegal(spec);
            return reason ? std::optional<std::string>(reason) : std::nullopt;
        },
        "None, or the sentence that rejects it.");
    type.def_property_readonly(
        "smem_bytes", [](const Spec& spec) { return plan_smem(spec).bytes; }, "Shared memory of a block.");
    type.def_property_readonly(
        "threads", [](const Spec& spec) { return threads_of(spec); }, "Threads of a block.");
    type.def("__repr__", [fields](const Spec& spec) { return fields.repr(spec); });
    type.def("__str__", [](const Spec& spec) { return plan::to_string(spec); });
    type.def("__eq__", [](const Spec& a, const py::object& b) {
        return py::isinstance<Spec>(b) && a == b.cast<const Spec&>();
    });
    type.def("__hash__", [fields](const Spec& spec) { return py::hash(py::str(fields.repr(spec))); });
    return type;
}

}  // namespace deep_gemm::python
