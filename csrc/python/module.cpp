// deep_gemm._C: the extension module. Importing it starts nothing: no CUDA, no file, no thread.
// Each bind_*.cpp adds one part; this file lists them and maps Error kinds to Python exceptions.
#include "base/error.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_C, module) {
    module.attr("__version__") = DG_VERSION;
}
