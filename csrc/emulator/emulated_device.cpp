// Memory, streams, events, graphs and launches of the emulated GPU. A stream in capture records closures
// instead of running them; a graph is that list.
#include "emulator/emulated_device.h"

#include "base/error.h"
#include "emulator/async/tensor_map.h"
#include "emulator/device_memory.h"
#include "emulator/emulated_module.h"
#include "emulator/launch.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>

namespace deep_gemm::emulator {
namespace {

u64 host_memory_bytes() {
    return static_cast<u64>(sysconf(_SC_PHYS_PAGES)) * static_cast<u64>(sysconf(_SC_PAGE_SIZE));
}

using Action = std::function<void()>;
using Clock = std::chrono::steady_clock;

struct GraphRecord {
    std::vector<Action> actions;
};

struct StreamRecord {
    std::unique_ptr<GraphRecord> capture;  // while capturing
};

struct EventRecord {
    Clock::time_point at;
    bool recorded = false;
};

// Opaque handles are the addresses of records; the tables tell live ones from stale ones.
template <typename Record>
class Handles {
  public:
    Record* add() {
        auto record = std::make_shared<Record>();
        Record* raw = record.get();
        records_[raw] = std::move(record);
        return raw;
    }
    Record& get(const void* handle, const char* what) { return *share(handle, what); }
    // For actions that run later: the record outlives its handle.
    std::shared_ptr<Record> share(const void* handle, const char* what) {
        const auto found = records_.find(static_cast<const Record*>(handle));
        DG_CHECK(found != records_.end(), driver,
                 "emulator: {} handle is not one of this device's (destroyed already?)", what);
        return found->second;
    }
    void remove(const void* handle, const char* what) {
        static_cast<void>(get(handle, what)), records_.erase(static_cast<const Record*>(handle));
    }
    Record* adopt(std::shared_ptr<Record> record) {
        Record* raw = record.get();
        records_[raw] = std::move(record);
        return raw;
    }

  private:
    std::map<const Record*, std::shared_ptr<Record>> records_;
};

class EmulatedDevice final : public driver::Device {
  public:
    EmulatedDevice(const Model& model, const Options& options)
        : model_(model),
          options_(options),
          memory_(std::min(options.memory_bytes ? options.memory_bytes : model.properties.global_memory_bytes,
                           host_memory_bytes())) {
        if (options_.memory_bytes != 0) model_.properties.global_memory_bytes = options_.memory_bytes;
        if (options_.num_sms != 0) model_.properties.num_sms = options_.num_sms;
    }

    const driver::DeviceProperties& properties() const override { return model_.properties; }
    driver::ImageKind image_kind() const override { return driver::ImageKind::ptx; }

    u64 allocate(u64 bytes) override { return memory_.allocate(bytes); }
    void release(u64 address) override { memory_.release(address); }
    u64 free_memory_bytes() override { return memory_.available(); }
    void copy_to_device(u64 destination, std::span<const std::byte> source, driver::Stream stream) override {
        memory_.check(destination, source.size(), "copy_to_device");
        const auto copy = [destination](std::span<const std::byte> bytes) {
            std::memcpy(reinterpret_cast<void*>(destination), bytes.data(), bytes.size());
        };
        // The caller's bytes may be gone when a graph is launched.
        if (is_capturing(stream)) {
            return enqueue(stream,
                           [copy, owned = std::vector(source.begin(), source.end())] { copy(owned); });
        }
        copy(source);
    }
    void copy_to_host(std::span<std::byte> destination, u64 source, driver::Stream stream) override {
        memory_.check(source, destination.size(), "copy_to_host");
        synchronize(stream);
        std::memcpy(destination.data(), reinterpret_cast<const void*>(source), destination.size());
    }
    void copy_on_device(u64 destination, u64 source, u64 bytes, driver::Stream stream) override {
        memory_.check(destination, bytes, "copy_on_device");
        memory_.check(source, bytes, "copy_on_device");
        enqueue(stream, [=] {
            std::memmove(reinterpret_cast<void*>(destination), reinterpret_cast<const void*>(source), bytes);
        });
    }
    void fill_bytes(u64 destination, u8 value, u64 bytes, driver::Stream stream) override {
        memory_.check(destination, bytes, "fill_bytes");
        enqueue(stream, [=] { std::memset(reinterpret_cast<void*>(destination), value, bytes); });
    }

    std::shared_ptr<driver::Module> load_module(std::span<const std::byte> image,
                                                std::string_view label) override {
        return std::make_shared<EmulatedModule>(image, label, "sm_" + model_.properties.arch,
                                                model_.properties.max_smem_per_block);
    }
    bool can_run(const driver::Kernel& kernel) const override {
        return dynamic_cast<const EmulatedKernel*>(&kernel) != nullptr;
    }
    void launch(const driver::Kernel& kernel, const driver::LaunchConfig& config,
                std::span<const std::byte> params, std::span<const driver::MemoryRange> memory) override {
        const auto& emulated =
            static_cast<const EmulatedKernel&>(kernel);  // copied: a graph may outlive the module
        check_launch(model_, emulated, config, params.size());
        count_launch(emulated.name());
        enqueue(config.stream, [this, emulated, config,
                                bytes = std::vector<std::byte>(params.begin(), params.end()),
                                ranges = std::vector<driver::MemoryRange>(memory.begin(), memory.end())] {
            run_launch(model_, options_, emulated, config, bytes, ranges, memory_.ranges(), ++grid_id_);
        });
    }
    u32 max_active_clusters(const driver::Kernel& kernel, const driver::LaunchConfig& config) override {
        return count_active_clusters(model_, static_cast<const EmulatedKernel&>(kernel), config);
    }
    TensorMap encode_tensor_map(const TensorMapDesc& desc) override {
        return emulator::encode_tensor_map(desc);
    }

    driver::Stream create_stream() override {
        const std::lock_guard lock(mutex_);
        return reinterpret_cast<driver::Stream>(streams_.add());
    }
    void destroy_stream(driver::Stream stream) override {
        const std::lock_guard lock(mutex_);
        streams_.remove(stream, "stream");
    }
    void synchronize(driver::Stream stream) override {
        DG_CHECK(
            !is_capturing(stream), driver,
            "emulator: synchronize, or copy_to_host, of a stream that is being captured; end the capture "
            "first");
    }
    driver::Event create_event() override {
        const std::lock_guard lock(mutex_);
        return reinterpret_cast<driver::Event>(events_.add());
    }
    void destroy_event(driver::Event event) override {
        const std::lock_guard lock(mutex_);
        events_.remove(event, "event");
    }
    void record(driver::Event event, driver::Stream stream) override {
        std::shared_ptr<EventRecord> record;
        {
            const std::lock_guard lock(mutex_);
            record = events_.share(event, "event");
        }
        enqueue(stream, [record] { *record = {Clock::now(), true}; });
    }
    float elapsed_ms(driver::Event start, driver::Event stop) override {
        const std::lock_guard lock(mutex_);
        const EventRecord &a = events_.get(start, "event"), &b = events_.get(stop, "event");
        DG_CHECK(a.recorded && b.recorded, driver,
                 "emulator: elapsed_ms of an event that was never recorded");
        return std::chrono::duration<float, std::milli>(b.at - a.at).count();
    }

    void begin_capture(driver::Stream stream) override {
        const std::lock_guard lock(mutex_);
        StreamRecord& record = record_of(stream);
        DG_CHECK(!record.capture, driver,
                 "emulator: begin_capture on a stream that is already being captured");
        record.capture = std::make_unique<GraphRecord>();
    }
    driver::Graph end_capture(driver::Stream stream) override {
        const std::lock_guard lock(mutex_);
        StreamRecord& record = record_of(stream);
        DG_CHECK(record.capture != nullptr, driver,
                 "emulator: end_capture on a stream that is not being captured");
        return reinterpret_cast<driver::Graph>(graphs_.adopt(std::move(record.capture)));
    }
    void launch_graph(driver::Graph graph, driver::Stream stream) override {
        count_launch("a graph");
        std::shared_ptr<const GraphRecord> record;
        {
            const std::lock_guard lock(mutex_);
            record = graphs_.share(graph, "graph");
        }
        enqueue(stream, [record] {
            for (const Action& action : record->actions) action();
        });
    }
    void destroy_graph(driver::Graph graph) override {
        const std::lock_guard lock(mutex_);
        graphs_.remove(graph, "graph");
    }
    u64 fail_launch(u64 number) { return launches_left_.exchange(number); }

  private:
    void count_launch(std::string_view what) {
        u64 left = launches_left_;
        while (left > 0 && !launches_left_.compare_exchange_weak(left, left - 1)) {
        }
        DG_CHECK(left != 1, driver, "emulator: launch of {} failed, as fail_launch() asked for", what);
    }
    // Runs now, or records while the stream is captured.
    void enqueue(driver::Stream stream, Action action) {
        {
            const std::lock_guard lock(mutex_);
            if (StreamRecord& record = record_of(stream); record.capture) {
                record.capture->actions.push_back(std::move(action));
                return;
            }
        }
        action();
    }
    bool is_capturing(driver::Stream stream) {
        const std::lock_guard lock(mutex_);
        return record_of(stream).capture != nullptr;
    }
    StreamRecord& record_of(driver::Stream stream) {
        return stream == nullptr ? default_stream_ : streams_.get(stream, "stream");
    }

    Model model_;
    Options options_;
    DeviceMemory memory_;
    std::mutex mutex_;  // the tables below
    StreamRecord default_stream_;
    Handles<StreamRecord> streams_;
    Handles<EventRecord> events_;
    Handles<GraphRecord> graphs_;
    std::atomic<u64> grid_id_{0};
    std::atomic<u64> launches_left_{0};  // until the one that fail_launch() asked for, itself included
};

}  // namespace

std::unique_ptr<driver::Device> make_emulated_device(std::string_view arch, const Options& options) {
    return std::make_unique<EmulatedDevice>(find_model(arch), options);
}

std::unique_ptr<driver::Device> make_emulated_device(std::string_view text) {
    const size_t comma = text.find(',');
    const std::string_view rest =
        comma == std::string_view::npos ? std::string_view{} : text.substr(comma + 1);
    return make_emulated_device(text.substr(0, comma), parse_options(rest, options_from_environment()));
}

u64 fail_launch(driver::Device& device, u64 number) {
    auto* emulated = dynamic_cast<EmulatedDevice*>(&device);
    DG_CHECK(emulated, value, "fail_launch: got {}, expected the emulated GPU; open \"emulator\"",
             device.properties().name);
    return emulated->fail_launch(number);
}

}  // namespace deep_gemm::emulator
