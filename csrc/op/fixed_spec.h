// Specs that do not depend on the batch: planned once for a problem that says nothing of it, and kept.
#pragma once

#include "base/process_local.h"
#include "driver/device.h"
#include "plan/device.h"

#include <deque>
#include <mutex>
#include <utility>

namespace deep_gemm::op {

template <typename Problem, typename Spec>
struct FixedSpecs {
    struct Entry {
        Device* device;
        Problem problem;
        Spec spec;
    };
    std::mutex mutex;
    std::deque<Entry> all;  // grows only
};

// The spec that `plan` gives for a problem that says nothing of the batch.
template <typename Problem, typename Plan>
auto fixed_spec(Device* device, const Problem& problem, Plan plan) {
    const driver::DeviceProperties& properties = device->properties();
    using Spec = decltype(plan(problem, plan::DeviceModel{}).spec);
    auto& known = process_local<FixedSpecs<Problem, Spec>>();
    const std::lock_guard lock(known.mutex);
    for (const auto& one : known.all)
        if (one.device == device && one.problem == problem) return &std::as_const(one.spec);
    const auto chosen = plan(problem, plan::device_model(properties.arch, properties.num_sms));
    return &std::as_const(known.all.emplace_back(device, problem, chosen.spec).spec);
}

}  // namespace deep_gemm::op
