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
constexpr const char* kVariable = "DG_DEVICE";

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

// `source` is where a name comes from, for errors: an argument or $DG_DEVICE.
u32 ordinal_in(std::string_view name, const char* source) {
    const std::string_view digits = name.substr(name.find(':') + 1);
    u32 ordinal = 0;
    const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), ordinal);
    DG_CHECK(error == std::errc{} && stop == digits.data() + digits.size(), value,
             "{}: got '{}', expected cuda or cuda:<ordinal>; pass one of them", source, name);
    return ordinal;
}

bool is_emulated(std::string_view name, const char* source) {
    if (name == "cuda") return false;
    if (name.starts_with("cuda:")) return (void)ordinal_in(name, source), false;
    DG_CHECK(name == "emulator" || name.starts_with("emulator:"), value,
             "{}: got '{}', expected cuda, cuda:<ordinal>, emulator or emulator:<arch>[,option=value...]; "
             "pass one of them",
             source, name);
    return true;
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
    const char* source = name.empty() ? kVariable : "device";
    if (name.empty()) name = env_text(Env::device);
    if (name.empty()) name = default_name();
    if (is_emulated(name, source))
        return name == "emulator" ? fmt::format("emulator:{}", kDefaultEmulator) : std::string(name);
    return fmt::format("cuda:{}", name == "cuda" ? current_cuda_ordinal() : ordinal_in(name, source));
}

std::unique_ptr<Device> make(std::string_view resolved) {
    const std::string_view detail = resolved.substr(resolved.find(':') + 1);
    return resolved.starts_with("cuda:") ? make_cuda_device(ordinal_in(resolved, "device"))
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

Device& host_memory_device() {
    const std::string& chosen = env_text(Env::device);
    return device(!chosen.empty() && is_emulated(chosen, kVariable) ? chosen : "emulator");
}

std::string registry_name_of(const Device& device) {
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
