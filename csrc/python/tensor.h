// Tensors of Python frameworks as TensorViews, without linking or importing any framework: the DLPack C
// exchange table where the type has one (PyTorch 2.9 and newer: tens of nanoseconds), numpy arrays with
// ml_dtypes, `__dlpack__` capsules (CuPy, JAX), and plain attributes (older PyTorch).
#pragma once

#include "base/error.h"
#include "op/api.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace deep_gemm::python {

namespace py = pybind11;

namespace dlpack {
struct Tensor;
}
struct Framework;  // how tensors of one Python type are read; found once per type

// An argument in errors: "fp8_gemm_nt: scales of a", or the name alone where no function is known.
struct ArgumentName {
    const char* function;
    const char* name;
};

// The argument `stream` of a function, of whatever type: TensorReader::stream() checks it.
struct StreamArgument {
    py::object object;
};

// The tensors of one call. Keeps what it borrowed alive until it is destroyed; needs the GIL throughout.
class TensorReader {
  public:
    // `device`: where tensors in host memory belong (None: the emulator); tensors in GPU memory name their
    // own. `function`: what was called, for errors.
    explicit TensorReader(PyObject* device, const char* function = nullptr);

    // `name` appears in errors, and `expected` ("bf16 or fp32") where the type is one that no operation
    // takes. Throws TypeError for objects that are no tensors, ValueError for unusable memory.
    [[nodiscard]] TensorView read(PyObject* object, const char* name, bool writable = false,
                                  const char* expected = kAnyFormat);

    // The same for elements of one byte of any type, as int8: codes and scales that are bytes.
    [[nodiscard]] TensorView read_bytes(PyObject* object, const char* name, bool writable = false);

    // Keeps an object until the call has ended: what a list holds may be taken out of it by another thread.
    void hold(PyObject* object) { held_.push_back(py::reinterpret_borrow<py::object>(object)); }

    // The stream of the call: `given`, the handle of one, or (None, nullptr) the current stream of the framework that
    // the last GPU tensor came from; null where it has none.
    [[nodiscard]] void* stream(PyObject* given) const;
    [[nodiscard]] void* stream(const StreamArgument& given) const { return stream(given.object.ptr()); }

  private:
    [[nodiscard]] void* current_stream() const;
    TensorView read_exchange(const Framework& framework, PyObject* object, ArgumentName name);
    TensorView read_numpy(PyObject* object, ArgumentName name, bool writable);
    TensorView read_capsule(PyObject* object, ArgumentName name, bool writable);
    TensorView read_attributes(PyObject* object, ArgumentName name);
    TensorView read_typed(PyObject* object, ArgumentName name, bool writable);
    TensorView read_as(const Framework& framework, PyObject* object, ArgumentName name, bool writable);
    TensorView view_of(const dlpack::Tensor& tensor, PyObject* object, ArgumentName name) const;
    [[nodiscard]] Format resolve(Format found, u64 bits, PyObject* object, ArgumentName name) const;
    void place(TensorView& view, int device_type, int device_id, ArgumentName name, bool numpy);
    [[nodiscard]] Device* host_device(ArgumentName name, bool numpy);

    static constexpr const char* kAnyFormat =
        "fp8_e4m3, bf16, fp16, fp32, int8 or int32, as the operation says";

    PyObject* device_argument_;
    const char* function_;
    const char* expected_ = kAnyFormat;
    Format viewed_as_ = Format::none;
    Device* host_device_ = nullptr;
    const Framework* gpu_framework_ = nullptr;
    int gpu_id_ = 0;
    std::vector<py::object> held_;
};

// A tensor whose bytes mean another format than its type says, for frameworks without that format.
struct TypedTensor {
    py::object tensor;
    Format format;
};

// A tensor given transposed as the operation takes it: the last two dimensions change places.
inline void turn(TensorView& view) {
    if (view.rank < 2) return;  // refused by its shape
    std::swap(view.shape[view.rank - 2], view.shape[view.rank - 1]);
    std::swap(view.strides[view.rank - 2], view.strides[view.rank - 1]);
}

// Device, device name or None (the default device) -> Device.
[[nodiscard]] Device& device_of(py::handle argument);

}  // namespace deep_gemm::python

namespace pybind11::detail {

template <>
struct type_caster<deep_gemm::python::StreamArgument> {
    PYBIND11_TYPE_CASTER(deep_gemm::python::StreamArgument, make_caster<std::optional<deep_gemm::u64>>::name);

    bool load(handle source, bool) {
        value.object = reinterpret_borrow<object>(source);
        return true;
    }
};

}  // namespace pybind11::detail

template <>
struct fmt::formatter<deep_gemm::python::ArgumentName> : fmt::formatter<std::string_view> {
    template <typename Context>
    auto format(const deep_gemm::python::ArgumentName& argument, Context& context) const {
        if (argument.function)
            return fmt::format_to(context.out(), "{}: {}", argument.function, argument.name);
        return fmt::format_to(context.out(), "{}", argument.name);
    }
};
