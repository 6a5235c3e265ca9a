// Checking and recording accesses, chunk by chunk.
#include "emulator/check/accesses.h"

namespace deep_gemm::emulator {
namespace {

constexpr u16 kAllBytes = 0xffff;

// Calls visit(chunk's offset, mask of its bytes) for the chunks of an access; stops at the first true.
template <typename Visit>
bool any_chunk(u32 offset, u32 bytes, Visit visit) {
    const u32 end = offset + bytes;
    for (u32 at = offset; at < end;) {
        const u32 first = at % kAccessChunkBytes, base = at - first;
        const u32 count = std::min(end - at, kAccessChunkBytes - first);
        if (visit(base, static_cast<u16>(((1u << count) - 1) << first))) return true;
        at = base + kAccessChunkBytes;
    }
    return false;
}

bool same_event(const Access& x, const Access& y) {
    return x.unit == y.unit && x.time == y.time;
}

}  // namespace

void AccessList::grow() {
    const u32 capacity = 4 * capacity_;
    auto more = std::make_unique<Access[]>(capacity);
    for (u32 i = 0; i < size_; ++i) more[i] = begin()[i];
    more_ = std::move(more);
    capacity_ = capacity;
}

Accesses::Chunk& Accesses::chunk(u32 offset) {
    std::unique_ptr<Page>& page = pages_[offset / kPageBytes];
    if (!page) page = std::make_unique<Page>();
    if (page->generation != generation_) {
        for (Chunk& c : page->chunks) c.writes.clear(), c.reads.clear();
        page->generation = generation_;
    }
    return page->chunks[offset % kPageBytes / kAccessChunkBytes];
}

const Race* Accesses::report(const Access& earlier, bool writes, const Observer& observer, u32 offset) {
    race_ = {earlier, writes, observer, offset};
    return &race_;
}

const Race* Accesses::read(const Observer& observer, Access access, u32 offset, u32 bytes) {
    const Race* race = nullptr;
    any_chunk(offset, bytes, [&](u32 at, u16 mask) {
        Chunk& c = chunk(at);
        access.bytes = mask;
        for (const Access& e : c.writes) {
            const u32 common = e.bytes & mask;
            if (common == 0 || (e.strong && access.strong) || knows(observer, e, true)) continue;
            race = report(e, true, observer, at + static_cast<u32>(std::countr_zero(common)));
            return true;
        }
        bool merged = false;
        const u32 lane = access.lanes;
        c.reads.erase_if([&](Access& e) {
            if (e.unit != access.unit) return false;
            if (e.time == access.time && e.bytes == mask && e.strong == access.strong) {
                e.lanes |= lane;
                merged = true;
            } else if ((e.bytes & ~mask) == 0) {
                e.lanes &= ~lane;  // this read stands for the lane's earlier one
            }
            return e.lanes == 0;
        });
        if (merged) return false;
        c.reads.erase_if(
            [&](const Access& e) { return (e.bytes & ~mask) == 0 && knows(observer, e, false); });
        c.reads.push(access);
        return false;
    });
    return race;
}

const Race* Accesses::write(const Observer& observer, Access access, u32 offset, u32 bytes) {
    const Race* race = nullptr;
    any_chunk(offset, bytes, [&](u32 at, u16 mask) {
        Chunk& c = chunk(at);
        access.bytes = mask;
        const auto conflict = [&](const Access& e, bool write) {
            const u32 common = e.bytes & mask;
            if (common == 0 || (e.strong && access.strong)) return false;
            // Lanes that store to one place in one instruction: one of the values stays, which is what was
            // asked for.
            if (write && same_event(e, access) && e.pc == access.pc) return false;
            if (knows(observer, e, write)) return false;
            race = report(e, write, observer, at + static_cast<u32>(std::countr_zero(common)));
            return true;
        };
        for (const Access& e : c.writes)
            if (conflict(e, true)) return true;
        for (const Access& e : c.reads)
            if (conflict(e, false)) return true;
        const auto cover = [&](Access& e) {
            e.bytes &= static_cast<u16>(~mask);
            return e.bytes == 0;
        };
        c.writes.erase_if(cover);
        c.reads.erase_if(cover);
        for (Access& e : c.writes) {
            if (!same_event(e, access) || e.lanes != access.lanes || e.pc != access.pc) continue;
            e.bytes |= mask;
            return false;
        }
        c.writes.push(access);
        return false;
    });
    return race;
}

const Race* Accesses::check(AccessList& list, bool writes, std::span<const Observer> observers, u32 offset,
                            Access& checked) {
    for (const Access& e : list) {
        if (same_event(e, checked) && (e.lanes & ~checked.lanes) == 0) continue;
        for (const Observer& observer : observers) {
            if (!knows(observer, e, writes))
                return report(e, writes, observer, offset + static_cast<u32>(std::countr_zero(e.bytes)));
        }
        checked = e;
    }
    return nullptr;
}

const Race* Accesses::engine_read_chunk(std::span<const Observer> observers, const Access& access, u32 offset,
                                        Checked& checked) {
    Chunk& c = chunk(offset);
    if (const Race* race = check(c.writes, true, observers, offset, checked.writes)) return race;
    for (Access& e : c.reads) {
        if (e.unit != access.unit) continue;
        e = access;
        return nullptr;
    }
    c.reads.push(access);
    return nullptr;
}

const Race* Accesses::engine_read(std::span<const Observer> observers, const Access& access,
                                  std::span<const u32> chunk_offsets) {
    Checked checked;
    for (u32 offset : chunk_offsets) {
        if (const Race* race = engine_read_chunk(observers, access, offset, checked)) return race;
    }
    return nullptr;
}

const Race* Accesses::engine_read(const Observer& observer, const Access& access, u32 offset, u32 bytes) {
    Checked checked;
    for (u32 at = 0; at < bytes; at += kAccessChunkBytes) {
        if (const Race* race = engine_read_chunk({&observer, 1}, access, offset + at, checked)) return race;
    }
    return nullptr;
}

const Race* Accesses::engine_write(const Observer& observer, const Access& access, u32 offset, u32 bytes) {
    Checked checked;
    Access whole = access;
    whole.bytes = kAllBytes;
    for (u32 at = 0; at < bytes; at += kAccessChunkBytes) {
        Chunk& c = chunk(offset + at);
        if (const Race* race = check(c.writes, true, {&observer, 1}, offset + at, checked.writes))
            return race;
        if (const Race* race = check(c.reads, false, {&observer, 1}, offset + at, checked.reads)) return race;
        c.writes.clear();
        c.reads.clear();
        c.writes.push(whole);
    }
    return nullptr;
}

}  // namespace deep_gemm::emulator
