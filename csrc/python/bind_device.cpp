// Device, Module and Kernel for Python: the narrow interface as it is, for tests and tools. Addresses and
// handles are integers; every call releases the GIL.
#include "python/casters.h"

#include "driver/nvrtc.h"
#include "emulator/emulated_device.h"
#include "jit/device_headers.h"

namespace deep_gemm::python {

namespace {

using driver::Device;
using driver::Kernel;
using driver::LaunchConfig;
using NoGil = py::call_guard<py::gil_scoped_release>;
using Handle = std::uintptr_t;

driver::Stream stream_of(Handle handle) {
    return reinterpret_cast<driver::Stream>(handle);
}
driver::Event event_of(Handle handle) {
    return reinterpret_cast<driver::Event>(handle);
}
driver::Graph graph_of(Handle handle) {
    return reinterpret_cast<driver::Graph>(handle);
}
template <typename T>
Handle handle_of(T* pointer) {
    return reinterpret_cast<Handle>(pointer);
}

// Device("emulator:sm_90a", seed=3) is the device named "emulator:sm_90a,seed=3".
Device* find_device(std::string name, const py::kwargs& options) {
    DG_CHECK(options.empty() || name.starts_with("emulator"), value,
             "device: got options for '{}', expected none; only the emulated GPU has options", name);
    if (!options.empty() && name == "emulator") name += ":sm_90a";
    for (const auto& [key, option] : options)
        name += fmt::format(",{}={}", py::str(key).cast<std::string>(), py::str(option).cast<std::string>());
    const py::gil_scoped_release no_gil;
    return &driver::device(name);
}

py::dict properties_of(const Device& device) {
    const driver::DeviceProperties& p = device.properties();
    py::dict result;
    result["name"] = p.name;
    result["arch"] = p.arch;
    result["compute_capability"] = py::make_tuple(p.compute_major, p.compute_minor);
    result["num_sms"] = p.num_sms;
    result["max_smem_per_block"] = p.max_smem_per_block;
    result["global_memory_bytes"] = p.global_memory_bytes;
    result["l2_bytes"] = p.l2_bytes;
    result["driver_version"] = p.driver_version;
    result["ordinal"] = p.ordinal;
    result["emulated"] = p.emulated;
    return result;
}

LaunchConfig launch_config(const DimArgument& grid, const DimArgument& block, const DimArgument& cluster,
                           u32 smem_bytes, Handle stream, bool programmatic_launch) {
    return {.grid = dim3_of(grid, "grid"),
            .cluster = dim3_of(cluster, "cluster"),
            .block = dim3_of(block, "block"),
            .dynamic_smem_bytes = smem_bytes,
            .stream = stream_of(stream),
            .programmatic_launch = programmatic_launch};
}

void check_runs(const Device& device, const Kernel& kernel) {
    DG_CHECK(
        device.can_run(kernel), value,
        "launch: got a kernel of another kind of device, expected one that {} loaded; load its module there",
        device.properties().name);
}

void launch(Device& device, const Kernel& kernel, const py::object& params, const DimArgument& grid,
            const DimArgument& block, const DimArgument& cluster, u32 smem_bytes,
            const std::vector<std::tuple<u64, u64, bool>>& memory, Handle stream, bool programmatic_launch) {
    check_runs(device, kernel);
    const BytesView bytes(params, false);
    std::vector<driver::MemoryRange> ranges;
    for (const auto& [address, size, writable] : memory) ranges.push_back({address, size, writable});
    const LaunchConfig config = launch_config(grid, block, cluster, smem_bytes, stream, programmatic_launch);
    const py::gil_scoped_release no_gil;
    device.launch(kernel, config, bytes.span(), ranges);
}

template <size_t N, typename T>
void fill_dims(T (&target)[N], const std::vector<T>& values, size_t expected, const char* name) {
    DG_CHECK(values.size() == expected && expected <= N, value,
             "tensor map: got {} {}, expected {}; pass one for each dimension", values.size(), name,
             expected);
    std::copy(values.begin(), values.end(), target);
}

py::bytes encode_tensor_map(Device& device, u64 address, const std::string& format,
                            const std::vector<u64>& dims, const std::vector<u64>& strides_bytes,
                            const std::vector<u32>& box, u32 swizzle, bool l2_promote_256b) {
    TensorMapDesc desc{.address = address,
                       .format = format_of(format),
                       .rank = static_cast<u32>(dims.size()),
                       .l2_promote_256b = l2_promote_256b};
    DG_CHECK(desc.rank >= 1 && desc.rank <= kMaxTensorMapRank, value,
             "tensor map: got {} dims, expected 1 to {}; pass fewer", desc.rank, kMaxTensorMapRank);
    fill_dims(desc.dims, dims, desc.rank, "dims");
    fill_dims(desc.strides_bytes, strides_bytes, desc.rank - 1, "strides_bytes");
    fill_dims(desc.box, box, desc.rank, "box sizes");
    switch (swizzle) {
        case 0: desc.swizzle = Swizzle::none; break;
        case 32: desc.swizzle = Swizzle::bytes_32; break;
        case 64: desc.swizzle = Swizzle::bytes_64; break;
        case 128: desc.swizzle = Swizzle::bytes_128; break;
        default:
            fail(ErrorKind::value, "tensor map: got swizzle {}, expected 0, 32, 64 or 128; pass one of them",
                 swizzle);
    }
    const TensorMap map = device.encode_tensor_map(desc);
    return bytes_of(std::as_bytes(std::span(&map, 1)));
}

void bind_memory(py::class_<Device, std::unique_ptr<Device, py::nodelete>>& type) {
    type.def("allocate", &Device::allocate, NoGil(), py::arg("num_bytes"),
             "Device memory; returns its address, also of 0 bytes.");
    type.def("release", &Device::release, NoGil(), py::arg("address"),
             "Gives back what allocate() returned; 0 is nothing.");
    type.def(
        "copy_to_device",
        [](Device& device, u64 destination, const py::object& source, Handle stream) {
            const BytesView bytes(source, false);
            const py::gil_scoped_release no_gil;
            device.copy_to_device(destination, bytes.span(), stream_of(stream));
        },
        py::arg("destination"), py::arg("source"), py::arg("stream") = 0,
        "Copies a contiguous array or bytes to an address.");
    type.def(
        "copy_to_host",
        [](Device& device, const py::object& destination, u64 source, Handle stream) {
            const BytesView bytes(destination, true);
            const py::gil_scoped_release no_gil;
            device.copy_to_host(bytes.span(), source, stream_of(stream));
        },
        py::arg("destination"), py::arg("source"), py::arg("stream") = 0,
        "Fills a contiguous writable array from an address; waits for the stream.");
    type.def(
        "copy_on_device",
        [](Device& device, u64 destination, u64 source, u64 num_bytes, Handle stream) {
            device.copy_on_device(destination, source, num_bytes, stream_of(stream));
        },
        NoGil(), py::arg("destination"), py::arg("source"), py::arg("num_bytes"), py::arg("stream") = 0,
        "Copies between two addresses of the device.");
    type.def(
        "fill_bytes",
        [](Device& device, u64 destination, u8 value, u64 num_bytes, Handle stream) {
            device.fill_bytes(destination, value, num_bytes, stream_of(stream));
        },
        NoGil(), py::arg("destination"), py::arg("value"), py::arg("num_bytes"), py::arg("stream") = 0,
        "Sets each byte from an address on.");
}

void bind_launch(py::class_<Device, std::unique_ptr<Device, py::nodelete>>& type) {
    type.def(
        "load_module",
        [](Device& device, const py::object& image, const std::string& label) {
            const BytesView bytes(image, false);
            const py::gil_scoped_release no_gil;
            return device.load_module(bytes.span(), label);
        },
        py::arg("image"), py::arg("label") = "",
        "Loads what compile() returned for this device's image_kind.");
    type.def("launch", &launch, py::arg("kernel"), py::arg("params"), py::kw_only(), py::arg("grid") = 1,
             py::arg("block") = 32, py::arg("cluster") = 1, py::arg("smem_bytes") = 0,
             py::arg("memory") = py::tuple(), py::arg("stream") = 0, py::arg("programmatic_launch") = false,
             "Launches with `params` as the whole parameter buffer. `memory` lists (address, num_bytes, "
             "writable): what the kernel may touch in global memory, checked by the emulator.");
    type.def(
        "max_active_clusters",
        [](Device& device, const Kernel& kernel, const DimArgument& grid, const DimArgument& block,
           const DimArgument& cluster, u32 smem_bytes) {
            check_runs(device, kernel);
            return device.max_active_clusters(kernel,
                                              launch_config(grid, block, cluster, smem_bytes, 0, false));
        },
        NoGil(), py::arg("kernel"), py::kw_only(), py::arg("grid") = 1, py::arg("block") = 32,
        py::arg("cluster") = 1, py::arg("smem_bytes") = 0,
        "How many clusters of such a launch run at once; 0: it cannot run.");
    type.def("fail_launch", &emulator::fail_launch, NoGil(), py::arg("number"),
             "The number-th launch from now on, of a kernel or a graph, fails; 0: none does. Returns what is "
             "left of the number before. Of the emulated GPU, for tests of what a failure leaves behind.");
    type.def("encode_tensor_map", &encode_tensor_map, py::kw_only(), py::arg("address"), py::arg("format"),
             py::arg("dims"), py::arg("strides_bytes"), py::arg("box"), py::arg("swizzle") = 0,
             py::arg("l2_promote_256b") = true,
             "The 128 bytes a kernel hands to TMA. dims and box are in elements, innermost first; "
             "strides_bytes has one entry less; swizzle is 0, 32, 64 or 128.");
}

void bind_streams(py::class_<Device, std::unique_ptr<Device, py::nodelete>>& type) {
    type.def(
        "create_stream", [](Device& d) { return handle_of(d.create_stream()); }, NoGil(),
        "A stream of its own; returns its handle.");
    type.def(
        "destroy_stream", [](Device& d, Handle s) { d.destroy_stream(stream_of(s)); }, NoGil(),
        py::arg("stream"), "Ends what create_stream() returned.");
    type.def(
        "synchronize", [](Device& d, Handle s) { d.synchronize(stream_of(s)); }, NoGil(),
        py::arg("stream") = 0, "Waits for all that was launched on the stream.");
    type.def(
        "create_event", [](Device& d) { return handle_of(d.create_event()); }, NoGil(),
        "An event that can be timed; returns its handle.");
    type.def(
        "destroy_event", [](Device& d, Handle e) { d.destroy_event(event_of(e)); }, NoGil(), py::arg("event"),
        "Ends what create_event() returned.");
    type.def(
        "record", [](Device& d, Handle e, Handle s) { d.record(event_of(e), stream_of(s)); }, NoGil(),
        py::arg("event"), py::arg("stream") = 0, "The event happens when the stream gets there.");
    type.def(
        "elapsed_ms", [](Device& d, Handle a, Handle b) { return d.elapsed_ms(event_of(a), event_of(b)); },
        NoGil(), py::arg("start"), py::arg("stop"),
        "Milliseconds between two recorded events; waits for `stop`.");
    type.def(
        "begin_capture", [](Device& d, Handle s) { d.begin_capture(stream_of(s)); }, NoGil(),
        py::arg("stream"), "From here to end_capture() the stream's work is recorded, not run.");
    type.def(
        "end_capture", [](Device& d, Handle s) { return handle_of(d.end_capture(stream_of(s))); }, NoGil(),
        py::arg("stream"), "Ends the recording; returns the graph's handle.");
    type.def(
        "launch_graph", [](Device& d, Handle g, Handle s) { d.launch_graph(graph_of(g), stream_of(s)); },
        NoGil(), py::arg("graph"), py::arg("stream") = 0, "Runs what was captured.");
    type.def(
        "destroy_graph", [](Device& d, Handle g) { d.destroy_graph(graph_of(g)); }, NoGil(), py::arg("graph"),
        "Ends what end_capture() returned.");
}

void bind_types(py::module_& module) {
    py::class_<Kernel, std::unique_ptr<Kernel, py::nodelete>>(module, "Kernel",
                                                              "One entry point of a loaded module.")
        .def_property_readonly("name", &Kernel::name, "The lowered (mangled) name.")
        .def_property_readonly("attributes", [](const Kernel& kernel) {
            const driver::KernelAttributes a = kernel.attributes();
            py::dict result;
            result["num_registers"] = a.num_registers;
            result["local_bytes"] = a.local_bytes;
            result["static_smem_bytes"] = a.static_smem_bytes;
            return result;
        });
    py::class_<driver::Module, std::shared_ptr<driver::Module>>(module, "Module", "A loaded image.")
        .def("kernel", &driver::Module::kernel, NoGil(), py::return_value_policy::reference_internal,
             py::arg("lowered_name"));

    py::class_<Device, std::unique_ptr<Device, py::nodelete>> device(
        module, "Device",
        "A GPU or the emulated one. Device(), Device('cuda:1'), Device('emulator:sm_90a', seed=3): the "
        "same name and options give the same device. docs/env.md lists the options of the emulator.");
    device.def(py::init(&find_device), py::arg("name") = "");
    device.def("__eq__", [](const Device& d, const py::object& other) {
        return py::isinstance<Device>(other) && other.cast<Device*>() == &d;
    });
    device.def("__hash__", [](const Device& d) { return std::hash<const Device*>()(&d); });
    device.def("__repr__",
               [](const Device& d) { return fmt::format("Device('{}')", driver::registry_name_of(d)); });
    device.def_property_readonly("properties", &properties_of, "What the driver says of it, as a dict.");
    device.def_property_readonly(
        "name", [](const Device& d) { return d.properties().name; },
        "The GPU's name; repr() shows the one that gives this device.");
    device.def_property_readonly(
        "arch", [](const Device& d) { return d.properties().arch; }, "NVRTC target: '90a'.");
    device.def_property_readonly("free_memory_bytes", &Device::free_memory_bytes,
                                 "What allocate() could give at most.");
    device.def_property_readonly(
        "num_sms", [](const Device& d) { return d.properties().num_sms; }, "Multiprocessors.");
    device.def_property_readonly(
        "emulated", [](const Device& d) { return d.properties().emulated; },
        "Whether it is the emulated GPU.");
    device.def_property_readonly(
        "image_kind", [](const Device& d) { return name_of(d.image_kind()); }, "'ptx' or 'cubin'.");
    bind_memory(device);
    bind_launch(device);
    bind_streams(device);
}

struct Compiled {
    driver::CompileResult result;
};

Compiled compile(std::string source, std::vector<std::string> entries, const std::string& arch,
                 const std::string& kind, const std::vector<std::string>& options, std::string name) {
    const bool ptx = image_kind_of(kind) == driver::ImageKind::ptx;
    std::vector<driver::SourceHeader> headers;
    for (const jit::DeviceHeader& header : jit::device_headers())
        headers.push_back({header.name, header.text});
    driver::CompileRequest request{
        .name = std::move(name),
        .source = std::move(source),
        .entries = std::move(entries),
        .options = {"-std=c++20", "-default-device",
                    fmt::format("--gpu-architecture={}_{}", ptx ? "compute" : "sm", arch)},
        .headers = headers,
        .kind = image_kind_of(kind)};
    request.options.insert(request.options.end(), options.begin(), options.end());
    const py::gil_scoped_release no_gil;
    Compiled compiled{driver::nvrtc_compile(request)};
    DG_CHECK(compiled.result.ok, compile, "{} does not compile for sm_{}; the compiler says:\n{}",
             request.name, arch, compiled.result.log);
    return compiled;
}

void bind_compiler(py::module_& module) {
    py::class_<Compiled>(module, "Compiled", "What the compiler made of one source text.")
        .def_property_readonly(
            "image", [](const Compiled& c) { return py::bytes(c.result.image); }, "Cubin bytes or PTX text.")
        .def_property_readonly("lowered_names", [](const Compiled& c) { return c.result.lowered_names; })
        .def_property_readonly("log", [](const Compiled& c) { return c.result.log; });
    module.def("compile", &compile, py::arg("source"), py::arg("entries"), py::kw_only(),
               py::arg("arch") = "90a", py::arg("kind") = "ptx",
               py::arg("options") = std::vector<std::string>{}, py::arg("name") = "kernel.cu",
               "Compiles CUDA C++ with NVRTC, uncached. The device headers are found as <deep_gemm/...>. "
               "`entries` are name expressions ('my_kernel<4>'); their lowered names come back in order.");
    module.def("set_nvrtc_wheel_folders", &driver::set_nvrtc_wheel_folders, py::arg("folders"),
               "Folders (site-packages) that may hold the nvidia-cuda-nvrtc wheel.");
    module.def(
        "nvrtc_info",
        [] {
            const driver::NvrtcInfo info = [] {
                const py::gil_scoped_release no_gil;
                return driver::nvrtc_info();
            }();
            py::dict result;
            result["path"] = info.path;
            result["version"] = py::make_tuple(info.major, info.minor);
            result["archs"] = info.archs;
            result["remark"] = info.remark;
            return result;
        },
        "Opens NVRTC and says which one it is.");
    module.def(
        "device_headers",
        [] {
            py::dict result;
            for (const jit::DeviceHeader& header : jit::device_headers())
                result[py::str(std::string(header.name))] = std::string(header.text);
            return result;
        },
        "The device headers inside the library: name to text.");
}

}  // namespace

void bind_device(py::module_& module) {
    bind_types(module);
    bind_compiler(module);
}

}  // namespace deep_gemm::python
