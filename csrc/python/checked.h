// Arguments of pybind11's functions that are refused in the library's words: Checked<T, Tag> is a T in
// signatures, and an error of Tag's name and expectation where Python passes something else.
#pragma once

#include "base/error.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

namespace deep_gemm::python {

template <typename T, typename Tag>
struct Checked {
    T value;
};

struct Problem {
    static constexpr const char *name = "problem", *expected = "a str such as 'gemm m=64 n=7168 k=2048'";
};
struct Problems {
    static constexpr const char *name = "problems",
                                *expected = "a list of them, such as ['gemm m=64 n=7168 k=2048']";
};
struct NumSms {
    static constexpr const char *name = "set_num_sms: new_num_sms", *expected = "an int, or 0 for all";
};
struct Pdl {
    static constexpr const char *name = "set_pdl: new_enable_pdl", *expected = "True or False";
};
struct CandidateRows {
    static constexpr const char *name = "explain: rows",
                                *expected = "a number of candidates, from 0 to 2^32 - 1";
};
using ProblemText = Checked<std::string, Problem>;
using ProblemTexts = Checked<std::vector<std::string>, Problems>;

}  // namespace deep_gemm::python

namespace pybind11::detail {

template <typename T, typename Tag>
struct type_caster<deep_gemm::python::Checked<T, Tag>> {
    using Value = deep_gemm::python::Checked<T, Tag>;
    PYBIND11_TYPE_CASTER(Value, make_caster<T>::name);

    bool load(handle source, bool convert) {
        make_caster<T> inner;
        DG_CHECK(inner.load(source, convert), type, "{} is {}, expected {}; pass that", Tag::name,
                 repr(source).cast<std::string>(), Tag::expected);
        value.value = cast_op<T&&>(std::move(inner));
        return true;
    }
};

}  // namespace pybind11::detail
