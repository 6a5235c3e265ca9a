// What a launch may touch in global memory: the caller's MemoryRange list, the device's own allocations and
// the module's variables, merged into disjoint segments. Where the caller's list speaks, it decides;
// elsewhere an allocation is readable and writable. Built once per launch, read by all host threads.
#pragma once

#include "driver/device.h"

#include <vector>

namespace deep_gemm::emulator {

struct Segment {
    u64 begin = 0, end = 0;
    bool writable = false;
    bool constant = false;
};

class Ranges {
  public:
    Ranges() = default;
    Ranges(std::span<const driver::MemoryRange> stated, std::span<const driver::MemoryRange> defaults);

    // The segment with [address, address + bytes) inside, or null.
    [[nodiscard]] const Segment* find(u64 address, u64 bytes) const;
    // "64 bytes past the end of the writable range [0x..., 0x...) of 4096 bytes"
    [[nodiscard]] std::string describe(u64 address, u64 bytes) const;

  private:
    std::vector<Segment> segments_;
};

}  // namespace deep_gemm::emulator
