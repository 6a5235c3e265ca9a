// deep_gemm._C: the extension module. Importing it starts nothing: no CUDA, no file, no thread.
// Each bind_*.cpp adds one part; this file lists them and maps Error kinds to Python exceptions.
#include "driver/device.h"
#include "driver/nvrtc.h"
#include "emulator/emulated_device.h"

#include "python/errors.h"

#include <pybind11/pybind11.h>

#include <string>
#include <string_view>
#include <vector>

namespace py = pybind11;

namespace deep_gemm::python {

void bind_device(py::module_& module);
void bind_fp4(py::module_& module);
void bind_fp4_op(py::module_& module);
void bind_fp4_plan(py::module_& module);
void bind_jit(py::module_& module);
void bind_linear(py::module_& module);
void bind_weight_gemm(py::module_& module);
void bind_moe(py::module_& module);
void bind_op(py::module_& module);
void bind_ops(py::module_& module);
void bind_plan(py::module_& module);
void bind_quantize(py::module_& module);
void bind_scale_layout(py::module_& module);
void bind_runtime(py::module_& module);
void bind_speed(py::module_& module);
void bind_settings(py::module_& module);
void bind_tensor(py::module_& module);

namespace {

const char* name_of(ErrorKind kind) {
    switch (kind) {
        case ErrorKind::value: return "value";
        case ErrorKind::type: return "type";
        case ErrorKind::driver: return "driver";
        case ErrorKind::compile: return "compile";
        case ErrorKind::emulator: return "emulator";
        case ErrorKind::io: return "io";
        case ErrorKind::internal: return "internal";
    }
    return "internal";
}

// Where the nvidia-cuda-nvrtc wheel would be. Names only: nothing is looked at before NVRTC is needed.
std::vector<std::string> site_packages() {
    std::vector<std::string> folders;
    for (const py::handle entry : py::list(py::module_::import("sys").attr("path"))) {
        const auto folder = py::str(entry).cast<std::string>();
        if (folder.ends_with("site-packages") || folder.ends_with("dist-packages")) folders.push_back(folder);
    }
    return folders;
}

PyObject* error_type = nullptr;  // deep_gemm.Error, owned by the module for the life of the interpreter

}  // namespace

py::str printable(std::string_view text) {
    auto decoded = py::reinterpret_steal<py::str>(
        PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "backslashreplace"));
    if (!decoded) throw py::error_already_set();
    return decoded;
}

void set_python_error(const Error& error) {
    const py::str message = printable(error.what());
    if (error.kind() == ErrorKind::value) return PyErr_SetObject(PyExc_ValueError, message.ptr());
    if (error.kind() == ErrorKind::type) return PyErr_SetObject(PyExc_TypeError, message.ptr());
    const py::object instance = py::reinterpret_borrow<py::object>(error_type)(message);
    instance.attr("kind") = name_of(error.kind());
    PyErr_SetObject(error_type, instance.ptr());
}

}  // namespace deep_gemm::python

PYBIND11_MODULE(_C, module) {
    using namespace deep_gemm;
    module.attr("__version__") = DG_VERSION;
    python::error_type = PyErr_NewExceptionWithDoc(
        "deep_gemm.Error",
        "A failure that is not a bad argument; `kind` is driver, compile, emulator, io or internal.",
        PyExc_RuntimeError, nullptr);
    module.attr("Error") = py::reinterpret_borrow<py::object>(python::error_type);
    py::register_exception_translator([](std::exception_ptr raised) {
        try {
            if (raised) std::rethrow_exception(raised);
        } catch (const Error& error) {
            python::set_python_error(error);
        }
    });
    driver::register_emulator(&emulator::make_emulated_device);
    driver::set_nvrtc_wheel_folders(python::site_packages());
    python::bind_device(module);
    python::bind_tensor(module);
    python::bind_plan(module);
    python::bind_jit(module);
    python::bind_op(module);
    python::bind_settings(module);
    python::bind_ops(module);
    python::bind_fp4(module);
    python::bind_quantize(module);
    python::bind_scale_layout(module);
    python::bind_runtime(module);
    python::bind_speed(module);
    python::bind_weight_gemm(module);
    python::bind_linear(module);
    python::bind_moe(module);
    python::bind_fp4_op(module);
    python::bind_fp4_plan(module);
}
