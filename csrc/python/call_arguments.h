// Argument lists of the operations' fast Python entry points (METH_FASTCALL): positions and keywords into one
// array of borrowed references, with Python's own error sentences. pybind11's dispatcher costs about as much
// as a launch.
#pragma once

#include "base/error.h"

#include <pybind11/pybind11.h>

#include <array>
#include <span>
#include <string>

namespace deep_gemm::python {

namespace py = pybind11;

constexpr size_t kMaxParameters = 16;

struct Signature {
    const char* function;
    std::span<const char* const> names;  // in positional order
    size_t required;                     // the first ones that have no default
    size_t positional;                   // those beyond are keyword-only
};

class CallArguments {
  public:
    CallArguments(const Signature& signature, PyObject* const* arguments, Py_ssize_t count,
                  PyObject* keywords) {
        const auto given = static_cast<size_t>(count);
        DG_CHECK(given <= signature.positional, type, "{}() takes {} positional arguments but {} were given",
                 signature.function, signature.positional, given);
        for (size_t i = 0; i < given; ++i) values_[i] = arguments[i];
        const Py_ssize_t num_keywords = keywords ? PyTuple_GET_SIZE(keywords) : 0;
        for (Py_ssize_t i = 0; i < num_keywords; ++i)
            set(signature, PyTuple_GET_ITEM(keywords, i), arguments[count + i]);
        for (size_t i = 0; i < signature.required; ++i)
            DG_CHECK(values_[i], type, "{}() is missing the argument '{}'", signature.function,
                     signature.names[i]);
    }

    // nullptr: not given, or None.
    [[nodiscard]] PyObject* operator[](size_t index) const {
        return values_[index] == Py_None ? nullptr : values_[index];
    }

  private:
    void set(const Signature& signature, PyObject* keyword, PyObject* value) {
        for (size_t i = 0; i < signature.names.size(); ++i) {
            if (PyUnicode_CompareWithASCIIString(keyword, signature.names[i]) != 0) continue;
            DG_CHECK(!values_[i], type, "{}() got two values for the argument '{}'", signature.function,
                     signature.names[i]);
            values_[i] = value;
            return;
        }
        fail(ErrorKind::type, "{}() has no argument '{}'", signature.function,
             py::cast<std::string>(py::handle(keyword)));
    }

    std::array<PyObject*, kMaxParameters> values_{};
};

}  // namespace deep_gemm::python
