// One compiled kernel for each (device, kernel, spec): what families without a launcher of their own look
// their kernels up in. A hit compares a spec with the thread's last one; a miss takes a lock and, the first
// time, compiles.
#pragma once

#include "base/process_local.h"
#include "driver/device.h"
#include "jit/cache.h"
#include "jit/source.h"

#include <deque>
#include <memory>
#include <mutex>
#include <string_view>

namespace deep_gemm::op {

template <typename Spec>
struct TableEntry {
    driver::Device* device = nullptr;
    std::string_view kernel;
    Spec spec;
    jit::LoadedKernel loaded;
};

template <typename Spec>
struct KernelTable {
    std::mutex mutex;
    std::deque<TableEntry<Spec>> entries;  // grows only: references stay valid
};

// The kernel `id` of `spec` on `device`; compiles it (up to a second) the first time. Safe to race. Params is
// the kernel's one argument. `id` must name static text.
template <typename Params, typename Spec>
const driver::Kernel& kernel_for(driver::Device& device, jit::KernelId id, const Spec& spec) {
    const auto matches = [&](const TableEntry<Spec>& entry) {
        return entry.device == &device && entry.kernel == id.kernel && entry.spec == spec;
    };
    thread_local const TableEntry<Spec>* last = nullptr;
    thread_local unsigned generation = 0;
    if (generation != fork_generation()) {  // the parent's devices are not ours
        generation = fork_generation();
        last = nullptr;
    }
    if (last && matches(*last)) return *last->loaded.kernel;
    auto& table = process_local<KernelTable<Spec>>();
    {
        const std::lock_guard lock(table.mutex);
        for (const TableEntry<Spec>& entry : table.entries)
            if (matches(entry)) return *(last = &entry)->loaded.kernel;
    }
    TableEntry<Spec> fresh{&device, id.kernel, spec, jit::load(device, jit::source_for<Params>(id, spec))};
    const std::lock_guard lock(table.mutex);
    last = &table.entries.emplace_back(std::move(fresh));
    return *last->loaded.kernel;
}

}  // namespace deep_gemm::op
