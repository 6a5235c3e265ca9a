#include "op/launcher.h"

#include "base/log.h"
#include "base/process_local.h"
#include "op/gemm_kernel.h"

#include <mutex>
#include <unordered_map>
#include <vector>

namespace deep_gemm::op {

namespace {

struct Key {
    plan::GemmProblem problem;
    Device* device = nullptr;
    bool forced = false;
    GemmSpec spec;  // the forced one
    friend bool operator==(const Key&, const Key&) = default;
};

struct KeyHasher {
    size_t operator()(const Key& key) const noexcept {
        u64 hash = reinterpret_cast<u64>(key.device);
        const auto mix = [&hash](u64 value) { hash = (hash ^ value) * 0x9e3779b97f4a7c15ull ^ hash >> 29; };
        const plan::GemmProblem& p = key.problem;
        mix(p.m | u64{p.n} << 32);
        mix(p.k | u64{p.num_groups} << 32);
        mix(p.expected_m | u64{p.num_sms} << 32);
        mix(static_cast<u64>(p.groups) | static_cast<u64>(p.ab) << 8 | static_cast<u64>(p.d) << 16 |
            static_cast<u64>(p.scale_b) << 24 | u64{p.accumulate} << 32 | u64{p.d_tma} << 33 |
            u64{key.forced} << 34 | static_cast<u64>(p.a_major) << 35 | static_cast<u64>(p.b_major) << 36);
        if (key.forced)
            visit_fields([&mix](const char*, auto field) { mix(static_cast<u64>(field)); }, key.spec);
        return hash ^ hash >> 32;
    }
};

Key key_of(const GemmCall& call) {
    Key key{.problem = call.problem, .device = call.device, .forced = call.spec != nullptr, .spec = {}};
    if (call.spec) key.spec = *call.spec;
    return key;
}

// Every launcher of the process; entries are never removed, so pointers to them may be kept. A forked child
// has its own: it has other Devices, so nothing it looks up is the parent's.
struct Registry {
    std::mutex mutex;
    std::unordered_map<Key, std::unique_ptr<Launcher>, KeyHasher> launchers;
};

// A thread's own view of the registry: one slot for each hash value, the last one wins.
struct Slot {
    Key key;
    const Launcher* launcher = nullptr;
};
constexpr size_t kSlots = 256;

Slot& slot_of(const Key& key) {
    thread_local std::vector<Slot> slots(kSlots);
    return slots[KeyHasher{}(key) % kSlots];
}

}  // namespace

const Launcher* find_launcher(const GemmCall& call) {
    const Key key = key_of(call);
    Slot& slot = slot_of(key);
    if (slot.launcher && slot.key == key) [[likely]]
        return slot.launcher;
    Registry& all = process_local<Registry>();
    const std::lock_guard lock(all.mutex);
    const auto found = all.launchers.find(key);
    if (found == all.launchers.end()) return nullptr;
    slot = {key, found->second.get()};
    return slot.launcher;
}

const Launcher& build_launcher(const GemmCall& call) {
    const driver::DeviceProperties& properties = call.device->properties();
    const plan::DeviceModel model = plan::device_model(properties.arch, properties.num_sms);
    auto launcher = std::make_unique<Launcher>();
    launcher->device_name = properties.name;
    launcher->problem = call.problem;
    launcher->plan = call.spec ? plan::plan_for_spec(call.problem, *call.spec, model)
                               : plan::plan_gemm(call.problem, model);
    const GemmSpec& spec = launcher->plan.spec;
    log(LogLevel::info, "{}: {}", plan::to_string(call.problem), plan::to_string(spec));
    LoadedKernel loaded = load_gemm_kernel(*call.device, spec);
    launcher->keep_alive = std::move(loaded.keep_alive);
    launcher->kernel = loaded.kernel;
    launcher->config = {.grid = {launcher->plan.grid_blocks, 1, 1},
                        .cluster = {cluster_size_of(spec), 1, 1},
                        .block = {threads_of(spec), 1, 1},
                        .dynamic_smem_bytes = plan_smem(spec).bytes};
    Registry& all = process_local<Registry>();
    const std::lock_guard lock(all.mutex);
    return *all.launchers.try_emplace(key_of(call), std::move(launcher)).first->second;
}

}  // namespace deep_gemm::op
