// libcuda's entry points, opened at run time: no CUDA header is needed to build, no driver to import.
// Types, constants and struct layouts are declared here after the driver ABI; tests/host checks them against
// cuda.h where a toolkit is installed. Only what CudaDevice uses is listed.
#pragma once

#include <deep_gemm/spec/tensor_map.h>

#include "base/error.h"
#include "driver/shared_library.h"

#include <cstddef>
#include <source_location>
#include <string>
#include <string_view>
#include <type_traits>

namespace deep_gemm::driver::cuda {

using Result = int;  // CUresult
using DeviceId = int;
using Address = unsigned long long;
using Context = struct ContextTag*;
using ModuleHandle = struct ModuleTag*;
using Function = struct FunctionTag*;
using StreamHandle = struct StreamHandleTag*;
using EventHandle = struct EventHandleTag*;
using GraphHandle = struct GraphHandleTag*;
using GraphExec = struct GraphExecTag*;

inline constexpr Result kSuccess = 0, kNotReady = 600;

enum DeviceAttribute : int {
    kMultiprocessorCount = 16,
    kL2CacheSize = 38,
    kComputeCapabilityMajor = 75,
    kComputeCapabilityMinor = 76,
    kMaxSharedMemoryPerBlockOptin = 97,
};

enum FunctionAttribute : int {
    kSharedSizeBytes = 1,
    kLocalSizeBytes = 3,
    kNumRegs = 4,
    kMaxDynamicSharedSizeBytes = 8,
    kNonPortableClusterSizeAllowed = 14,
};

enum JitOption : int { kJitErrorLogBuffer = 5, kJitErrorLogBufferSizeBytes = 6 };
enum LaunchAttributeId : unsigned { kClusterDimension = 4, kProgrammaticStreamSerialization = 6 };

union LaunchAttributeValue {
    char padding[64];
    struct {
        unsigned x, y, z;
    } cluster;
    int programmatic_stream_serialization;
};

struct LaunchAttribute {
    LaunchAttributeId id;
    char padding[4];
    LaunchAttributeValue value;
};

struct LaunchConfiguration {
    unsigned grid_x, grid_y, grid_z;
    unsigned block_x, block_y, block_z;
    unsigned shared_memory_bytes;
    StreamHandle stream;
    LaunchAttribute* attributes;
    unsigned num_attributes;
};

enum TensorMapDataType : int {
    kUint8 = 0,
    kInt32 = 3,
    kFloat16 = 6,
    kFloat32 = 7,
    kBfloat16 = 9,
};
enum TensorMapSwizzle : int { kSwizzleNone = 0, kSwizzle32B = 1, kSwizzle64B = 2, kSwizzle128B = 3 };
enum TensorMapL2Promotion : int { kL2PromotionNone = 0, kL2Promotion256B = 3 };
enum StreamCaptureMode : int { kCaptureGlobal = 0, kCaptureThreadLocal = 1, kCaptureRelaxed = 2 };

// Throws Error(driver): the call with its arguments, the error's name and text, where it was made, what to
// do.
[[noreturn]] void fail_call(std::string_view name, std::string_view arguments, Result result,
                            const std::source_location& where);

template <typename T>
std::string argument_text(T value) {
    if constexpr (std::is_same_v<T, const char*>)
        return fmt::format("'{}'", value);
    else if constexpr (std::is_pointer_v<T>)
        return fmt::format("{}", static_cast<const void*>(value));
    else if constexpr (std::is_enum_v<T>)
        return fmt::format("{}", static_cast<int>(value));
    else if constexpr (std::is_same_v<T, Address>)
        return fmt::format("{:#x}", value);
    else
        return fmt::format("{}", value);
}

// One function of libcuda. Calling it throws on any result but success; raw() hands the result back.
template <typename... Args>
struct Entry {
    const char* name;
    Result (*function)(Args...) = nullptr;

    void operator()(Args... args, const std::source_location where = std::source_location::current()) const {
        const Result result = function(args...);
        if (result == kSuccess) [[likely]]
            return;
        std::string text;
        ((text += (text.empty() ? "" : ", ") + argument_text(args)), ...);
        fail_call(name, text, result, where);
    }
    Result raw(Args... args) const noexcept { return function(args...); }
};

struct Api {
    SharedLibrary library;
    int version = 0;  // of the driver: 13000 is CUDA 13.0

    Entry<unsigned> init{"cuInit"};
    Entry<int*> driver_get_version{"cuDriverGetVersion"};
    Entry<Result, const char**> get_error_name{"cuGetErrorName"};
    Entry<Result, const char**> get_error_string{"cuGetErrorString"};

    Entry<int*> device_get_count{"cuDeviceGetCount"};
    Entry<DeviceId*, int> device_get{"cuDeviceGet"};
    Entry<char*, int, DeviceId> device_get_name{"cuDeviceGetName"};
    Entry<int*, DeviceAttribute, DeviceId> device_get_attribute{"cuDeviceGetAttribute"};
    Entry<size_t*, DeviceId> device_total_mem{"cuDeviceTotalMem_v2"};

    Entry<Context*, DeviceId> primary_ctx_retain{"cuDevicePrimaryCtxRetain"};
    Entry<Context*> ctx_get_current{"cuCtxGetCurrent"};
    Entry<DeviceId*> ctx_get_device{"cuCtxGetDevice"};
    Entry<Context> ctx_push_current{"cuCtxPushCurrent_v2"};
    Entry<Context*> ctx_pop_current{"cuCtxPopCurrent_v2"};

    Entry<Address*, size_t> mem_alloc{"cuMemAlloc_v2"};
    Entry<Address> mem_free{"cuMemFree_v2"};
    Entry<size_t*, size_t*> mem_get_info{"cuMemGetInfo_v2"};
    Entry<Address, const void*, size_t, StreamHandle> memcpy_htod_async{"cuMemcpyHtoDAsync_v2"};
    Entry<void*, Address, size_t, StreamHandle> memcpy_dtoh_async{"cuMemcpyDtoHAsync_v2"};
    Entry<Address, Address, size_t, StreamHandle> memcpy_dtod_async{"cuMemcpyDtoDAsync_v2"};
    Entry<Address, unsigned char, size_t, StreamHandle> memset_d8_async{"cuMemsetD8Async"};

    Entry<ModuleHandle*, const void*, unsigned, JitOption*, void**> module_load_data_ex{"cuModuleLoadDataEx"};
    Entry<ModuleHandle> module_unload{"cuModuleUnload"};
    Entry<Function*, ModuleHandle, const char*> module_get_function{"cuModuleGetFunction"};
    Entry<int*, FunctionAttribute, Function> func_get_attribute{"cuFuncGetAttribute"};
    Entry<Function, FunctionAttribute, int> func_set_attribute{"cuFuncSetAttribute"};
    Entry<Function, size_t, size_t*, size_t*> func_get_param_info{"cuFuncGetParamInfo"};
    Entry<const LaunchConfiguration*, Function, void**, void**> launch_kernel_ex{"cuLaunchKernelEx"};
    Entry<int*, Function, const LaunchConfiguration*> occupancy_max_active_clusters{
        "cuOccupancyMaxActiveClusters"};
    Entry<TensorMap*, TensorMapDataType, unsigned, void*, const u64*, const u64*, const unsigned*,
          const unsigned*, int, TensorMapSwizzle, TensorMapL2Promotion, int>
        tensor_map_encode_tiled{"cuTensorMapEncodeTiled"};

    Entry<StreamHandle*, unsigned> stream_create{"cuStreamCreate"};
    Entry<StreamHandle> stream_destroy{"cuStreamDestroy_v2"};
    Entry<StreamHandle> stream_synchronize{"cuStreamSynchronize"};
    Entry<StreamHandle, StreamCaptureMode> stream_begin_capture{"cuStreamBeginCapture_v2"};
    Entry<StreamHandle, GraphHandle*> stream_end_capture{"cuStreamEndCapture"};
    Entry<StreamCaptureMode*> thread_exchange_capture_mode{"cuThreadExchangeStreamCaptureMode"};
    Entry<EventHandle*, unsigned> event_create{"cuEventCreate"};
    Entry<EventHandle> event_destroy{"cuEventDestroy_v2"};
    Entry<EventHandle, StreamHandle> event_record{"cuEventRecord"};
    Entry<EventHandle> event_synchronize{"cuEventSynchronize"};
    Entry<float*, EventHandle, EventHandle> event_elapsed_time{"cuEventElapsedTime"};
    Entry<GraphExec*, GraphHandle, unsigned long long> graph_instantiate{"cuGraphInstantiateWithFlags"};
    Entry<GraphHandle> graph_destroy{"cuGraphDestroy"};
    Entry<GraphExec> graph_exec_destroy{"cuGraphExecDestroy"};
    Entry<GraphExec, StreamHandle> graph_launch{"cuGraphLaunch"};
};

// The driver, opened and initialised on the first call; throws Error(driver) where it is missing or too old.
[[nodiscard]] const Api& api();

// "cuDriverGetVersion": 13000; 0 where there is no driver. Initialises nothing, so a process may fork after
// it.
[[nodiscard]] int driver_version() noexcept;

// Why there is no usable GPU here, one sentence; empty where there is one. Never throws.
[[nodiscard]] const std::string& why_unavailable() noexcept;
// A driver is installed, usable or not.
[[nodiscard]] bool driver_found() noexcept;

}  // namespace deep_gemm::driver::cuda
