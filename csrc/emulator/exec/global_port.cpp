// Bounds and permission of the copy engine's global accesses.
#include "emulator/exec/global_port.h"

#include "base/error.h"

namespace deep_gemm::emulator {

const std::byte* GlobalPort::read(u64 address, u64 bytes) {
    DG_CHECK(ranges_.find(address, bytes) != nullptr, emulator,
             "asynchronous read of {} bytes at global address {:#x}: {}", bytes, address,
             ranges_.describe(address, bytes));
    return reinterpret_cast<const std::byte*>(address);
}

std::byte* GlobalPort::write(u64 address, u64 bytes) {
    const Segment* found = ranges_.find(address, bytes);
    DG_CHECK(found != nullptr && found->writable, emulator,
             "asynchronous write of {} bytes at global address {:#x}: {}", bytes, address,
             ranges_.describe(address, bytes));
    return reinterpret_cast<std::byte*>(address);
}

}  // namespace deep_gemm::emulator
