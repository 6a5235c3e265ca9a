// LaunchProbe: a Device that passes everything on to another one and can write down the launches it sees, so
// that they can be launched again one by one. Models that are measured are loaded onto it.
#pragma once

#include "driver/device.h"

#include <vector>

namespace deep_gemm::runtime {

// A launch as it was asked for; its pointers stay valid as long as the model and its state.
struct SeenLaunch {
    const driver::Kernel* kernel = nullptr;
    driver::LaunchConfig config;
    std::vector<std::byte> params;
    std::vector<driver::MemoryRange> memory;
};

class LaunchProbe : public driver::Device {
  public:
    virtual void start_recording() = 0;
    [[nodiscard]] virtual std::vector<SeenLaunch> stop_recording() = 0;
};

// The probe of a device: made once, lives as long as the process, as kernels are kept for it.
[[nodiscard]] LaunchProbe& probe_of(driver::Device& device);

// The name in a kernel's mangled name: "project".
[[nodiscard]] std::string short_name_of(const driver::Kernel& kernel);

}  // namespace deep_gemm::runtime
