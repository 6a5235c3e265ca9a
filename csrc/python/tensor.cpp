#include "python/tensor.h"

#include "base/error.h"
#include "base/process_local.h"
#include "driver/device.h"
#include "python/dtypes.h"

#include <pybind11/numpy.h>

#include <array>

namespace deep_gemm::python {

namespace {

enum class Route { exchange, numpy, typed, attributes, capsule };
enum class StreamRoute { none, exchange, torch, cupy };

}  // namespace

struct Framework {
    PyTypeObject* type = nullptr;
    Route route = Route::capsule;
    StreamRoute stream = StreamRoute::none;
    const dlpack::ExchangeApi* api = nullptr;
};

namespace {

const char* type_name(PyObject* object) {
    return Py_TYPE(object)->tp_name;
}

// None, or something that is no capsule: nullptr.
const dlpack::ExchangeApi* exchange_api_of(py::handle type) {
    const py::object capsule = py::getattr(type, "__dlpack_c_exchange_api__", py::none());
    if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
    auto* api = static_cast<dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    while (api && api->version.major != dlpack::kMajorVersion) api = api->previous;
    return api && api->borrow_tensor ? api : nullptr;
}

bool is_numpy(PyObject* object) {
    // Only where numpy is imported already can an object be one of its arrays.
    static const auto& name = *new py::str("numpy");  // never destroyed: the interpreter may be gone by then
    return PyDict_Contains(PyImport_GetModuleDict(), name.ptr()) == 1 && py::isinstance<py::array>(object);
}

Framework describe(PyObject* object, ArgumentName name) {
    const py::handle type(reinterpret_cast<PyObject*>(Py_TYPE(object)));
    const std::string module = py::str(py::getattr(type, "__module__", py::str("")));
    Framework framework{.type = Py_TYPE(object)};
    if (module.starts_with("cupy")) framework.stream = StreamRoute::cupy;
    if (py::isinstance<TypedTensor>(object)) {
        framework.route = Route::typed;
    } else if (is_numpy(object)) {
        framework.route = Route::numpy;
    } else if (const dlpack::ExchangeApi* api = exchange_api_of(type)) {
        framework.route = Route::exchange;
        framework.stream = StreamRoute::exchange;
        framework.api = api;
    } else if (py::hasattr(type, "data_ptr") && py::hasattr(type, "stride")) {
        framework.route = Route::attributes;
        framework.stream = StreamRoute::torch;
    } else if (!py::hasattr(type, "__dlpack__")) {
        fail(ErrorKind::type,
             "{} is a {}, expected a tensor (PyTorch, CuPy, JAX: anything with "
             "__dlpack__; or numpy)",
             name, type_name(object));
    }
    return framework;
}

// Types are few and live forever; each is looked up by pointer. Protected by
// the GIL.
const Framework& framework_of(PyObject* object, ArgumentName name) {
    static auto& known = *new std::vector<std::unique_ptr<Framework>>;
    for (const auto& framework : known)
        if (framework->type == Py_TYPE(object)) return *framework;
    auto found = std::make_unique<Framework>(describe(object, name));
    Py_INCREF(found->type);
    known.push_back(std::move(found));
    return *known.back();
}

std::string dtype_text(PyObject* object) {
    return py::str(py::getattr(object, "dtype", py::str("unknown")));
}

void set_rank(TensorView& view, i64 rank, ArgumentName name) {
    DG_CHECK(rank >= 0 && rank <= TensorView::kMaxRank, value,
             "{} has {} dimensions, expected at most {}; reshape it", name, rank, TensorView::kMaxRank);
    view.rank = static_cast<u32>(rank);
}

// Devices by what tensors say of themselves, so that no call looks names up.
// Protected by the GIL.
struct Devices {
    std::array<Device*, 64> cuda{};
    Device* emulator = nullptr;
    Device* standard = nullptr;
};

// Making a device may take seconds and log into Python: others must not wait for it with the GIL.
Device& find_without_gil(std::string_view name = {}) {
    const py::gil_scoped_release no_gil;
    return find_device(name);
}

Device& cuda_device(int ordinal) {
    auto& known = process_local<Devices>().cuda;
    DG_CHECK(ordinal >= 0 && static_cast<size_t>(ordinal) < known.size(), value,
             "tensor on CUDA device {}, expected 0 to {}; move it there", ordinal, known.size() - 1);
    Device*& device = known[static_cast<size_t>(ordinal)];
    if (!device) device = &find_without_gil(fmt::format("cuda:{}", ordinal));
    return *device;
}

Device& emulator_device() {
    Device*& emulator = process_local<Devices>().emulator;
    if (!emulator) {
        const py::gil_scoped_release no_gil;
        emulator = &driver::host_memory_device();
    }
    return *emulator;
}

Device& standard_device() {
    Device*& standard = process_local<Devices>().standard;
    if (!standard) standard = &find_without_gil();
    return *standard;
}

}  // namespace

Device& device_of(py::handle argument) {
    if (!argument || argument.is_none()) return find_without_gil();
    if (py::isinstance<py::str>(argument)) return find_without_gil(argument.cast<std::string>());
    DG_CHECK(py::isinstance<Device>(argument), type,
             "device is a {}, expected a deep_gemm.Device, a name such as "
             "'emulator:sm_90a', or None; Device(name) makes one",
             type_name(argument.ptr()));
    return *argument.cast<Device*>();
}

TensorReader::TensorReader(PyObject* device, const char* function)
    : device_argument_(device == Py_None ? nullptr : device), function_(function) {}

// Host memory is the emulator's. Arrays of numpy have nowhere else to go;
// tensors of a framework that also runs on GPUs were more likely left on the
// host by mistake, so there the emulator must be the default device or be asked
// for.
Device* TensorReader::host_device(ArgumentName name, bool numpy) {
    if (host_device_) return host_device_;
    if (device_argument_) {
        host_device_ = &device_of(device_argument_);
        DG_CHECK(host_device_->properties().emulated, value,
                 "{} is in host memory, expected memory of {}; move it there", name,
                 host_device_->properties().name);
        return host_device_;
    }
    DG_CHECK(numpy || standard_device().properties().emulated, value,
             "{} is in host memory, expected GPU memory; call .cuda(), or pass "
             "device='emulator' for the "
             "emulated GPU",
             name);
    return host_device_ = &emulator_device();
}

void TensorReader::place(TensorView& view, int device_type, int device_id, ArgumentName name, bool numpy) {
    if (device_type == dlpack::kCuda || device_type == dlpack::kCudaManaged) {
        view.device = &cuda_device(device_id);
        DG_CHECK(
            !device_argument_ || &device_of(device_argument_) == view.device, value,
            "{} is on CUDA device {}, expected memory of the device that was asked for; leave device= out",
            name, device_id);
        gpu_id_ = device_id;
        return;
    }
    DG_CHECK(device_type == dlpack::kCpu || device_type == dlpack::kCudaHost, value,
             "{} is on a device of DLPack type {}, expected CUDA or host memory; move it there", name,
             device_type);
    view.device = host_device(name, numpy);
}

// viewed_as_ (deep_gemm.view_as) replaces the type of the tensor where the sizes agree.
Format TensorReader::resolve(Format found, u64 bits, PyObject* object, ArgumentName name) const {
    if (viewed_as_ != Format::none) {
        DG_CHECK(bits == bits_of(viewed_as_), type,
                 "{} has elements of {} bits, expected {} bits to be viewed as {}; convert it instead", name,
                 bits, bits_of(viewed_as_), name_of(viewed_as_));
        return viewed_as_;
    }
    if (found != Format::none) return found;
    const bool fp8 = bits == 8 && std::string_view(expected_).find("fp8") != std::string_view::npos;
    fail(ErrorKind::type, "{} is {}, expected {}; convert it{}", name, dtype_text(object), expected_,
         fp8 ? ", or pass deep_gemm.view_as(tensor, 'fp8_e4m3') if its bytes are those of FP8" : "");
}

TensorView TensorReader::view_of(const dlpack::Tensor& tensor, PyObject* object, ArgumentName name) const {
    TensorView view;
    set_rank(view, tensor.rank, name);
    view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    view.format = resolve(format_of(tensor.dtype), tensor.dtype.bits, object, name);
    i64 packed = 1;
    for (u32 i = view.rank; i-- > 0;) {
        view.shape[i] = tensor.shape[i];
        view.strides[i] = tensor.strides ? tensor.strides[i] : packed;
        packed *= tensor.shape[i];
    }
    return view;
}

TensorView TensorReader::read(PyObject* object, const char* name, bool writable, const char* expected) {
    expected_ = expected;
    const ArgumentName argument{function_, name};
    return read_as(framework_of(object, argument), object, argument, writable);
}

TensorView TensorReader::read_as(const Framework& framework, PyObject* object, ArgumentName name,
                                 bool writable) {
    if (framework.route == Route::exchange) [[likely]]
        return read_exchange(framework, object, name);
    TensorView view;
    switch (framework.route) {
        case Route::numpy: return read_numpy(object, name, writable);
        case Route::typed: return read_typed(object, name, writable);
        case Route::attributes: view = read_attributes(object, name); break;
        default: view = read_capsule(object, name, writable);
    }
    if (!view.device->properties().emulated) gpu_framework_ = &framework;
    return view;
}

TensorView TensorReader::read_exchange(const Framework& framework, PyObject* object, ArgumentName name) {
    dlpack::Tensor tensor;
    if (framework.api->borrow_tensor(object, &tensor) != 0) throw py::error_already_set();
    TensorView view = view_of(tensor, object, name);
    place(view, tensor.device_type, tensor.device_id, name, false);
    if (tensor.device_type != dlpack::kCpu) gpu_framework_ = &framework;
    return view;
}

TensorView TensorReader::read_numpy(PyObject* object, ArgumentName name, bool writable) {
    const auto array = py::reinterpret_borrow<py::array>(object);
    DG_CHECK(!writable || array.writeable(), value,
             "{} is read-only, expected an array that can be written; pass a copy", name);
    TensorView view;
    set_rank(view, array.ndim(), name);
    view.data = const_cast<void*>(array.data());
    // dtype objects of numpy are interned for the types that matter here; their
    // names are built strings.
    static auto& known = *new std::vector<std::pair<PyObject*, Format>>;
    PyObject* const dtype = py::detail::array_proxy(object)->descr;
    Format found = Format::none;
    for (const auto& [other, format] : known)
        if (other == dtype) found = format;
    if (found == Format::none && py::cast<bool>(py::handle(dtype).attr("isnative"))) {
        found = format_of_dtype_name(py::cast<std::string>(py::handle(dtype).attr("name")));
        if (found != Format::none && known.size() < 64) {
            Py_INCREF(dtype);
            known.emplace_back(dtype, found);
        }
    }
    view.format = resolve(found, static_cast<u64>(array.itemsize()) * 8, object, name);
    const i64 bytes = bytes_of(view.format);
    for (u32 i = 0; i < view.rank; ++i) {
        view.shape[i] = array.shape(i);
        DG_CHECK(array.strides(i) % bytes == 0, value,
                 "{} has a stride of {} bytes, expected a multiple of {}; pass a copy", name,
                 array.strides(i), bytes);
        view.strides[i] = array.strides(i) / bytes;
    }
    place(view, dlpack::kCpu, 0, name, true);
    return view;
}

TensorView TensorReader::read_capsule(PyObject* object, ArgumentName name, bool writable) {
    const py::handle tensor(object);
    const auto [device_type, device_id] = tensor.attr("__dlpack_device__")().cast<std::pair<int, int>>();
    // The DLPack stream argument: -1 asks for no synchronisation (the kernel runs
    // on CuPy's own current stream), 1 is CUDA's default stream, on which kernels
    // for frameworks without a current stream run.
    py::dict arguments;
    if (device_type != dlpack::kCpu) {
        const bool cupy = framework_of(object, name).stream == StreamRoute::cupy;
        arguments["stream"] = py::int_(cupy ? -1 : 1);
    }
    py::object capsule;
    try {
        capsule = tensor.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 3), **arguments);
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_TypeError)) throw;
        capsule = tensor.attr("__dlpack__")(**arguments);  // before DLPack 1.0
    }
    TensorView view;
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
        const auto* managed = static_cast<dlpack::ManagedTensorVersioned*>(
            PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
        DG_CHECK(managed->version.major == dlpack::kMajorVersion, type,
                 "{} exports DLPack {}.{}, expected 1.x; use an older version of its library", name,
                 managed->version.major, managed->version.minor);
        DG_CHECK(!writable || (managed->flags & dlpack::kReadOnly) == 0, value,
                 "{} is read-only, expected a tensor that can be written; pass a copy", name);
        view = view_of(managed->tensor, object, name);
    } else {
        DG_CHECK(PyCapsule_IsValid(capsule.ptr(), "dltensor"), type,
                 "{}: __dlpack__ of {} returned no tensor capsule", name, type_name(object));
        const auto* managed =
            static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
        view = view_of(managed->tensor, object, name);
    }
    held_.push_back(std::move(capsule));
    place(view, device_type, device_id, name, false);
    return view;
}

TensorView TensorReader::read_attributes(PyObject* object, ArgumentName name) {
    const py::handle tensor(object);
    TensorView view;
    const auto shape = tensor.attr("shape").cast<py::tuple>(),
               strides = tensor.attr("stride")().cast<py::tuple>();
    set_rank(view, static_cast<i64>(shape.size()), name);
    for (u32 i = 0; i < view.rank; ++i) {
        view.shape[i] = shape[i].cast<i64>();
        view.strides[i] = strides[i].cast<i64>();
    }
    const std::string dtype = dtype_text(object);
    const u64 bits = tensor.attr("element_size")().cast<u64>() * 8;
    const Format found = format_of_dtype_name(std::string_view(dtype).substr(dtype.find('.') + 1));
    view.format = resolve(found, bits, object, name);
    view.data = reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<u64>());
    const py::object device = tensor.attr("device");
    const auto type = device.attr("type").cast<std::string>();
    const bool cuda = type == "cuda";
    DG_CHECK(cuda || type == "cpu", type, "{} is a tensor on {}, expected cuda or cpu; copy it there first",
             name, type);
    place(view, cuda ? dlpack::kCuda : dlpack::kCpu, cuda ? device.attr("index").cast<int>() : 0, name,
          false);
    return view;
}

TensorView TensorReader::read_typed(PyObject* object, ArgumentName name, bool writable) {
    const auto* typed = py::cast<const TypedTensor*>(py::handle(object));
    viewed_as_ = typed->format;
    PyObject* const tensor = typed->tensor.ptr();
    const TensorView view = read_as(framework_of(tensor, name), tensor, name, writable);
    viewed_as_ = Format::none;
    return view;
}

TensorView TensorReader::read_bytes(PyObject* object, const char* name, bool writable) {
    viewed_as_ = Format::int8;
    const TensorView view = read(object, name, writable);
    viewed_as_ = Format::none;
    return view;
}

void* TensorReader::stream(PyObject* given) const {
    if (!given || given == Py_None) return current_stream();
    constexpr const char* kExpected = "None or the handle of a CUDA stream, an int from 0 to 2^64 - 1";
    const ArgumentName name{function_, "stream"};
    DG_CHECK(PyIndex_Check(given) && !PyBool_Check(given), type,
             "{} is a {}, expected {}; PyTorch's streams have it as cuda_stream", name, type_name(given),
             kExpected);
    const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(given));
    if (!index) throw py::error_already_set();
    const u64 handle = PyLong_AsUnsignedLongLong(index.ptr());
    if (PyErr_Occurred()) {
        PyErr_Clear();
        fail(ErrorKind::value, "{} is {}, expected {}; PyTorch's streams have it as cuda_stream", name,
             py::repr(index).cast<std::string>(), kExpected);
    }
    return reinterpret_cast<void*>(handle);
}

void* TensorReader::current_stream() const {
    if (!gpu_framework_) return nullptr;
    switch (gpu_framework_->stream) {
        case StreamRoute::exchange: {
            void* stream = nullptr;
            if (gpu_framework_->api->current_stream(dlpack::kCuda, gpu_id_, &stream) != 0)
                throw py::error_already_set();
            return stream;
        }
        case StreamRoute::torch: {
            const py::object getter = py::module_::import("torch._C").attr("_cuda_getCurrentRawStream");
            return reinterpret_cast<void*>(getter(gpu_id_).cast<u64>());
        }
        case StreamRoute::cupy: {
            const py::object stream = py::module_::import("cupy").attr("cuda").attr("get_current_stream")();
            return reinterpret_cast<void*>(stream.attr("ptr").cast<u64>());
        }
        case StreamRoute::none: break;
    }
    return nullptr;
}

}  // namespace deep_gemm::python
