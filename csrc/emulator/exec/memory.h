// Address resolution and checks for every access of every state space. A resolved access is a host pointer;
// bounds, permission, alignment, "never written" and "this is an mbarrier" are checked on the way.
#pragma once

#include "emulator/exec/fault.h"
#include "emulator/exec/lanes.h"
#include "emulator/exec/races.h"

namespace deep_gemm::emulator {

// Op::flags of loads, stores and atomics: volatile, relaxed, acquire, release, atomic.
constexpr u32 kStrong = 1u << 30;

enum class MemorySpace : u8 { global, shared_cta, shared_cluster, local, generic };

[[nodiscard]] inline u64 lane_address(Warp& w, const Op& op, u32 base, u32 lane) {
    const void* a = slot(w, base);
    const u64 value =
        op.flags & kWideBase ? static_cast<const u64*>(a)[lane] : static_cast<const u32*>(a)[lane];
    return value + static_cast<u64>(op.immediate);
}

// lane_address() of all lanes; those that are not active may be anything.
inline void lane_addresses(Warp& w, const Op& op, u32 base, u64 (&addresses)[kLanes]) {
    const void* a = slot(w, base);
    const u64 offset = static_cast<u64>(op.immediate);
    if (op.flags & kWideBase) {
        for (u32 lane = 0; lane < kLanes; ++lane) addresses[lane] = static_cast<const u64*>(a)[lane] + offset;
    } else {
        for (u32 lane = 0; lane < kLanes; ++lane) addresses[lane] = static_cast<const u32*>(a)[lane] + offset;
    }
}

// A checked place in some CTA's shared memory.
struct SharedPlace {
    Cta* cta = nullptr;
    u32 offset = 0;
    [[nodiscard]] std::byte* data() const { return cta->smem.data() + offset; }
};

[[nodiscard]] SharedPlace shared_place_slow(Warp& w, u32 lane, u64 address, u32 bytes, bool cluster);

// `cluster`: the instruction may name another CTA of the cluster.
[[nodiscard]] inline SharedPlace shared_place(Warp& w, u32 lane, u64 address, u32 bytes, u32 alignment,
                                              bool cluster) {
    const u64 own = address - (static_cast<u64>(w.cta->rank) << kRankShift);
    if (own >= kReservedSmemBytes && own + bytes <= w.cta->smem.size() && (address & (alignment - 1)) == 0)
        [[likely]] {
        return {w.cta, static_cast<u32>(own)};
    }
    if (address & (alignment - 1)) {
        fault(w, static_cast<i32>(lane),
              "shared address {:#x} is not aligned to the {} bytes this access needs", address, alignment);
    }
    return shared_place_slow(w, lane, address, bytes, cluster);
}

[[noreturn]] void shared_state_fault(const Warp& w, u32 lane, const SharedPlace& place, u32 bytes,
                                     const char* access);

// `lanes` read the same place, one after the other.
inline void check_shared_read(Warp& w, u32 lanes, const SharedPlace& place, u32 bytes, bool strong = false) {
    if (!place.cta->shadow.readable(place.offset, bytes)) [[unlikely]]
        shared_state_fault(w, first_lane(lanes), place, bytes, "read");
    if (Races* races = w.cta->cluster->races.get())
        races->read(w, lanes, *place.cta, place.offset, bytes, strong);
}

// Nobody may write what a wgmma in flight still reads.
void check_tensor_reads(const Warp& w, u32 lane, const SharedPlace& place, u32 bytes, const char* access);

// A warp's number within its cluster: the writer recorded in shadows.
[[nodiscard]] inline u32 writer_id(const Warp& w) {
    return w.cta->rank << 6 | w.id;
}

inline void note_shared_write(Warp& w, u32 lane, const SharedPlace& place, u32 bytes, bool strong = false) {
    if (!place.cta->shadow.writable(place.offset, bytes)) [[unlikely]]
        shared_state_fault(w, lane, place, bytes, "write");
    if (place.cta->tensor_ops_in_flight != 0) check_tensor_reads(w, lane, place, bytes, "write");
    if (Races* races = w.cta->cluster->races.get())
        races->write(w, lane, *place.cta, place.offset, bytes, strong);
    place.cta->shadow.generic_write(place.offset, bytes, kWritten, writer_id(w), w.cta->cluster->fence_ticks);
}

// An asynchronous reader (bulk store, wgmma) is about to read: written, not in flight, and fenced.
void check_async_read(Warp& w, u32 lane, const SharedPlace& place, u32 bytes);

[[noreturn]] void global_fault(Warp& w, u32 lane, u64 address, u32 bytes, u32 alignment, bool write);

// PDL: a warp touches global memory before it has waited for the grid before.
[[noreturn]] void dependency_fault(Warp& w, u32 lane, u64 address, bool write);

[[nodiscard]] inline std::byte* global_place(Warp& w, u32 lane, u64 address, u32 bytes, u32 alignment,
                                             bool write) {
    const Segment& known = w.last_segment;
    const bool hit = address >= known.begin && address + bytes <= known.end && (!write || known.writable);
    if (!hit) {
        const Launch& launch = *w.cta->cluster->launch;
        const bool parameter = address - reinterpret_cast<u64>(launch.params) < w.program->param_bytes;
        const Segment* found = launch.ranges.find(address, bytes);
        if (w.before_dependency && !parameter && (found == nullptr || !found->constant || write))
            dependency_fault(w, lane, address, write);
        if (found == nullptr || (write && !found->writable))
            global_fault(w, lane, address, bytes, alignment, write);
        w.last_segment = *found;
    }
    if (address & (alignment - 1)) global_fault(w, lane, address, bytes, alignment, write);
    return reinterpret_cast<std::byte*>(address);
}

[[nodiscard]] inline bool all_in_last_segment(const Warp& w, const u64 (&addresses)[kLanes], u32 mask,
                                              u32 bytes, bool write) {
    const Segment& known = w.last_segment;
    if (known.end - known.begin < bytes || (write && !known.writable)) return false;
    const u64 span = known.end - known.begin - bytes, begin = known.begin, odd = bytes - 1;
    u64 bad = 0;
    if (mask == kFullMask) {
        for (u32 lane = 0; lane < kLanes; ++lane)
            bad |= (addresses[lane] & odd) | static_cast<u64>(addresses[lane] - begin > span);
    } else {
        for_lanes(mask, [&](u32 lane) {
            bad |= (addresses[lane] & odd) | static_cast<u64>(addresses[lane] - begin > span);
        });
    }
    return bad == 0;
}

// Whether global_place() gives each lane its address, found for all at once: in the range of the first.
[[nodiscard]] inline bool all_in_one_segment(Warp& w, const u64 (&addresses)[kLanes], u32 mask, u32 bytes,
                                             bool write) {
    if (all_in_last_segment(w, addresses, mask, bytes, write)) return true;
    const u32 lane = first_lane(mask);
    static_cast<void>(global_place(w, lane, addresses[lane], bytes, bytes, write));
    return all_in_last_segment(w, addresses, mask, bytes, write);
}

[[nodiscard]] std::byte* local_place(Warp& w, u32 lane, u64 offset, u32 bytes, u32 alignment);

// Which space a lane's generic address falls into; strips the window.
[[nodiscard]] inline MemorySpace classify(u64& address) {
    const u64 window = address & kWindowMask;
    if (window == kSharedWindow) return address &= ~kWindowMask, MemorySpace::shared_cluster;
    if (window == kLocalWindow) return address &= ~kWindowMask, MemorySpace::local;
    return MemorySpace::global;
}

// Host pointer of one lane's access; `write` also records it in the shadow.
[[nodiscard]] std::byte* lane_place(Warp& w, MemorySpace space, u32 lane, u64 address, u32 bytes,
                                    u32 alignment, bool read, bool write, bool strong = false);

// The space an ld / st / atom names.
class Decoder;
[[nodiscard]] MemorySpace space_of(const Decoder& x);
// ld.volatile, st.release, atom on global memory: CTAs may talk to each other.
void note_communication(Decoder& x, MemorySpace space);

}  // namespace deep_gemm::emulator
