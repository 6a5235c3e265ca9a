// Error -> Python exception, for entry points that pybind11 does not wrap. Defined in module.cpp.
#pragma once

#include "base/exception.h"

namespace deep_gemm::python {

void set_python_error(const Error& error);

}  // namespace deep_gemm::python
