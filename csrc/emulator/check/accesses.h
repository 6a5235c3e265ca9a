// The accesses of a CTA's shared memory that a later one could still conflict with: per 16-byte chunk the
// last writes and the reads since, each with the lanes or the engine that made them, when, and where in the
// program. An access that conflicts with an earlier one which its thread does not know of is a race, whatever
// the schedule did. The method is FastTrack (Flanagan and Freund, PLDI 2009) with lane masks: an access is
// forgotten once a later one stands for it.
//
// Most accesses are reads of what every warp of a cluster reads. So each warp's latest read that starts in a
// word has a place of its own, where the warp finds it without looking at the others'.
#pragma once

#include "emulator/check/clocks.h"

#include <algorithm>
#include <bit>
#include <span>

namespace deep_gemm::emulator {

constexpr u32 kAccessChunkBytes = 16;

// `unit` numbers the warps of the cluster first, then the engines.
struct Access {
    Time time = 0;
    u32 lanes = 1;  // of a warp; an engine has one
    u32 pc = 0;
    u16 unit : 14 = 0;
    u16 strong : 1 = 0;     // atomic, volatile, relaxed, ...: does not race with its like
    u16 performed : 1 = 0;  // a write whose order is that of `performed`: an mbarrier's init
    u16 bytes = 0xffff;     // of the chunk, as a mask
};

// One thread that must know of earlier accesses.
struct Observer {
    const Clock* clock = nullptr;
    u32 unit = 0, lane = 0;
};

struct Race {
    Access earlier;
    bool earlier_writes = false;
    Observer observer;
    u32 offset = 0;  // of the first common byte
};

// One element in place, more on the heap: a chunk is a cache line.
class AccessList {
  public:
    [[nodiscard]] Access* begin() { return more_ ? more_.get() : &one_; }
    [[nodiscard]] Access* end() { return begin() + size_; }
    [[nodiscard]] bool empty() const { return size_ == 0; }
    void clear() { size_ = 0; }
    void push(const Access& access) {
        if (size_ == capacity_) grow();
        begin()[size_++] = access;
    }
    // `gone` may change an element that stays.
    template <typename Gone>
    void erase_if(Gone gone) {
        Access* kept = begin();
        for (Access& access : *this) {
            if (!gone(access)) *kept++ = access;
        }
        size_ = static_cast<u32>(kept - begin());
    }

  private:
    void grow();
    Access one_;
    u32 size_ = 0, capacity_ = 1;
    std::unique_ptr<Access[]> more_;  // once there, it holds all of them
};

class Accesses {
  public:
    // `num_warps` of the cluster.
    void reset(u32 smem_bytes, u32 num_warps) {
        pages_.resize(std::max<size_t>(pages_.size(), smem_bytes / kPageBytes + 1));
        ++generation_;
        num_warps_ = num_warps;
    }

    // One lane's access. The race it makes, or none. A read may be that of several lanes with one clock,
    // which do the same one after the other; `observer` is the first of them.
    const Race* read(const Observer& observer, Access access, u32 offset, u32 bytes);
    const Race* write(const Observer& observer, Access access, u32 offset, u32 bytes);

    // An engine's access to whole chunks, on behalf of the observers: all must know of what was before.
    const Race* engine_read(std::span<const Observer> observers, const Access& access,
                            std::span<const u32> chunk_offsets);
    const Race* engine_read(const Observer& observer, const Access& access, u32 offset, u32 bytes);
    const Race* engine_write(const Observer& observer, const Access& access, u32 offset, u32 bytes);

    [[nodiscard]] bool knows(const Observer& observer, const Access& earlier, bool write) const {
        const u32 own = earlier.unit == observer.unit ? 1u << observer.lane : 0;
        return knows(*observer.clock, earlier, write, earlier.lanes & ~own);
    }

  private:
    // `lanes`: those of the earlier access that have to be known.
    [[nodiscard]] bool knows(const Clock& clock, const Access& earlier, bool write, u32 lanes) const {
        const u32 unit = earlier.unit;
        if (unit >= num_warps_) return clock.engine(unit - num_warps_) >= earlier.time;
        const bool performed = !write || earlier.performed;
        const KnownWarp known = performed ? clock.performed(unit) : clock.visible(unit);
        return known.covers(lanes, earlier.time);
    }

    static constexpr u32 kPageBytes = 1024, kPageChunks = kPageBytes / kAccessChunkBytes;
    static constexpr u32 kWords = kAccessChunkBytes / 4;

    struct Chunk {
        AccessList writes;
        AccessList reads;     // of engines, and what a warp read before its latest read, or in another way
        bool placed = false;  // there may be more reads, in the page's `latest`
        void clear() { writes.clear(), reads.clear(), placed = false; }
    };
    // A warp's latest reads of the chunks of a page, by the word in which they start.
    struct Latest {
        u64 present[kWords] = {};  // chunks, as a mask
        Access reads[kWords][kPageChunks];
    };
    struct Page {
        Chunk chunks[kPageChunks];
        std::vector<std::unique_ptr<Latest>> latest;  // by warp of the cluster
        std::vector<u32> readers;                     // warps with places in use
        u64 generation = 0;
    };
    // The accesses an engine's transfer found to be ordered: neighbours mostly have the same.
    struct Checked {
        Access writes, reads;
    };

    Page& page(u32 offset) {
        const std::unique_ptr<Page>& page = pages_[offset / kPageBytes];
        if (!page || page->generation != generation_) [[unlikely]]
            renew_page(offset);
        return *page;
    }
    static Chunk& chunk(Page& page, u32 offset) { return page.chunks[index(offset)]; }
    static u32 index(u32 offset) { return offset % kPageBytes / kAccessChunkBytes; }
    // Calls visit(a read of the chunk) until one is true.
    template <typename Visit>
    static bool any_read(Page& page, u32 offset, Visit visit);
    // Calls visit(place, bit of the chunk in `present`) for the chunk's reads in places of their own, until
    // one is true.
    template <typename Visit>
    static bool any_place(Page& page, u32 offset, Visit visit);
    Latest& latest_of(Page& page, u32 warp);
    bool merge_read(Chunk& chunk, const Access& access);
    [[nodiscard]] const Race* unordered_write(Chunk& chunk, Observer observer, const Access& read,
                                              u32 offset);
    void renew_page(u32 offset);

    const Race* report(const Access& earlier, bool writes, const Observer& observer, u32 offset);
    bool ordered(const Access& earlier, bool writes, std::span<const Observer> observers, u32 offset,
                 Access& checked);
    const Race* engine_read_chunk(std::span<const Observer> observers, const Access& access, u32 offset,
                                  Checked& checked);

    std::vector<std::unique_ptr<Page>> pages_;
    u64 generation_ = 0;
    u32 num_warps_ = 0;
    Race race_;
};

}  // namespace deep_gemm::emulator
