// The slow halves of memory.h: everything that ends in a fault or leaves the own CTA.
#include "emulator/exec/memory.h"

#include "emulator/exec/families.h"

namespace deep_gemm::emulator {

SharedPlace shared_place_slow(Warp& w, u32 lane, u64 address, u32 bytes, bool cluster) {
    const Cluster& c = *w.cta->cluster;
    const u64 rank = address >> kRankShift;
    const u32 offset = static_cast<u32>(address & kOffsetMask);
    if (rank >= c.ctas.size()) {
        fault(w, static_cast<i32>(lane), "shared address {:#x} names CTA rank {} of a cluster of {}", address,
              rank, c.ctas.size());
    }
    if (rank != w.cta->rank && !cluster) {
        fault(w, static_cast<i32>(lane),
              "a shared::cta access names CTA rank {} from CTA rank {}; use shared::cluster", rank,
              w.cta->rank);
    }
    Cta& target = *c.ctas[rank];
    if (offset < kReservedSmemBytes || offset + bytes > target.smem.size()) {
        fault(w, static_cast<i32>(lane),
              "access of {} bytes at shared offset {} is outside the CTA's shared memory [{}, {}); the "
              "launch asked for {} "
              "dynamic bytes",
              bytes, offset, kReservedSmemBytes, target.smem.size(), c.launch->dynamic_smem_bytes);
    }
    if (target.exited) {
        fault(w, static_cast<i32>(lane),
              "access to the shared memory of CTA rank {}, which has exited; add a cluster barrier", rank);
    }
    return {&target, offset};
}

void shared_state_fault(const Warp& w, u32 lane, const SharedPlace& place, u32 bytes, const char* access) {
    const SharedShadow& shadow = place.cta->shadow;
    const char* why = "which nothing has written";
    if (shadow.any(kReading, place.offset, bytes))
        why = "which an asynchronous copy or wgmma may still read; wait for it first";
    if (shadow.any(kLanding, place.offset, bytes))
        why = "which an asynchronous copy in flight writes; wait for its mbarrier or group";
    if (shadow.any(kBarrier, place.offset, bytes)) why = "which holds an mbarrier, not data";
    fault(w, static_cast<i32>(lane), "{} of {} bytes at shared offset {}, {}", access, bytes, place.offset,
          why);
}

void dependency_fault(Warp& w, u32 lane, u64 address, bool write) {
    fault(w, static_cast<i32>(lane),
          "{} of global memory at {:#x} before griddepcontrol.wait in a launch that may overlap the grid "
          "before it",
          write ? "write" : "read", address);
}

void global_fault(Warp& w, u32 lane, u64 address, u32 bytes, u32 alignment, bool write) {
    const Ranges& ranges = w.cta->cluster->launch->ranges;
    const i32 who = static_cast<i32>(lane);
    const Segment* found = ranges.find(address, bytes);
    if (found != nullptr && write && !found->writable) {
        fault(w, who, "write of {} bytes to global address {:#x}, {}", bytes, address,
              ranges.describe(address, bytes));
    }
    if (found != nullptr) {
        fault(w, who, "global address {:#x} is not aligned to the {} bytes this access needs", address,
              alignment);
    }
    fault(w, who, "{} of {} bytes at global address {:#x} is out of bounds: {}", write ? "write" : "read",
          bytes, address, ranges.describe(address, bytes));
}

std::byte* local_place(Warp& w, u32 lane, u64 offset, u32 bytes, u32 alignment) {
    const u32 size = w.program->local_bytes;
    if (offset + bytes > size || offset + bytes < offset) {
        fault(w, static_cast<i32>(lane),
              "access of {} bytes at local offset {} is outside the {} bytes of local memory", bytes, offset,
              size);
    }
    if (offset & (alignment - 1)) {
        fault(w, static_cast<i32>(lane), "local offset {} is not aligned to the {} bytes this access needs",
              offset, alignment);
    }
    return w.local + static_cast<size_t>(lane) * size + offset;
}

std::byte* lane_place(Warp& w, MemorySpace space, u32 lane, u64 address, u32 bytes, u32 alignment, bool read,
                      bool write, bool strong) {
    if (space == MemorySpace::generic) space = classify(address);
    if (space == MemorySpace::global) return global_place(w, lane, address, bytes, alignment, write);
    if (space == MemorySpace::local) return local_place(w, lane, address, bytes, alignment);
    const SharedPlace place =
        shared_place(w, lane, address, bytes, alignment, space == MemorySpace::shared_cluster);
    if (read) check_shared_read(w, 1u << lane, place, bytes, strong);
    if (write) note_shared_write(w, lane, place, bytes, strong);
    return place.data();
}

MemorySpace space_of(const Decoder& x) {
    if (x.has("shared::cluster")) return MemorySpace::shared_cluster;
    if (x.has("shared") || x.has("shared::cta")) return MemorySpace::shared_cta;
    if (x.has("local")) return MemorySpace::local;
    return x.has("global") || x.has("const") ? MemorySpace::global : MemorySpace::generic;
}

void note_communication(Decoder& x, MemorySpace space) {
    const bool ordered = x.has("volatile") || x.has("acquire") || x.has("release") || x.has("relaxed") ||
                         x.has("mmio") || x.in->root == "atom" || x.in->root == "red";
    if (ordered) x.op.flags |= kStrong;
    if (ordered && (space == MemorySpace::global || space == MemorySpace::generic))
        x.program.communicates = true;
}

}  // namespace deep_gemm::emulator
