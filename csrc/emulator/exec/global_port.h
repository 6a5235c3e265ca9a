// The GlobalMemory that the copy engine and tensor cores see: a launch's ranges. Faults carry the sentence
// only; the event loop adds the place of the instruction that started the operation.
#pragma once

#include "emulator/async/global_memory.h"
#include "emulator/exec/state.h"

namespace deep_gemm::emulator {

class GlobalPort final : public GlobalMemory {
  public:
    explicit GlobalPort(const Ranges& ranges) : ranges_(ranges) {}
    const std::byte* read(u64 address, u64 bytes) override;
    std::byte* write(u64 address, u64 bytes) override;

  private:
    const Ranges& ranges_;
};

}  // namespace deep_gemm::emulator
