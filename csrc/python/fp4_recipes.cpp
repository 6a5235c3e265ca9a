#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "python/fp4_recipes.h"

#include "base/error.h"

#include <vector>

namespace deep_gemm::python {

void read_recipes(const char* function, PyObject* recipe, PyObject* recipe_a, PyObject* recipe_b,
                  op::Fp4GemmArguments& gemm) {
    const i64 group = fp4_group_of(gemm.weights.form);
    const auto check = [&](PyObject* object, const char* name, const std::vector<i64>& expected,
                           const std::vector<i64>& other) {
        if (object == nullptr) return false;
        const auto got = pybind11::cast<std::vector<i64>>(pybind11::handle(object));
        DG_CHECK(got == expected || got == other, value,
                 "{}: {} is {}, expected scales per (1, 128) or (1, 32) of a and (1, {}) of b: recipe_a and "
                 "recipe_b, or recipe (1, 1, 32) for MXFP4 and 32 of both",
                 function, name, pybind11::cast<std::string>(pybind11::repr(object)), group);
        return got == expected;
    };
    DG_CHECK(recipe == nullptr || (recipe_a == nullptr && recipe_b == nullptr), value,
             "{}: got recipe and recipe_a or recipe_b, expected one or the other; leave recipe out",
             function);
    const std::vector<i64> none, both = group == 32 ? std::vector<i64>{1, 1, 32} : none;
    if (check(recipe, "recipe", both, both) || check(recipe_a, "recipe_a", {1, 32}, {1, 128}))
        gemm.a_block = 32;
    else if (recipe_a != nullptr)
        gemm.a_block = 128;
    check(recipe_b, "recipe_b", {1, group}, {1, group});
}

}  // namespace deep_gemm::python
