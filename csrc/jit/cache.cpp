#include "jit/cache.h"

#include "base/env.h"
#include "base/log.h"
#include "base/process_local.h"
#include "driver/nvrtc.h"
#include "jit/bundle.h"
#include "jit/compiler.h"
#include "jit/disk_cache.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <exception>
#include <future>
#include <mutex>
#include <shared_mutex>
#include <thread>
#include <unordered_map>

namespace deep_gemm::jit {

namespace {

struct MemoryKey {
    Digest key;
    const driver::Device* device = nullptr;
    friend bool operator==(const MemoryKey&, const MemoryKey&) = default;
};

struct MemoryKeyHasher {
    size_t operator()(const MemoryKey& k) const noexcept {
        return k.key.low ^ reinterpret_cast<size_t>(k.device) >> 4;
    }
};

// Loaded kernels and kernels being built. A future in the map means someone is at it: wait instead of
// building again.
class Loaded {
  public:
    using Future = std::shared_future<LoadedKernel>;

    std::optional<Future> find(const MemoryKey& key) {
        Shard& shard = shard_of(key);
        const std::shared_lock lock(shard.mutex);
        const auto found = shard.kernels.find(key);
        return found == shard.kernels.end() ? std::nullopt : std::optional(found->second);
    }
    // The future now in the map; `added` tells whether it is the given one.
    Future add(const MemoryKey& key, const Future& future, bool& added) {
        Shard& shard = shard_of(key);
        const std::lock_guard lock(shard.mutex);
        const auto [position, inserted] = shard.kernels.try_emplace(key, future);
        added = inserted;
        return position->second;
    }
    void remove(const MemoryKey& key) {
        Shard& shard = shard_of(key);
        const std::lock_guard lock(shard.mutex);
        shard.kernels.erase(key);
    }

  private:
    struct Shard {
        std::shared_mutex mutex;
        std::unordered_map<MemoryKey, Future, MemoryKeyHasher> kernels;
    };
    static constexpr size_t kShards = 16;
    Shard& shard_of(const MemoryKey& key) { return shards_[key.key.high % kShards]; }
    std::array<Shard, kShards> shards_;
};

class Bundles {
  public:
    Bundles() {
        std::string_view list = env_text(Env::jit_bundles);
        while (!list.empty()) {
            const size_t end = std::min(list.find(':'), list.size());
            try {
                if (end > 0) add(list.substr(0, end));
            } catch (const Error& error) {
                log(LogLevel::warning, "DG_JIT_BUNDLES: {}", error.what());
            }
            list.remove_prefix(std::min(end + 1, list.size()));
        }
    }
    size_t add(std::string_view path) {
        auto bundle = std::make_shared<const Bundle>(Path(path));
        const size_t size = bundle->size();
        const std::lock_guard lock(mutex_);
        bundles_.push_back(std::move(bundle));
        return size;
    }
    std::optional<Artifact> find(const Digest& key) {
        const std::shared_lock lock(mutex_);
        for (const auto& bundle : bundles_)
            if (std::optional<Artifact> artifact = bundle->find(key)) return artifact;
        return std::nullopt;
    }

  private:
    std::shared_mutex mutex_;
    std::vector<std::shared_ptr<const Bundle>> bundles_;
};

struct State {
    Loaded loaded;
    Bundles bundles;
    DiskCache disk;
};

State& state() {
    return process_local<State>();
}

std::string open_nvrtc_version() {
    const driver::NvrtcInfo& info = driver::nvrtc_info();
    return fmt::format("{}.{}", info.major, info.minor);
}

Artifact compile_and_publish(State& s, const KernelSource& source, const Target& target, const Digest& key) {
    const std::string nvrtc = open_nvrtc_version();
    const std::unique_ptr<FileLock> lock = s.disk.lock(key);
    // Whoever held the lock may have built it meanwhile; a file name may also have told a wrong version
    // before.
    if (std::optional<Artifact> artifact = s.disk.find(key, source.name, target, nvrtc))
        return std::move(*artifact);
    Artifact artifact = compile(source, target, s.disk.failed_folder());
    s.disk.publish(key, target, source, artifact);
    return artifact;
}

Artifact obtain(State& s, const KernelSource& source, const Target& target, const Digest& key) {
    if (std::optional<Artifact> artifact = s.bundles.find(key)) return std::move(*artifact);
    const std::string nvrtc = driver::nvrtc_version_hint();
    if (!nvrtc.empty())
        if (std::optional<Artifact> artifact = s.disk.find(key, source.name, target, nvrtc))
            return std::move(*artifact);
    try {
        return compile_and_publish(s, source, target, key);
    } catch (const Error&) {
        // Without a compiler an image by any other version is better than none.
        std::optional<Artifact> artifact;
        if (nvrtc.empty()) artifact = s.disk.find(key, source.name, target, "");
        if (!artifact) throw;
        return std::move(*artifact);
    }
}

// The driver refuses images of a newer toolkit with a code that does not say so.
std::string version_remark(const driver::Device& device, const Artifact& artifact) {
    u32 major = 0;
    std::from_chars(artifact.nvrtc.data(), artifact.nvrtc.data() + artifact.nvrtc.size(), major);
    const u32 driver_major = device.properties().driver_version / 1000;
    if (driver_major == 0 || major <= driver_major) return {};
    return fmt::format(
        "; the image was made by NVRTC {} and the driver loads images of CUDA {} and older: {}{}, or update "
        "the "
        "driver",
        artifact.nvrtc, driver_major, driver::nvrtc_remedy(),
        artifact.origin == Origin::bundle ? " and write the bundle again" : "");
}

LoadedKernel load_artifact(driver::Device& device, const Artifact& artifact) {
    try {
        LoadedKernel loaded{
            .module = device.load_module(std::as_bytes(std::span(artifact.image)), artifact.name),
            .origin = artifact.origin};
        loaded.kernel = &loaded.module->kernel(artifact.lowered_name);
        return loaded;
    } catch (const Error& error) {
        const std::string remark = version_remark(device, artifact);
        if (remark.empty()) throw;
        throw Error(error.kind(), error.what() + remark);
    }
}

// Runs work(i) for all i on several threads; the first exception is thrown when all have ended.
void run_parallel(size_t count, u32 threads, const std::function<void(size_t)>& work) {
    if (threads == 0) threads = std::max(1u, std::thread::hardware_concurrency());
    std::atomic<size_t> next{0};
    std::mutex mutex;
    std::exception_ptr failure;
    const auto worker = [&] {
        for (size_t i = next++; i < count; i = next++) {
            try {
                work(i);
            } catch (...) {
                const std::lock_guard lock(mutex);
                if (!failure) failure = std::current_exception();
            }
        }
    };
    {
        std::vector<std::jthread> pool;
        for (u32 i = 1; i < std::min<size_t>(threads, count); ++i) pool.emplace_back(worker);
        worker();
    }
    if (failure) std::rethrow_exception(failure);
}

class ProgressCounter {
  public:
    ProgressCounter(const ProgressCallback& callback, size_t total)
        : callback_(callback), total_(static_cast<u32>(total)) {}
    void step(const std::string& name, Origin origin, double seconds) {
        const std::lock_guard lock(mutex_);
        ++done_;
        if (callback_) callback_({done_, total_, name, origin, seconds});
    }

  private:
    const ProgressCallback& callback_;
    std::mutex mutex_;
    u32 done_ = 0, total_;
};

}  // namespace

LoadedKernel load(driver::Device& device, const KernelSource& source) {
    State& s = state();
    const Target target = target_of(device);
    const MemoryKey key{key_of(source, target), &device};
    if (const auto found = s.loaded.find(key)) {
        LoadedKernel kernel = found->get();
        kernel.origin = Origin::memory;
        return kernel;
    }
    std::promise<LoadedKernel> promise;
    bool added = false;
    const Loaded::Future future = s.loaded.add(key, promise.get_future().share(), added);
    if (!added) return future.get();
    try {
        promise.set_value(load_artifact(device, obtain(s, source, target, key.key)));
    } catch (...) {
        s.loaded.remove(key);  // the next call tries again; those who wait now share this error
        promise.set_exception(std::current_exception());
    }
    return future.get();
}

Artifact build(const KernelSource& source, const Target& target) {
    return obtain(state(), source, target, key_of(source, target));
}

std::vector<Artifact> build_all(std::span<const KernelSource> sources, const Target& target,
                                const ProgressCallback& progress, u32 threads) {
    std::vector<Artifact> artifacts(sources.size());
    ProgressCounter counter(progress, sources.size());
    run_parallel(sources.size(), threads, [&](size_t i) {
        artifacts[i] = build(sources[i], target);
        counter.step(sources[i].name, artifacts[i].origin, artifacts[i].seconds);
    });
    return artifacts;
}

void warmup(driver::Device& device, std::span<const KernelSource> sources, const ProgressCallback& progress,
            u32 threads) {
    ProgressCounter counter(progress, sources.size());
    run_parallel(sources.size(), threads, [&](size_t i) {
        const auto start = std::chrono::steady_clock::now();
        const Origin origin = load(device, sources[i]).origin;
        counter.step(sources[i].name, origin,
                     std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    });
}

void write_bundle(const std::string& path, std::span<const KernelSource> sources, const Target& target,
                  const ProgressCallback& progress, u32 threads) {
    const std::vector<Artifact> artifacts = build_all(sources, target, progress, threads);
    std::vector<Record> records;
    for (size_t i = 0; i < sources.size(); ++i)
        records.push_back(make_record(key_of(sources[i], target), target, artifacts[i], sources[i].entry,
                                      sources[i].replay));
    write_bundle_file(path, records, artifacts);
}

u32 open_bundle(const std::string& path) {
    return static_cast<u32>(state().bundles.add(path));
}

}  // namespace deep_gemm::jit
