// Argument lists of the operations' fast Python entry points (METH_FASTCALL): positions and keywords into one
// array of borrowed references, with Python's own error sentences. pybind11's dispatcher costs about as much
// as a launch.
#pragma once

#include "base/error.h"
#include "python/tensor.h"

#include <pybind11/pybind11.h>

#include <array>
#include <span>
#include <string>

namespace deep_gemm::python {

namespace py = pybind11;

constexpr size_t kMaxParameters = 20;

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
    // The caller keeps `value` alive.
    void replace(size_t index, PyObject* value) { values_[index] = value; }

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

inline i64 integer_of(PyObject* object, const char* function, const char* name) {
    const i64 value = PyLong_AsLongLong(object);
    if (value == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        DG_CHECK(!PyLong_Check(object), value, "{}: {} is {}, expected an int of 64 bits; pass a smaller one",
                 function, name, py::repr(object).cast<std::string>());
        fail(ErrorKind::type, "{}: {} is a {}, expected an int; convert it", function, name,
             Py_TYPE(object)->tp_name);
    }
    return value;
}

// Python's truth of an argument; one that is not given is false.
inline bool flag_of(PyObject* object) {
    if (!object) return false;
    const int truth = PyObject_IsTrue(object);
    if (truth < 0) throw py::error_already_set();
    return truth == 1;
}

// The two items of (fp8 values, fp32 scales); those of a list are held by the reader.
inline std::array<PyObject*, 2> scaled_pair(TensorReader& reader, PyObject* pair, const char* function,
                                            const char* name) {
    const bool is_tuple = PyTuple_Check(pair), is_list = PyList_Check(pair);
    const Py_ssize_t size = is_tuple ? PyTuple_GET_SIZE(pair) : is_list ? PyList_GET_SIZE(pair) : -1;
    DG_CHECK(size == 2, type,
             "{}: {} is a {}{}, expected a pair (fp8 tensor, fp32 scales); "
             "deep_gemm.utils.per_token_cast_to_fp8 makes one",
             function, name, Py_TYPE(pair)->tp_name, size < 0 ? "" : fmt::format(" of {}", size));
    if (is_tuple) return {PyTuple_GET_ITEM(pair, 0), PyTuple_GET_ITEM(pair, 1)};
    const std::array<PyObject*, 2> items{PyList_GET_ITEM(pair, 0), PyList_GET_ITEM(pair, 1)};
    for (PyObject* item : items) reader.hold(item);
    return items;
}

}  // namespace deep_gemm::python
