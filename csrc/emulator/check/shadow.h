// What the emulator knows about each byte of a CTA's shared memory: was it written, is it an mbarrier, is an
// asynchronous operation about to write or read it, and was the last writer the generic proxy (st,
// mbarrier.init) without a proxy fence since.
//
// The proxy rule (PTX ISA, "async proxy"): an asynchronous reader (TMA store, wgmma) may read a generic write
// only when a fence.proxy.async lies on the way: executed after the write by the writing warp, or by the
// issuing warp. Ticks count the fences of a cluster; a granule remembers the first tick at which a fence
// would cover it.
#pragma once

#include <deep_gemm/spec/types.h>

#include <cstring>
#include <span>
#include <vector>

namespace deep_gemm::emulator {

constexpr u32 kGranuleBytes = 16;

// Bits of a byte's state.
constexpr u8 kWritten = 1;
constexpr u8 kBarrier = 2;  // part of a live mbarrier
constexpr u8 kLanding =
    4;  // an asynchronous copy will write it: undefined until the copy's mbarrier or group says so
constexpr u8 kReading = 8;  // an asynchronous copy will read it: must not change until wait_group.read

class SharedShadow {
  public:
    void reset(u32 bytes) {
        state_.assign(bytes + 8, 0);
        granules_.assign(bytes / kGranuleBytes + 2, Granule{});
    }

    // All bytes have, of the bits in `mask`, exactly `wanted`.
    [[nodiscard]] bool all(u8 mask, u8 wanted, u32 offset, u32 bytes) const {
        constexpr u64 kEach = 0x0101010101010101;
        for (u32 i = 0; i < bytes; i += 8) {
            u64 word;
            std::memcpy(&word, &state_[offset + i], 8);
            const u32 left = bytes - i;
            const u64 valid = left >= 8 ? ~u64{0} : (u64{1} << (8 * left)) - 1;
            if ((((word & kEach * mask) ^ kEach * wanted) & valid) != 0) return false;
        }
        return true;
    }
    [[nodiscard]] bool readable(u32 offset, u32 bytes) const {
        return all(kWritten | kBarrier | kLanding, kWritten, offset, bytes);
    }
    [[nodiscard]] bool writable(u32 offset, u32 bytes) const {
        return all(kBarrier | kLanding | kReading, 0, offset, bytes);
    }
    [[nodiscard]] bool any(u8 bit, u32 offset, u32 bytes) const { return !all(bit, 0, offset, bytes); }
    void mark(u8 bit, u32 offset, u32 bytes) {
        u8* state = &state_[offset];
        for (size_t i = 0; i < bytes; ++i) state[i] |= bit;
    }
    void unmark(u8 bit, u32 offset, u32 bytes) {
        u8* state = &state_[offset];
        for (size_t i = 0; i < bytes; ++i) state[i] &= static_cast<u8>(~bit);
    }

    void generic_write(u32 offset, u32 bytes, u8 state, u32 writer, u32 tick) {
        std::memset(&state_[offset], state, bytes);
        for (u32 g = offset / kGranuleBytes; g <= (offset + bytes - 1) / kGranuleBytes; ++g) {
            granules_[g] = {tick + 1, writer};
        }
    }
    void async_write(u32 offset, u32 bytes) {
        std::memset(&state_[offset], kWritten, bytes);
        for (u32 g = offset / kGranuleBytes; g <= (offset + bytes - 1) / kGranuleBytes; ++g)
            granules_[g] = {};
    }
    void forget(u32 offset, u32 bytes) { std::memset(&state_[offset], 0, bytes); }

    // kNoWriter when an asynchronous read is ordered, else the warp whose write no fence covers.
    // `fenced(writer)` is the last tick at which that warp fenced.
    static constexpr u32 kNoWriter = ~0u;
    template <typename Fenced>
    [[nodiscard]] u32 unfenced_writer(u32 offset, u32 bytes, u32 issuer_fence, Fenced fenced) const {
        for (u32 g = offset / kGranuleBytes; g <= (offset + bytes - 1) / kGranuleBytes; ++g) {
            const Granule& granule = granules_[g];
            if (granule.tick > issuer_fence && granule.tick > fenced(granule.writer)) return granule.writer;
        }
        return kNoWriter;
    }

  private:
    struct Granule {
        u32 tick = 0;    // 0: last written asynchronously, or never
        u32 writer = 0;  // warp of the cluster
    };
    std::vector<u8> state_;
    std::vector<Granule> granules_;
};

}  // namespace deep_gemm::emulator
