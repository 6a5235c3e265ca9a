// Backward liveness on bit sets, then one linear scan.
#include "emulator/ir/slots.h"

#include "emulator/ir/effects.h"
#include "emulator/ir/op.h"

#include <algorithm>
#include <map>

namespace deep_gemm::emulator {
namespace {

using Bits = std::vector<u64>;

void set(Bits& bits, u32 i) {
    bits[i / 64] |= u64{1} << (i % 64);
}
void clear(Bits& bits, u32 i) {
    bits[i / 64] &= ~(u64{1} << (i % 64));
}

struct Block {
    u32 begin = 0, end = 0;
    std::vector<u32> successors;
    Bits live_in, live_out, used, defined;  // used: read before any write in the block
};

struct Interval {
    u32 id = 0, first = ~0u, last = 0;
    void cover(u32 at) {
        first = std::min(first, at);
        last = std::max(last, at);
    }
};

std::vector<Block> build_blocks(const std::vector<Effects>& effects) {
    const u32 count = static_cast<u32>(effects.size());
    std::vector<bool> leader(count + 1, false);
    leader[0] = true;
    for (u32 i = 0; i < count; ++i) {
        for (u32 target : effects[i].targets) leader[target] = true;
        if (!effects[i].targets.empty() || !effects[i].falls_through) leader[i + 1] = true;
    }
    std::vector<Block> blocks;
    std::vector<u32> block_of(count + 1, 0);
    for (u32 i = 0; i < count; ++i) {
        if (leader[i]) {
            if (!blocks.empty()) blocks.back().end = i;
            blocks.emplace_back();
            blocks.back().begin = i;
            blocks.back().end = count;
        }
        block_of[i] = static_cast<u32>(blocks.size() - 1);
    }
    for (Block& block : blocks) {
        const u32 last = block.end - 1;
        if (effects[last].falls_through && block.end < count) block.successors.push_back(block_of[block.end]);
        for (u32 target : effects[last].targets) {
            if (target < count) block.successors.push_back(block_of[target]);
        }
    }
    return blocks;
}

void solve(std::vector<Block>& blocks, const std::vector<Effects>& effects, size_t num_registers) {
    const size_t words = (num_registers + 63) / 64;
    for (Block& block : blocks) {
        block.live_in.assign(words, 0);
        block.live_out.assign(words, 0);
        block.used.assign(words, 0);
        block.defined.assign(words, 0);
        for (u32 i = block.end; i-- > block.begin;) {
            for (u32 r : effects[i].writes) set(block.defined, r), clear(block.used, r);
            for (u32 r : effects[i].reads) set(block.used, r);
        }
    }
    for (bool changed = true; changed;) {
        changed = false;
        for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
            for (u32 successor : block->successors) {
                for (size_t w = 0; w < words; ++w) block->live_out[w] |= blocks[successor].live_in[w];
            }
            for (size_t w = 0; w < words; ++w) {
                const u64 in = block->used[w] | (block->live_out[w] & ~block->defined[w]);
                changed |= in != block->live_in[w];
                block->live_in[w] = in;
            }
        }
    }
}

std::vector<Interval> intervals_of(const std::vector<Block>& blocks, const std::vector<Effects>& effects,
                                   size_t count) {
    std::vector<Interval> intervals(count);
    for (u32 r = 0; r < count; ++r) intervals[r].id = r;
    for (u32 i = 0; i < effects.size(); ++i) {
        for (u32 r : effects[i].reads) intervals[r].cover(i);
        for (u32 r : effects[i].writes) intervals[r].cover(i);
    }
    for (const Block& block : blocks) {
        for (u32 r = 0; r < count; ++r) {
            if (block.live_in[r / 64] >> (r % 64) & 1) intervals[r].cover(block.begin);
            if (block.live_out[r / 64] >> (r % 64) & 1) intervals[r].cover(block.end - 1);
        }
    }
    for (const Effects& effect : effects) {
        for (u32 r : effect.asynchronous) intervals[r].first = 0, intervals[r].last = ~0u;
    }
    return intervals;
}

u32 slot_bytes(ptx::RegisterWidth width) {
    return width == ptx::RegisterWidth::predicate ? 4 : static_cast<u32>(width) * kLanes;
}

}  // namespace

SlotMap assign_slots(const ptx::Function& function, u32 base) {
    const size_t count = function.registers.size();
    std::vector<Effects> effects;
    effects.reserve(function.code.size());
    for (const auto& instruction : function.code) effects.push_back(effects_of(function, instruction));
    SlotMap map;
    map.offset.assign(count, kNoSlot);
    map.bytes = base;
    if (effects.empty()) return map;
    std::vector<Block> blocks = build_blocks(effects);
    solve(blocks, effects, count);
    std::vector<Interval> intervals = intervals_of(blocks, effects, count);
    std::erase_if(intervals, [](const Interval& x) { return x.first == ~0u; });
    std::stable_sort(intervals.begin(), intervals.end(),
                     [](const Interval& x, const Interval& y) { return x.first < y.first; });

    std::map<u32, std::vector<u32>> free;          // slot bytes -> offsets
    std::multimap<u32, std::pair<u32, u32>> busy;  // last use -> (slot bytes, offset)
    // Predicates first: they are 4 bytes each and must not disturb the 64-byte alignment of lane slots.
    for (const bool predicates : {true, false}) {
        busy.clear();
        map.bytes = align_up(map.bytes, 64u);
        const u32 begin = map.bytes;
        for (const Interval& interval : intervals) {
            const auto width = function.registers[interval.id].width;
            if ((width == ptx::RegisterWidth::predicate) != predicates) continue;
            while (!busy.empty() && busy.begin()->first < interval.first) {
                free[busy.begin()->second.first].push_back(busy.begin()->second.second);
                busy.erase(busy.begin());
            }
            const u32 bytes = slot_bytes(width);
            auto& available = free[bytes];
            u32 offset = map.bytes;
            if (available.empty()) {
                map.bytes += bytes;
            } else {
                offset = available.back();
                available.pop_back();
            }
            map.offset[interval.id] = offset;
            busy.emplace(interval.last, std::pair{bytes, offset});
        }
        if (!predicates) map.peak_lanes_bytes = map.bytes - begin;
    }
    return map;
}

}  // namespace deep_gemm::emulator
