// Allocation by the host's new, with the alignment of cudaMalloc's family.
#include "emulator/device_memory.h"

#include "base/error.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace deep_gemm::emulator {
namespace {

constexpr u64 kAlignment = 512;
constexpr int kPoison = 0xee;

}  // namespace

u64 DeviceMemory::allocate(u64 bytes) {
    const std::lock_guard lock(mutex_);
    bytes = std::max<u64>(bytes, 1);  // as CUDA's: an address of its own
    DG_CHECK(bytes <= capacity_ - used_, driver,
             "emulator: out of memory: {} bytes asked, {} of {} in use; release some", bytes, used_,
             capacity_);
    Block block{std::unique_ptr<std::byte[]>(new (std::nothrow) std::byte[bytes + kAlignment]), bytes};
    DG_CHECK(block.storage != nullptr, driver, "emulator: out of memory: the host has no {} bytes left",
             bytes);
    const u64 address = align_up(reinterpret_cast<u64>(block.storage.get()), kAlignment);
    std::memset(reinterpret_cast<void*>(address), kPoison, bytes);
    used_ += bytes;
    blocks_.emplace(address, std::move(block));
    return address;
}

void DeviceMemory::release(u64 address) {
    const std::lock_guard lock(mutex_);
    if (address == 0) return;
    const auto found = blocks_.find(address);
    DG_CHECK(found != blocks_.end(), driver,
             "emulator: release: {:#x} is not the address of an allocation (released twice?)", address);
    used_ -= found->second.bytes;
    blocks_.erase(found);
}

u64 DeviceMemory::available() const {
    const std::lock_guard lock(mutex_);
    return capacity_ - used_;
}

void DeviceMemory::check(u64 address, u64 bytes, const char* what) const {
    const std::lock_guard lock(mutex_);
    DG_CHECK(address != 0 || bytes == 0, driver, "emulator: {} of {} bytes at the null address", what, bytes);
    auto after = blocks_.upper_bound(address);
    if (after == blocks_.begin()) return;
    const auto& [begin, block] = *std::prev(after);
    if (address >= begin + block.bytes) return;
    DG_CHECK(address + bytes <= begin + block.bytes, driver,
             "emulator: {} of {} bytes at {:#x} ends {} bytes past its allocation of {} bytes", what, bytes,
             address, address + bytes - begin - block.bytes, block.bytes);
}

std::vector<driver::MemoryRange> DeviceMemory::ranges() const {
    const std::lock_guard lock(mutex_);
    std::vector<driver::MemoryRange> out;
    out.reserve(blocks_.size());
    for (const auto& [address, block] : blocks_) out.push_back({address, block.bytes, true});
    return out;
}

}  // namespace deep_gemm::emulator
