// Fp4Weights: packed weights as Python sees them. Holds the framework's tensors; each call reads them anew.
#pragma once

#include "op/fp4_pack.h"

#include <pybind11/pybind11.h>

namespace deep_gemm::python {

struct Fp4Weights {
    pybind11::object blobs;       // int8, the blobs of spec/fp4_weights.h
    pybind11::object row_scales;  // fp32, 64 for each run
    pybind11::object runs;        // int32 for each block of 64 rows, or None
    op::Fp4Shape shape;
    Fp4Form form = Fp4Form::mx_e4m3;
    op::Fp4PackReport report;
};

}  // namespace deep_gemm::python
