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

void Accesses::renew_page(u32 offset) {
    std::unique_ptr<Page>& page = pages_[offset / kPageBytes];
    if (!page) page = std::make_unique<Page>();
    for (Chunk& c : page->chunks) c.clear();
    for (u32 warp : page->readers) std::fill_n(page->latest[warp]->present, kWords, 0);
    page->readers.clear();
    page->generation = generation_;
}

Accesses::Latest& Accesses::latest_of(Page& page, u32 warp) {
    if (page.latest.size() <= warp) [[unlikely]]
        page.latest.resize(num_warps_);
    std::unique_ptr<Latest>& latest = page.latest[warp];
    if (!latest) [[unlikely]]
        latest = std::make_unique<Latest>();
    const u64* present = latest->present;
    if ((present[0] | present[1] | present[2] | present[3]) == 0) [[unlikely]] {
        if (std::find(page.readers.begin(), page.readers.end(), warp) == page.readers.end())
            page.readers.push_back(warp);
    }
    return *latest;
}

template <typename Visit>
bool Accesses::any_place(Page& page, u32 offset, Visit visit) {
    if (!chunk(page, offset).placed) return false;
    const u64 bit = u64{1} << index(offset);
    for (u32 warp : page.readers) {
        Latest& latest = *page.latest[warp];
        for (u32 word = 0; word < kWords; ++word)
            if ((latest.present[word] & bit) != 0 &&
                visit(latest.reads[word][index(offset)], latest.present[word]))
                return true;
    }
    return false;
}

template <typename Visit>
bool Accesses::any_read(Page& page, u32 offset, Visit visit) {
    for (Access& e : chunk(page, offset).reads)
        if (visit(e)) return true;
    return any_place(page, offset, [&](const Access& e, u64&) { return visit(e); });
}

const Race* Accesses::report(const Access& earlier, bool writes, const Observer& observer, u32 offset) {
    race_ = {earlier, writes, observer, offset};
    return &race_;
}

// A lane's read among the listed ones: joins its like, and stands for the lane's earlier ones.
bool Accesses::merge_read(Chunk& chunk, const Access& access) {
    bool merged = false;
    chunk.reads.erase_if([&](Access& e) {
        if (e.unit != access.unit) return false;
        if (e.time == access.time && e.bytes == access.bytes && e.strong == access.strong) {
            e.lanes |= access.lanes;
            merged = true;
        } else if ((e.bytes & ~access.bytes) == 0) {
            e.lanes &= ~access.lanes;
        }
        return e.lanes == 0;
    });
    return merged;
}

// The race of the first lane that does not know of a write it reads.
const Race* Accesses::unordered_write(Chunk& chunk, Observer observer, const Access& read, u32 offset) {
    for (u32 lanes = read.lanes; lanes != 0; lanes &= lanes - 1) {
        observer.lane = static_cast<u32>(std::countr_zero(lanes));
        for (const Access& e : chunk.writes) {
            const u32 common = e.bytes & read.bytes;
            if (common == 0 || (e.strong && read.strong) || knows(observer, e, true)) continue;
            return report(e, true, observer, offset + static_cast<u32>(std::countr_zero(common)));
        }
    }
    return nullptr;
}

const Race* Accesses::read(const Observer& observer, Access access, u32 offset, u32 bytes) {
    const Race* race = nullptr;
    const u32 first_lane = 1u << observer.lane;
    any_chunk(offset, bytes, [&](u32 at, u16 mask) {
        Page& page = this->page(at);
        Chunk& c = chunk(page, at);
        access.bytes = mask;
        for (const Access& e : c.writes) {
            if ((e.bytes & mask) == 0 || knows(*observer.clock, e, true, e.lanes)) continue;
            race = unordered_write(c, observer, access, at);
            if (race != nullptr) return true;
            break;
        }
        if (!c.reads.empty() && merge_read(c, access)) return false;
        Latest& latest = latest_of(page, access.unit);
        const u32 word = static_cast<u32>(std::countr_zero(mask)) / 4;
        const u64 bit = u64{1} << index(at);
        Access& mine = latest.reads[word][index(at)];
        if ((latest.present[word] & bit) != 0) {
            if (mine.time == access.time && mine.bytes == mask && mine.strong == access.strong) {
                mine.lanes |= access.lanes;
                return false;
            }
            const u32 stood_for = (mine.bytes & ~mask) == 0 ? access.lanes : 0;
            if ((mine.lanes & ~(stood_for & first_lane)) != 0) {
                c.reads.erase_if(
                    [&](const Access& e) { return (e.bytes & ~mask) == 0 && knows(observer, e, false); });
            }
            mine.lanes &= ~stood_for;
            if (mine.lanes != 0) c.reads.push(mine);
        }
        latest.present[word] |= bit;
        c.placed = true;
        mine = access;
        return false;
    });
    return race;
}

const Race* Accesses::write(const Observer& observer, Access access, u32 offset, u32 bytes) {
    const Race* race = nullptr;
    any_chunk(offset, bytes, [&](u32 at, u16 mask) {
        Page& page = this->page(at);
        Chunk& c = chunk(page, at);
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
        if (any_read(page, at, [&](const Access& e) { return conflict(e, false); })) return true;
        const auto cover = [&](Access& e) {
            e.bytes &= static_cast<u16>(~mask);
            return e.bytes == 0;
        };
        c.writes.erase_if(cover);
        c.reads.erase_if(cover);
        any_place(page, at, [&](Access& e, u64& present) {
            if (cover(e)) present &= ~(u64{1} << index(at));
            return false;
        });
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

// All observers know of the access; else the race is in `race_`.
bool Accesses::ordered(const Access& earlier, bool writes, std::span<const Observer> observers, u32 offset,
                       Access& checked) {
    if (same_event(earlier, checked) && (earlier.lanes & ~checked.lanes) == 0) return true;
    for (const Observer& observer : observers) {
        if (knows(observer, earlier, writes)) continue;
        report(earlier, writes, observer, offset + static_cast<u32>(std::countr_zero(earlier.bytes)));
        return false;
    }
    checked = earlier;
    return true;
}

const Race* Accesses::engine_read_chunk(std::span<const Observer> observers, const Access& access, u32 offset,
                                        Checked& checked) {
    Chunk& c = chunk(page(offset), offset);
    for (const Access& e : c.writes)
        if (!ordered(e, true, observers, offset, checked.writes)) return &race_;
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
    for (u32 at = offset; at < offset + bytes; at += kAccessChunkBytes) {
        Page& page = this->page(at);
        Chunk& c = chunk(page, at);
        for (const Access& e : c.writes)
            if (!ordered(e, true, {&observer, 1}, at, checked.writes)) return &race_;
        const auto unordered = [&](const Access& e) {
            return !ordered(e, false, {&observer, 1}, at, checked.reads);
        };
        if (any_read(page, at, unordered)) return &race_;
        any_place(page, at, [&](Access&, u64& present) {
            present &= ~(u64{1} << index(at));
            return false;
        });
        c.clear();
        c.writes.push(whole);
    }
    return nullptr;
}

}  // namespace deep_gemm::emulator
