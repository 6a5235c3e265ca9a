#include "runtime/launch_probe.h"

#include "base/process_local.h"

#include <map>
#include <mutex>
#include <optional>

namespace deep_gemm::runtime {

namespace {

using namespace driver;

class Probe final : public LaunchProbe {
  public:
    explicit Probe(Device& device) : to_(device) {}

    void start_recording() override {
        const std::lock_guard lock(mutex_);
        seen_.emplace();
    }
    std::vector<SeenLaunch> stop_recording() override {
        const std::lock_guard lock(mutex_);
        std::vector<SeenLaunch> seen = std::move(*seen_);
        seen_.reset();
        return seen;
    }

    bool can_run(const Kernel& kernel) const override { return to_.can_run(kernel); }
    void launch(const Kernel& kernel, const LaunchConfig& config, std::span<const std::byte> params,
                std::span<const MemoryRange> memory) override {
        {
            const std::lock_guard lock(mutex_);
            if (seen_)
                seen_->push_back(
                    {&kernel, config, {params.begin(), params.end()}, {memory.begin(), memory.end()}});
        }
        to_.launch(kernel, config, params, memory);
    }

    const DeviceProperties& properties() const override { return to_.properties(); }
    ImageKind image_kind() const override { return to_.image_kind(); }
    u64 allocate(u64 bytes) override { return to_.allocate(bytes); }
    void release(u64 address) override { to_.release(address); }
    u64 free_memory_bytes() override { return to_.free_memory_bytes(); }
    void copy_to_device(u64 destination, std::span<const std::byte> source, Stream stream) override {
        to_.copy_to_device(destination, source, stream);
    }
    void copy_to_host(std::span<std::byte> destination, u64 source, Stream stream) override {
        to_.copy_to_host(destination, source, stream);
    }
    void copy_on_device(u64 destination, u64 source, u64 bytes, Stream stream) override {
        to_.copy_on_device(destination, source, bytes, stream);
    }
    void fill_bytes(u64 destination, u8 value, u64 bytes, Stream stream) override {
        to_.fill_bytes(destination, value, bytes, stream);
    }
    std::shared_ptr<Module> load_module(std::span<const std::byte> image, std::string_view label) override {
        return to_.load_module(image, label);
    }
    u32 max_active_clusters(const Kernel& kernel, const LaunchConfig& config) override {
        return to_.max_active_clusters(kernel, config);
    }
    TensorMap encode_tensor_map(const TensorMapDesc& desc) override { return to_.encode_tensor_map(desc); }
    Stream create_stream() override { return to_.create_stream(); }
    void destroy_stream(Stream stream) override { to_.destroy_stream(stream); }
    void synchronize(Stream stream) override { to_.synchronize(stream); }
    Event create_event() override { return to_.create_event(); }
    void destroy_event(Event event) override { to_.destroy_event(event); }
    void record(Event event, Stream stream) override { to_.record(event, stream); }
    float elapsed_ms(Event start, Event stop) override { return to_.elapsed_ms(start, stop); }
    void begin_capture(Stream stream) override { to_.begin_capture(stream); }
    Graph end_capture(Stream stream) override { return to_.end_capture(stream); }
    void launch_graph(Graph graph, Stream stream) override { to_.launch_graph(graph, stream); }
    void destroy_graph(Graph graph) override { to_.destroy_graph(graph); }

  private:
    Device& to_;
    std::mutex mutex_;
    std::optional<std::vector<SeenLaunch>> seen_;
};

struct Probes {
    std::mutex mutex;
    std::map<Device*, std::unique_ptr<Probe>> all;
};

}  // namespace

LaunchProbe& probe_of(Device& device) {
    Probes& probes = process_local<Probes>();
    const std::lock_guard lock(probes.mutex);
    std::unique_ptr<Probe>& probe = probes.all[&device];
    if (!probe) probe = std::make_unique<Probe>(device);
    return *probe;
}

std::string short_name_of(const Kernel& kernel) {
    // Itanium mangling of a template in a namespace: _ZN 9deep_gemm 7project I ...
    std::string_view rest = kernel.name();
    std::string name(rest);
    if (!rest.starts_with("_ZN")) return name;
    rest.remove_prefix(3);
    while (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') {
        size_t length = 0, digits = 0;
        for (; digits < rest.size() && rest[digits] >= '0' && rest[digits] <= '9'; ++digits)
            length = length * 10 + static_cast<size_t>(rest[digits] - '0');
        name = rest.substr(digits, length);
        rest.remove_prefix(std::min(rest.size(), digits + length));
    }
    return name;
}

}  // namespace deep_gemm::runtime
