// The narrow waist: everything above talks to a GPU through Device, and never knows whether it is libcuda
// (driver/cuda_device.h) or the emulated GPU (emulator/emulated_device.h).
// All calls throw deep_gemm::Error; all are safe to use from several threads on one Device.
#pragma once

#include <deep_gemm/spec/tensor_map.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace deep_gemm::driver {

struct Dim3 {
    u32 x = 1, y = 1, z = 1;
};

// Opaque handles; on CUDA they are CUstream / CUevent / CUgraphExec. A null Stream is the default stream.
using Stream = struct StreamTag*;
using Event = struct EventTag*;
using Graph = struct GraphTag*;

enum class ImageKind { cubin, ptx };
[[nodiscard]] constexpr const char* name_of(ImageKind kind) {
    return kind == ImageKind::ptx ? "ptx" : "cubin";
}

struct DeviceProperties {
    std::string name;  // "NVIDIA H200", "emulated sm_90a"
    std::string arch;  // NVRTC target without prefix: "90a", "100a", "120a"
    u32 compute_major = 0, compute_minor = 0;
    u32 num_sms = 0;
    u32 max_smem_per_block = 0;  // dynamic shared memory a block may opt in to, bytes
    u64 global_memory_bytes = 0;
    u64 l2_bytes = 0;
    u32 driver_version = 0;  // e.g. 13000; 0 on the emulator
    u32 ordinal = 0;
    bool emulated = false;

    // CTAs of the largest cluster: sixteen on Hopper and on Blackwell of data centres, else the eight that every GPU
    // with clusters has. 1: no clusters.
    [[nodiscard]] constexpr u32 max_cluster() const {
        return compute_major == 9 || compute_major == 10 ? 16 : compute_major > 10 ? 8 : 1;
    }
};

struct KernelAttributes {
    u32 num_registers = 0;
    u32 local_bytes = 0;  // > 0 means spills or a stack frame
    u32 static_smem_bytes = 0;
};

// One entry point of a loaded module. Owned by the Module.
class Kernel {
  public:
    virtual ~Kernel() = default;
    [[nodiscard]] virtual const std::string& name() const = 0;
    [[nodiscard]] virtual KernelAttributes attributes() const = 0;
};

class Module {
  public:
    virtual ~Module() = default;
    // The lowered (mangled) name. The first call raises the kernel's dynamic shared memory limit to the
    // device's.
    [[nodiscard]] virtual const Kernel& kernel(std::string_view lowered_name) = 0;
};

// Throws when what the parameters point to is not what the kernel relies on.
using CheckInputs = void (*)(std::span<const std::byte> params);

struct LaunchConfig {
    Dim3 grid, cluster, block;
    u32 dynamic_smem_bytes = 0;
    Stream stream = nullptr;
    bool programmatic_launch = false;    // PDL: may start before its predecessor in the stream has finished
    CheckInputs check_inputs = nullptr;  // the emulator calls it right before the kernel; CUDA ignores it
};

// What a kernel may touch in global memory. The emulator checks every access against it; CUDA ignores it.
struct MemoryRange {
    u64 address = 0;
    u64 bytes = 0;
    bool writable = false;
    bool constant = false;  // written long ago: may be read before griddepcontrol.wait
};

class Device {
  public:
    virtual ~Device() = default;

    [[nodiscard]] virtual const DeviceProperties& properties() const = 0;
    [[nodiscard]] virtual ImageKind image_kind() const = 0;

    // Memory. Addresses are device addresses; on the emulator they are host addresses. 0 bytes have one, too.
    [[nodiscard]] virtual u64 allocate(u64 bytes) = 0;
    virtual void release(u64 address) = 0;
    [[nodiscard]] virtual u64 free_memory_bytes() = 0;  // what allocate() could give at most
    // In a capture, CUDA reads `source` at every replay; the emulator keeps a copy of it.
    virtual void copy_to_device(u64 destination, std::span<const std::byte> source, Stream stream) = 0;
    // Synchronises, so it is an error while `stream` is being captured.
    virtual void copy_to_host(std::span<std::byte> destination, u64 source, Stream stream) = 0;
    virtual void copy_on_device(u64 destination, u64 source, u64 bytes, Stream stream) = 0;
    virtual void fill_bytes(u64 destination, u8 value, u64 bytes, Stream stream) = 0;

    // Modules and launches. `label` appears in error messages (kernel name, spec).
    [[nodiscard]] virtual std::shared_ptr<Module> load_module(std::span<const std::byte> image,
                                                              std::string_view label) = 0;
    // Whether a kernel is of this kind of device. The calls below take no other.
    [[nodiscard]] virtual bool can_run(const Kernel& kernel) const = 0;
    // `params` is the kernel's whole parameter buffer, no byte more: for our kernels, its one by-value
    // argument. Asynchronous on CUDA; complete on return on the emulator.
    virtual void launch(const Kernel& kernel, const LaunchConfig& config, std::span<const std::byte> params,
                        std::span<const MemoryRange> memory) = 0;
    // How many clusters of this launch fit the device at once (0: it cannot run).
    [[nodiscard]] virtual u32 max_active_clusters(const Kernel& kernel, const LaunchConfig& config) = 0;

    [[nodiscard]] virtual TensorMap encode_tensor_map(const TensorMapDesc& desc) = 0;

    // Streams, events, graphs.
    [[nodiscard]] virtual Stream create_stream() = 0;
    virtual void destroy_stream(Stream stream) = 0;
    virtual void synchronize(Stream stream) = 0;
    [[nodiscard]] virtual Event create_event() = 0;
    virtual void destroy_event(Event event) = 0;
    virtual void record(Event event, Stream stream) = 0;
    [[nodiscard]] virtual float elapsed_ms(Event start, Event stop) = 0;  // synchronises on `stop`
    virtual void begin_capture(Stream stream) = 0;
    [[nodiscard]] virtual Graph end_capture(Stream stream) = 0;
    virtual void launch_graph(Graph graph, Stream stream) = 0;
    virtual void destroy_graph(Graph graph) = 0;
};

// "cuda", "cuda:1", "emulator", "emulator:sm_90a", "emulator:sm_90a,seed=3"; empty: $DG_DEVICE, else the
// current CUDA device where a driver and a GPU exist, else emulator:sm_90a. Devices are created once per name
// and live as long as the process (device.cpp; the emulator registers its factory, so driver/ does not
// include emulator/).
[[nodiscard]] Device& device(std::string_view name = {});
// The emulated device of arrays that have nowhere else to go: $DG_DEVICE where it names one, else
// emulator:sm_90a. Throws Error(value) where $DG_DEVICE is no name.
[[nodiscard]] Device& host_memory_device();
[[nodiscard]] std::string registry_name_of(
    const Device& device);  // the name that gives this device, nothing left to decide

// Gets all that follows "emulator:", an arch and options: "sm_90a,seed=3". Throws Error(value) on what it
// does not know.
using DeviceFactory = std::unique_ptr<Device> (*)(std::string_view description);
void register_emulator(DeviceFactory factory);

}  // namespace deep_gemm::driver
