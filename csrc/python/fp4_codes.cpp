#include "python/fp4_codes.h"

#include "base/error.h"

#include <pybind11/gil_safe_call_once.h>

#include <string>
#include <unordered_map>

namespace deep_gemm::python {

namespace py = pybind11;

namespace {

// Frameworks have one object for a dtype, or a few: its name is asked for once. Called with the GIL.
bool is_byte_type(const py::object& dtype) {
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<std::unordered_map<PyObject*, bool>> storage;
    auto& known =
        storage.call_once_and_store_result([] { return std::unordered_map<PyObject*, bool>(); }).get_stored();
    if (const auto found = known.find(dtype.ptr()); found != known.end()) return found->second;
    const auto name = py::str(dtype).cast<std::string>();
    const auto is = [&name](const char* wanted) {
        return name == wanted || name == std::string("torch.") + wanted;
    };
    const bool bytes = is("int8") || is("uint8") || is("float4_e2m1fn_x2");
    constexpr size_t kMostTypes = 64;
    if (known.size() < kMostTypes)
        known.emplace(dtype.inc_ref().ptr(), bytes);  // kept: its address stays its own
    return bytes;
}

}  // namespace

bool is_fp4_pair(PyObject* object) {
    if (object == nullptr || !(PyTuple_Check(object) || PyList_Check(object))) return false;
    if (PySequence_Fast_GET_SIZE(object) != 2) return false;
    PyObject* const dtype = PyObject_GetAttrString(PySequence_Fast_GET_ITEM(object, 0), "dtype");
    if (dtype == nullptr) {
        PyErr_Clear();
        return false;
    }
    return is_byte_type(py::reinterpret_steal<py::object>(dtype));
}

py::object packed_for_one_call(const char* function, PyObject* pair, bool turned, bool on_given_stream) {
    DG_CHECK(
        !on_given_stream, value,
        "{}: got FP4 codes for b and a stream, expected either: codes are packed on the framework's current "
        "stream; pack them once with deep_gemm.pack_fp4_weights(codes, scales)",
        function);
    const auto weights_of = py::module_::import("deep_gemm.fp4").attr("weights_of_pair");
    return weights_of(function, py::handle(PySequence_Fast_GET_ITEM(pair, 0)),
                      py::handle(PySequence_Fast_GET_ITEM(pair, 1)), turned);
}

}  // namespace deep_gemm::python
