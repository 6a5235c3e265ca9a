// Allocations of the emulated GPU: host memory, 512-byte aligned, poisoned with 0xee so that output nobody
// wrote is visible. Nothing outside an allocation belongs to a kernel, unless the launch names it.
#pragma once

#include "driver/device.h"

#include <map>
#include <memory>
#include <mutex>

namespace deep_gemm::emulator {

class DeviceMemory {
  public:
    explicit DeviceMemory(u64 capacity) : capacity_(capacity) {}
    [[nodiscard]] u64 allocate(u64 bytes);
    void release(u64 address);
    [[nodiscard]] u64 available() const;
    // A copy or fill that starts inside an allocation must end inside it.
    void check(u64 address, u64 bytes, const char* what) const;
    [[nodiscard]] std::vector<driver::MemoryRange> ranges() const;

  private:
    struct Block {
        std::unique_ptr<std::byte[]> storage;
        u64 bytes = 0;
    };
    mutable std::mutex mutex_;
    std::map<u64, Block> blocks_;  // by address
    u64 capacity_, used_ = 0;
};

}  // namespace deep_gemm::emulator
