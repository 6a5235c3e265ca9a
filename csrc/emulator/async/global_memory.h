// How the copy engine reaches global memory: the owner checks bounds and permission, and throws.
// The pointers are valid until the next allocation or release; implemented by emulator/check.
#pragma once

#include <deep_gemm/spec/types.h>

#include <cstddef>

namespace deep_gemm::emulator {

class GlobalMemory {
  public:
    virtual ~GlobalMemory() = default;
    [[nodiscard]] virtual const std::byte* read(u64 address, u64 bytes) = 0;
    [[nodiscard]] virtual std::byte* write(u64 address, u64 bytes) = 0;
};

}  // namespace deep_gemm::emulator
