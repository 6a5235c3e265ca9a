// cp.async (4, 8 or 16 bytes per lane, in the generic proxy) with its groups, and cp.async.mbarrier.arrive.
// The bytes move when the copy lands: source and destination may not change, or be looked at, before that.
#include "emulator/exec/copy.h"
#include "emulator/exec/events.h"
#include "emulator/exec/mbarrier_access.h"

namespace deep_gemm::emulator {
namespace {

struct LaneCopy {
    const std::byte* from;
    SharedPlace to;
    u32 bytes;  // read from global; the rest is zero
};

// The copies issued so far have landed.
template <typename F>
void arrive_now(Warp& w, Cta& cta, u32 offset, F change) {
    if (Races* races = w.cta->cluster->races.get()) races->cp_async_arrive(w, cta, offset);
    update_mbarrier(cta, offset, change);
}

void land(Warp& w, const std::vector<LaneCopy>& copies, u32 size, u64 group, u64 sequence) {
    const Cluster& c = *w.cta->cluster;
    for (const LaneCopy& copy : copies) {
        std::memcpy(copy.to.data(), copy.from, copy.bytes);
        std::memset(copy.to.data() + copy.bytes, 0, size - copy.bytes);
        copy.to.cta->shadow.generic_write(copy.to.offset, size, kWritten, writer_id(w), c.fence_ticks);
    }
    --w.copy_groups.at(group).writing;
    std::erase(w.copies_in_flight, sequence);
    u64 oldest = ~u64{0};
    for (u64 s : w.copies_in_flight) oldest = std::min(oldest, s);
    std::erase_if(w.copy_arrivals, [&](const CopyArrival& arrival) {
        if (oldest < arrival.sequence) return false;
        arrive_now(w, *arrival.cta, arrival.offset, [](u64& word) { mbarrier::arrive(word, 1); });
        return true;
    });
    w.cta->cluster->wake();
}

// op.a/op.immediate: destination; op.b: source base, op.list[0]: its offset; op.c: src-size or none.
// op.flags: size | source base is wide << 8.
void copy(Warp& w, const Op& op, u32 mask) {
    const u32 size = op.flags & 0xff;
    std::vector<LaneCopy> copies;
    for_lanes(mask, [&](u32 lane) {
        const SharedPlace to = shared_place(w, lane, lane_address(w, op, op.a, lane), size, size, false);
        if (!to.cta->shadow.writable(to.offset, size)) shared_state_fault(w, lane, to, size, "cp.async");
        const u32 wanted = op.c == kNoSlot ? size : read_lane<u32>(slot(w, op.c), lane);
        if (wanted > size) fault(w, static_cast<i32>(lane), "cp.async reads {} of {} bytes", wanted, size);
        const void* base = slot(w, op.b);
        const u64 source =
            (op.flags & 0x100 ? static_cast<const u64*>(base)[lane] : static_cast<const u32*>(base)[lane]) +
            op.list[0];
        const std::byte* from = nullptr;
        if (wanted != 0) from = global_place(w, lane, source, wanted, 1, false);
        if (source & (size - 1)) global_fault(w, lane, source, size, size, false);
        copies.push_back({from, to, wanted});
        to.cta->shadow.mark(kLanding, to.offset, size);
        if (Races* races = w.cta->cluster->races.get())
            races->cp_async(w, lane, *to.cta, to.offset, size, w.copy_groups.open());
    });
    const u64 group = w.copy_groups.open(), sequence = w.copies_issued++;
    ++w.copy_groups.at(group).writing;
    w.copies_in_flight.push_back(sequence);
    schedule(*w.cta->cluster, place_of(w), [&w, copies = std::move(copies), size, group, sequence] {
        land(w, copies, size, group, sequence);
    });
}

void commit(Warp& w, const Op&, u32) {
    w.copy_groups.commit();
}

void wait_group(Warp& w, const Op& op, u32 mask) {
    const u64 pending = static_cast<u64>(op.immediate), open = w.copy_groups.open();
    const bool all = op.flags != 0;
    if (all ? w.copies_in_flight.empty() : w.copy_groups.done(pending, false)) {
        const u64 groups = all ? open + 1 : open > pending ? open - pending : 0;
        if (Races* races = w.cta->cluster->races.get()) races->cp_async_pass(w, mask, groups);
        return;
    }
    w.block(w.pc - 1, {WaitKind::cp_async, w.pc - 1, mask, 0, static_cast<u32>(op.immediate)});
}

// op.flags: 1 for .noinc.
void arrive_when_landed(Warp& w, const Op& op, u32 mask) {
    for_lanes(mask, [&](u32 lane) {
        const SharedPlace place = mbarrier_place(w, lane, lane_address(w, op, op.a, lane), false);
        const bool increments = (op.flags & 1) == 0;
        const bool landed = w.copies_in_flight.empty();
        const auto change = [&](u64& word) {
            if (increments) mbarrier::add_pending(word);
            if (landed) mbarrier::arrive(word, 1);
        };
        landed ? arrive_now(w, *place.cta, place.offset, change)
               : update_mbarrier(*place.cta, place.offset, change);
        if (!landed) w.copy_arrivals.push_back({w.copies_issued, place.cta, place.offset});
    });
}

}  // namespace

void decode_copy_async(Decoder& x) {
    if (x.has("mbarrier")) {
        x.set_address(x.operand(0));
        x.op.flags |= x.has("noinc") ? 1 : 0;
        x.op.run = arrive_when_landed;
    } else if (x.has("commit_group")) {
        x.op.run = commit;
    } else if (x.has("wait_group") || x.has("wait_all")) {
        x.op.flags = x.has("wait_all") ? 1 : 0;
        x.op.immediate = x.has("wait_all") ? 0 : static_cast<i64>(x.immediate(x.operand(0)));
        x.op.run = wait_group;
    } else {
        x.set_address(x.operand(0));
        const Address from = x.address(x.operand(1));
        const u32 size = static_cast<u32>(x.immediate(x.operand(2)));
        if (size != 4 && size != 8 && size != 16) x.unsupported("cp.async copies 4, 8 or 16 bytes");
        x.op.b = from.base;
        x.set_list({static_cast<u32>(from.offset)});
        const bool policy = x.has("L2::cache_hint");
        const size_t last = x.num_operands() - (policy ? 1 : 0);
        if (last > 3) {
            if (x.register_bytes(x.operand(3)) == 0 && !x.is_immediate(x.operand(3)))
                x.unsupported("cp.async with ignore-src");
            x.op.c = x.source(x.operand(3), 4);
        }
        x.op.flags |= size | (from.wide ? 0x100 : 0);
        x.op.run = copy;
    }
    if (x.op.run == nullptr) x.unsupported();
}

}  // namespace deep_gemm::emulator
