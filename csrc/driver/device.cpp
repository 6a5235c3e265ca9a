// The device registry: one Device per resolved name and process, created on first use, never destroyed (other
// threads and static destructors may still use it). A forked child starts with an empty table: a parent's
// emulator threads do not exist in it, and a parent's CUDA is refused by cuda::api().
#include "driver/device.h"

#include "base/env.h"
#include "base/log.h"
#include "base/process_local.h"
#include "driver/cuda_api.h"
#include "driver/cuda_device.h"

#include <atomic>
#include <charconv>
#include <map>
#include <mutex>

namespace deep_gemm::driver {

namespace {

constexpr std::string_view kDefaultEmulator = "sm_90a";

struct Table {
    std::mutex mutex;
    std::map<std::string, std::unique_ptr<Device>, std::less<>> devices;
};

std::atomic<DeviceFactory> emulator_factory{nullptr};

std::unique_ptr<Device> make_emulator(std::string_view arch) {
    const DeviceFactory factory = emulator_factory.load();
    DG_CHECK(factory, internal,
             "no emulated GPU is registered; call register_emulator() before asking for one");
    return factory(arch);
}

u32 ordinal_in(std::string_view name, std::string_view digits) {
    u32 ordinal = 0;
    const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), ordinal);
    DG_CHECK(error == std::errc{} && stop == digits.data() + digits.size(), value,
             "device: got '{}', expected cuda or cuda:<ordinal>", name);
    return ordinal;
}

// Says once why a machine with a driver does not use its GPU.
std::string_view default_name() {
    const std::string& reason = cuda::why_unavailable();
    if (reason.empty()) return "cuda";
    static std::atomic<bool> told{false};
    if (!told.exchange(true))
        log(cuda::driver_found() ? LogLevel::warning : LogLevel::info, "using the emulated GPU, because: {}",
            reason);
    return "emulator";
}

// A name with nothing left to decide: "cuda:0", "emulator:sm_90a", "emulator:sm_90a,seed=3".
std::string resolve(std::string_view name) {
    if (name.empty()) name = env_text(Env::device);
    if (name.empty()) name = default_name();
    if (name == "cuda") return fmt::format("cuda:{}", current_cuda_ordinal());
    if (name.starts_with("cuda:")) return fmt::format("cuda:{}", ordinal_in(name, name.substr(5)));
    if (name == "emulator") return fmt::format("emulator:{}", kDefaultEmulator);
    DG_CHECK(name.starts_with("emulator:"), value,
             "device: got '{}', expected cuda, cuda:<ordinal>, emulator or emulator:<arch>[,option=value...]",
             name);
    return std::string(name);
}

std::unique_ptr<Device> make(std::string_view resolved) {
    const std::string_view detail = resolved.substr(resolved.find(':') + 1);
    return resolved.starts_with("cuda:") ? make_cuda_device(ordinal_in(resolved, detail))
                                         : make_emulator(detail);
}

}  // namespace

Device& device(std::string_view name) {
    const std::string resolved = resolve(name);
    Table& table = process_local<Table>();
    const std::lock_guard lock(table.mutex);
    const auto found = table.devices.find(resolved);
    if (found != table.devices.end()) return *found->second;
    return *table.devices.emplace(resolved, make(resolved)).first->second;
}

std::string name_of(const Device& device) {
    Table& table = process_local<Table>();
    const std::lock_guard lock(table.mutex);
    for (const auto& [name, known] : table.devices)
        if (known.get() == &device) return name;
    return device.properties().name;
}

void register_emulator(DeviceFactory factory) {
    emulator_factory.store(factory);
}

}  // namespace deep_gemm::driver
