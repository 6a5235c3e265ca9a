#include "driver/cuda_device.h"

#include "driver/cuda_module.h"
#include "driver/tensor_map_check.h"

#include <array>

namespace deep_gemm::driver {

namespace {

using cuda::Api;

cuda::StreamHandle handle(Stream stream) {
    return reinterpret_cast<cuda::StreamHandle>(stream);
}
cuda::EventHandle handle(Event event) {
    return reinterpret_cast<cuda::EventHandle>(event);
}
cuda::GraphExec handle(Graph graph) {
    return reinterpret_cast<cuda::GraphExec>(graph);
}

// A LaunchConfig in the driver's words. Holds the attributes the configuration points to.
class Launch {
  public:
    // `name_cluster` also spells out a cluster of one, which occupancy queries ask for.
    explicit Launch(const LaunchConfig& config, bool name_cluster = false) {
        u32 count = 0;
        const Dim3 cluster = config.cluster;
        if (name_cluster || cluster.x * cluster.y * cluster.z > 1) {
            attributes_[count].id = cuda::kClusterDimension;
            attributes_[count++].value.cluster = {cluster.x, cluster.y, cluster.z};
        }
        if (config.programmatic_launch) {
            attributes_[count].id = cuda::kProgrammaticStreamSerialization;
            attributes_[count++].value.programmatic_stream_serialization = 1;
        }
        configuration_ = {config.grid.x,
                          config.grid.y,
                          config.grid.z,
                          config.block.x,
                          config.block.y,
                          config.block.z,
                          config.dynamic_smem_bytes,
                          handle(config.stream),
                          attributes_.data(),
                          count};
    }
    Launch(const Launch&) = delete;
    Launch& operator=(const Launch&) = delete;

    [[nodiscard]] const cuda::LaunchConfiguration* get() const { return &configuration_; }

  private:
    std::array<cuda::LaunchAttribute, 2> attributes_ = {};
    cuda::LaunchConfiguration configuration_ = {};
};

// Offset of kernel parameters in constant bank 0, as ptxas lays it out.
size_t constant_bank_params(u32 compute_major) {
    return compute_major >= 10 ? 0x380 : compute_major == 9 ? 0x210 : 0x160;
}

std::string arch_of(int major, int minor) {
    return fmt::format("{}{}{}", major, minor, major >= 9 ? "a" : "");
}

cuda::TensorMapDataType data_type(Format format) {
    switch (format) {
        case Format::fp32: return cuda::kFloat32;
        case Format::fp16: return cuda::kFloat16;
        case Format::bf16: return cuda::kBfloat16;
        case Format::int32: return cuda::kInt32;
        default: return cuda::kUint8;  // one byte formats, and pairs of FP4
    }
}

cuda::TensorMapSwizzle swizzle_of(Swizzle swizzle) {
    switch (swizzle) {
        case Swizzle::bytes_32: return cuda::kSwizzle32B;
        case Swizzle::bytes_64: return cuda::kSwizzle64B;
        case Swizzle::bytes_128: return cuda::kSwizzle128B;
        case Swizzle::none: break;
    }
    return cuda::kSwizzleNone;
}

class CudaDevice final : public Device {
  public:
    explicit CudaDevice(u32 ordinal) : api_(cuda::api()) {
        int count = 0;
        api_.device_get_count(&count);
        DG_CHECK(static_cast<int>(ordinal) < count, value,
                 "device: got cuda:{}, expected cuda:0 to cuda:{}; check CUDA_VISIBLE_DEVICES", ordinal,
                 count - 1);
        api_.device_get(&id_, static_cast<int>(ordinal));
        api_.primary_ctx_retain(&context_, id_);  // released by the driver at process exit
        read_properties(ordinal);
    }

    const DeviceProperties& properties() const override { return properties_; }
    ImageKind image_kind() const override { return ImageKind::cubin; }

    u64 allocate(u64 bytes) override {
        const CurrentContext scope(api_, context_);
        const AllowedInCapture allowed(api_);
        cuda::Address address = 0;
        api_.mem_alloc(&address, std::max<u64>(bytes, 1));
        return address;
    }
    void release(u64 address) override {
        const CurrentContext scope(api_, context_);
        api_.mem_free(address);
    }
    u64 free_memory_bytes() override {
        const CurrentContext scope(api_, context_);
        size_t available = 0, total = 0;
        api_.mem_get_info(&available, &total);
        return available;
    }
    void copy_to_device(u64 destination, std::span<const std::byte> source, Stream stream) override {
        if (source.empty()) return;
        const CurrentContext scope(api_, context_);
        api_.memcpy_htod_async(destination, source.data(), source.size(), handle(stream));
    }
    void copy_to_host(std::span<std::byte> destination, u64 source, Stream stream) override {
        const CurrentContext scope(api_, context_);
        if (!destination.empty())
            api_.memcpy_dtoh_async(destination.data(), source, destination.size(), handle(stream));
        api_.stream_synchronize(handle(stream));
    }
    void copy_on_device(u64 destination, u64 source, u64 bytes, Stream stream) override {
        if (bytes == 0) return;
        const CurrentContext scope(api_, context_);
        api_.memcpy_dtod_async(destination, source, bytes, handle(stream));
    }
    void fill_bytes(u64 destination, u8 value, u64 bytes, Stream stream) override {
        if (bytes == 0) return;
        const CurrentContext scope(api_, context_);
        api_.memset_d8_async(destination, value, bytes, handle(stream));
    }

    std::shared_ptr<Module> load_module(std::span<const std::byte> image, std::string_view label) override {
        const CurrentContext scope(api_, context_);
        const AllowedInCapture allowed(api_);
        // Enough for what ptxas or the loader has to say about PTX or a foreign cubin.
        std::string text(8192, '\0');
        cuda::JitOption options[] = {cuda::kJitErrorLogBuffer, cuda::kJitErrorLogBufferSizeBytes};
        void* values[] = {text.data(), reinterpret_cast<void*>(text.size())};
        const std::string terminated(reinterpret_cast<const char*>(image.data()),
                                     image.size());  // PTX must end in 0
        cuda::ModuleHandle module = nullptr;
        const auto result = api_.module_load_data_ex.raw(&module, terminated.c_str(), 2, options, values);
        if (result != cuda::kSuccess)
            cuda::fail_call(api_.module_load_data_ex.name,
                            fmt::format("{} bytes of '{}' on sm_{}, log '{}'", image.size(), label,
                                        properties_.arch, text.c_str()),
                            result, std::source_location::current());
        return std::make_shared<CudaModule>(api_, context_, properties_.max_smem_per_block,
                                            constant_bank_params(properties_.compute_major), module);
    }

    bool can_run(const Kernel& kernel) const override {
        return dynamic_cast<const CudaKernel*>(&kernel) != nullptr;
    }

    void launch(const Kernel& kernel, const LaunchConfig& config, std::span<const std::byte> params,
                std::span<const MemoryRange>) override {
        const CurrentContext scope(api_, context_);
        const Launch launch(config);
        const auto& cuda_kernel = static_cast<const CudaKernel&>(kernel);
        DG_CHECK(params.size() == cuda_kernel.param_bytes(), value,
                 "launch of {}: got {} bytes of parameters, expected {}; pass the kernel's whole "
                 "parameter struct",
                 kernel.name(), params.size(), cuda_kernel.param_bytes());
        std::array<void*, kMaxKernelParams> arguments;
        size_t count = 0;
        for (size_t offset : cuda_kernel.param_offsets())
            arguments[count++] = const_cast<std::byte*>(params.data()) + offset;
        const auto result =
            api_.launch_kernel_ex.raw(launch.get(), cuda_kernel.function(), arguments.data(), nullptr);
        if (result != cuda::kSuccess) [[unlikely]]
            fail_launch(kernel, config, params.size(), result);
    }

    u32 max_active_clusters(const Kernel& kernel, const LaunchConfig& config) override {
        const CurrentContext scope(api_, context_);
        int clusters = 0;
        api_.occupancy_max_active_clusters(&clusters, static_cast<const CudaKernel&>(kernel).function(),
                                           Launch(config, true).get());
        return static_cast<u32>(clusters);
    }

    TensorMap encode_tensor_map(const TensorMapDesc& desc) override {
        check_tensor_map(desc);
        // Pairs of FP4 travel as bytes: the hardware's 4-bit types only matter where TMA unpacks them.
        const u32 per_byte = bits_of(desc.format) == 4 ? 2 : 1;
        u64 dims[kMaxTensorMapRank];
        u32 box[kMaxTensorMapRank], steps[kMaxTensorMapRank];
        for (u32 i = 0; i < kMaxTensorMapRank; ++i) {
            dims[i] = i == 0 ? desc.dims[i] / per_byte : desc.dims[i];
            box[i] = i == 0 ? desc.box[i] / per_byte : desc.box[i];
            steps[i] = 1;
        }
        alignas(128) TensorMap map;  // what newer drivers declare
        const CurrentContext scope(api_, context_);
        api_.tensor_map_encode_tiled(
            &map, data_type(desc.format), desc.rank, reinterpret_cast<void*>(desc.address), dims,
            desc.strides_bytes, box, steps, 0, swizzle_of(desc.swizzle),
            desc.l2_promote_256b ? cuda::kL2Promotion256B : cuda::kL2PromotionNone, 0);
        return map;
    }

    Stream create_stream() override {
        constexpr unsigned kNonBlocking = 1;
        const CurrentContext scope(api_, context_);
        cuda::StreamHandle stream = nullptr;
        api_.stream_create(&stream, kNonBlocking);
        return reinterpret_cast<Stream>(stream);
    }
    void destroy_stream(Stream stream) override {
        const CurrentContext scope(api_, context_);
        api_.stream_destroy(handle(stream));
    }
    void synchronize(Stream stream) override {
        const CurrentContext scope(api_, context_);
        api_.stream_synchronize(handle(stream));
    }
    Event create_event() override {
        const CurrentContext scope(api_, context_);
        cuda::EventHandle event = nullptr;
        api_.event_create(&event, 0);
        return reinterpret_cast<Event>(event);
    }
    void destroy_event(Event event) override {
        const CurrentContext scope(api_, context_);
        api_.event_destroy(handle(event));
    }
    void record(Event event, Stream stream) override {
        const CurrentContext scope(api_, context_);
        api_.event_record(handle(event), handle(stream));
    }
    float elapsed_ms(Event start, Event stop) override {
        const CurrentContext scope(api_, context_);
        float milliseconds = 0;
        api_.event_synchronize(handle(stop));
        api_.event_elapsed_time(&milliseconds, handle(start), handle(stop));
        return milliseconds;
    }
    void begin_capture(Stream stream) override {
        DG_CHECK(stream, value,
                 "begin_capture: got the default stream, expected a created one; capture on create_stream()");
        const CurrentContext scope(api_, context_);
        api_.stream_begin_capture(handle(stream), cuda::kCaptureThreadLocal);
    }
    Graph end_capture(Stream stream) override {
        const CurrentContext scope(api_, context_);
        cuda::GraphHandle graph = nullptr;
        api_.stream_end_capture(handle(stream), &graph);
        cuda::GraphExec executable = nullptr;
        const auto result = api_.graph_instantiate.raw(&executable, graph, 0);
        api_.graph_destroy.raw(graph);
        if (result != cuda::kSuccess)
            cuda::fail_call(api_.graph_instantiate.name, "captured graph", result,
                            std::source_location::current());
        return reinterpret_cast<Graph>(executable);
    }
    void launch_graph(Graph graph, Stream stream) override {
        const CurrentContext scope(api_, context_);
        api_.graph_launch(handle(graph), handle(stream));
    }
    void destroy_graph(Graph graph) override {
        const CurrentContext scope(api_, context_);
        api_.graph_exec_destroy(handle(graph));
    }

  private:
    [[nodiscard]] u32 attribute(cuda::DeviceAttribute which) const {
        int value = 0;
        api_.device_get_attribute(&value, which, id_);
        return static_cast<u32>(value);
    }

    void read_properties(u32 ordinal) {
        char name[128] = {};
        api_.device_get_name(name, sizeof(name) - 1, id_);
        size_t memory = 0;
        api_.device_total_mem(&memory, id_);
        properties_.name = name;
        properties_.compute_major = attribute(cuda::kComputeCapabilityMajor);
        properties_.compute_minor = attribute(cuda::kComputeCapabilityMinor);
        properties_.arch = arch_of(properties_.compute_major, properties_.compute_minor);
        properties_.num_sms = attribute(cuda::kMultiprocessorCount);
        properties_.max_smem_per_block = attribute(cuda::kMaxSharedMemoryPerBlockOptin);
        properties_.global_memory_bytes = memory;
        properties_.l2_bytes = attribute(cuda::kL2CacheSize);
        properties_.driver_version = static_cast<u32>(api_.version);
        properties_.ordinal = ordinal;
    }

    [[noreturn]] void fail_launch(const Kernel& kernel, const LaunchConfig& config, size_t params_bytes,
                                  cuda::Result result,
                                  const std::source_location where = std::source_location::current()) const {
        const auto text = [](Dim3 dim) { return fmt::format("{}x{}x{}", dim.x, dim.y, dim.z); };
        cuda::fail_call(
            api_.launch_kernel_ex.name,
            fmt::format(
                "kernel {}, grid {}, cluster {}, block {}, {} bytes of shared memory, {} bytes of parameters",
                kernel.name(), text(config.grid), text(config.cluster), text(config.block),
                config.dynamic_smem_bytes, params_bytes),
            result, where);
    }

    const Api& api_;
    cuda::DeviceId id_ = 0;
    cuda::Context context_ = nullptr;
    DeviceProperties properties_;
};

}  // namespace

std::unique_ptr<Device> make_cuda_device(u32 ordinal) {
    return std::make_unique<CudaDevice>(ordinal);
}

u32 current_cuda_ordinal() {
    const Api& api = cuda::api();
    cuda::Context current = nullptr;
    api.ctx_get_current(&current);
    if (current == nullptr) return 0;
    cuda::DeviceId id = 0;
    api.ctx_get_device(&id);
    return static_cast<u32>(id);  // CUdevice handles are ordinals
}

}  // namespace deep_gemm::driver
