// FP4 weights as DeepGEMM passes them, (packed codes, scales): packed for one call.
#pragma once

#include <pybind11/pybind11.h>

namespace deep_gemm::python {

// A tuple or list whose first element is a tensor of bytes that may hold two codes each. FP8 tensors are no
// such pair.
bool is_fp4_pair(PyObject* object);

// The Fp4Weights of such a pair. `turned`: it is given as [k / 2, n]. `on_given_stream`: the call names a
// stream, and packing would run on another one.
pybind11::object packed_for_one_call(const char* function, PyObject* pair, bool turned, bool on_given_stream);

}  // namespace deep_gemm::python
