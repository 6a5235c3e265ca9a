// Error -> Python exception, for entry points that pybind11 does not wrap; and text that may quote damaged files.
// Defined in module.cpp.
#pragma once

#include "base/exception.h"

#include <pybind11/pybind11.h>

#include <string_view>

namespace deep_gemm::python {

void set_python_error(const Error& error);

// Text as it is, bytes that are no UTF-8 as \xff: names in damaged files are any bytes.
[[nodiscard]] pybind11::str printable(std::string_view text);

}  // namespace deep_gemm::python
