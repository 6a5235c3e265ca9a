// The emulated GPU behind driver::Device: PTX in, checked and deterministic execution out. Everything a
// launch does is complete when launch() returns; streams are in order by construction. See README.md in this
// folder.
#pragma once

#include "driver/device.h"
#include "emulator/options.h"

namespace deep_gemm::emulator {

// `arch`: sm_90a or another row of launch.cpp.
[[nodiscard]] std::unique_ptr<driver::Device> make_emulated_device(std::string_view arch,
                                                                   const Options& options);

// The factory for driver::register_emulator. `text` is "sm_90a" or
// "sm_90a,seed=3,latency=lazy,threads=1,sms=4, accumulator=fp32"; what it does not name comes from the
// environment.
[[nodiscard]] std::unique_ptr<driver::Device> make_emulated_device(std::string_view text);

// The `number`-th launch from now on, of a kernel or a graph, fails as a driver's does: with an error, and
// without an effect; 0: none does. Returns what is left of the number before. For tests of what callers leave
// behind. Error(value) for a device that is not emulated.
u64 fail_launch(driver::Device& device, u64 number);

}  // namespace deep_gemm::emulator
