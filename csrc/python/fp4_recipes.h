// DeepGEMM's recipes of an FP8 x FP4 operation: how many elements share a scale.
#pragma once

#include "op/fp4_gemm.h"

#include <Python.h>

namespace deep_gemm::python {

// Recipes may say what the scales are and nothing else; each may be null. Whether those of a are for 128 or
// 32 elements of K is checked with their shape.
void read_recipes(const char* function, PyObject* recipe, PyObject* recipe_a, PyObject* recipe_b,
                  op::Fp4GemmArguments& gemm);

}  // namespace deep_gemm::python
