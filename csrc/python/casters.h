// Small conversions shared by the bind_*.cpp files: bytes-like objects, dimensions, format names.
#pragma once

#include "base/error.h"
#include "driver/device.h"

#include <deep_gemm/spec/quantize.h>
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <span>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

namespace deep_gemm::python {

namespace py = pybind11;

// A contiguous view of a bytes-like object (bytes, numpy array, memoryview); keeps the object's memory
// locked.
class BytesView {
  public:
    BytesView(const py::handle& object, bool writable) {
        const int flags = PyBUF_ANY_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) throw py::error_already_set();
    }
    ~BytesView() { PyBuffer_Release(&view_); }
    BytesView(const BytesView&) = delete;
    BytesView& operator=(const BytesView&) = delete;

    [[nodiscard]] std::span<std::byte> span() const {
        return {static_cast<std::byte*>(view_.buf), static_cast<size_t>(view_.len)};
    }

  private:
    Py_buffer view_ = {};
};

using DimArgument = std::variant<u32, std::vector<u32>>;  // 4 or (4,) or (4, 2) or (4, 2, 1)

inline driver::Dim3 dim3_of(const DimArgument& argument, const char* name) {
    if (const u32* x = std::get_if<u32>(&argument)) return {*x, 1, 1};
    const auto& values = std::get<std::vector<u32>>(argument);
    DG_CHECK(!values.empty() && values.size() <= 3, value,
             "{}: got {} dimensions, expected 1 to 3; reshape it", name, values.size());
    driver::Dim3 dim{values[0], 1, 1};
    if (values.size() > 1) dim.y = values[1];
    if (values.size() > 2) dim.z = values[2];
    return dim;
}

inline Format format_of(const std::string& name) {
    for (u32 i = 0; i <= static_cast<u32>(Format::int32); ++i)
        if (name == name_of(static_cast<Format>(i))) return static_cast<Format>(i);
    fail(ErrorKind::value,
         "format: got '{}', expected a name of spec/format.h such as fp8_e4m3, bf16 or fp32; "
         "docs/formats.md lists them",
         name);
}

// The enumerator called `name` among `values`.
template <typename Enum>
Enum enum_named(const std::string& name, const char* what, std::span<const Enum> values) {
    std::string names;
    for (const Enum value : values) {
        if (name == name_of(value)) return value;
        names += fmt::format("{}{}", names.empty() ? "" : ", ", name_of(value));
    }
    fail(ErrorKind::value, "{}: got '{}', expected one of {}; pass one of them", what, name, names);
}

template <typename Enum>
Enum enum_named(const std::string& name, const char* what, std::initializer_list<Enum> values) {
    return enum_named<Enum>(name, what, std::span(values.begin(), values.size()));
}

// A number or truth value of `what` ("GemmSpec: block_m"), as the field it is for can hold it.
template <typename Number>
Number number_of(const std::string& what, const py::handle& value) {
    try {
        return value.cast<Number>();
    } catch (const py::cast_error&) {
        const char* expected = std::is_same_v<Number, bool> ? "True or False" : "a number from 0 to 2^32 - 1";
        fail(py::isinstance<py::int_>(value) ? ErrorKind::value : ErrorKind::type,
             "{} is {}, expected {}; convert it", what, py::repr(value).cast<std::string>(), expected);
    }
}

inline ScaleRule scale_rule_of(const std::string& name) {
    return enum_named(name, "scale_rule", {ScaleRule::exact, ScaleRule::up, ScaleRule::nearest});
}

inline driver::ImageKind image_kind_of(const std::string& name) {
    DG_CHECK(name == "ptx" || name == "cubin", value,
             "kind: got '{}', expected 'ptx' or 'cubin'; pass one of them", name);
    return name == "ptx" ? driver::ImageKind::ptx : driver::ImageKind::cubin;
}

inline const char* name_of_kind(driver::ImageKind kind) {
    return kind == driver::ImageKind::ptx ? "ptx" : "cubin";
}

inline py::bytes bytes_of(std::span<const std::byte> data) {
    return {reinterpret_cast<const char*>(data.data()), data.size()};
}

}  // namespace deep_gemm::python
