// Merging by sweeping over all boundaries; look-up by binary search.
#include "emulator/check/ranges.h"

#include <fmt/format.h>

#include <algorithm>

namespace deep_gemm::emulator {

Ranges::Ranges(std::span<const driver::MemoryRange> stated, std::span<const driver::MemoryRange> defaults) {
    struct Edge {
        u64 at;
        int stated, stated_writable, stated_constant, fallback;  // +1 at the beginning, -1 at the end
    };
    std::vector<Edge> edges;
    for (const auto& r : stated) {
        if (r.bytes == 0) continue;
        edges.push_back({r.address, 1, r.writable, r.constant, 0});
        edges.push_back(
            {r.address + r.bytes, -1, -static_cast<int>(r.writable), -static_cast<int>(r.constant), 0});
    }
    for (const auto& r : defaults) {
        if (r.bytes == 0) continue;
        edges.push_back({r.address, 0, 0, 0, 1});
        edges.push_back({r.address + r.bytes, 0, 0, 0, -1});
    }
    std::sort(edges.begin(), edges.end(), [](const Edge& x, const Edge& y) { return x.at < y.at; });
    int listed = 0, listed_writable = 0, listed_constant = 0, fallback = 0;
    for (size_t i = 0; i < edges.size(); ++i) {
        listed += edges[i].stated;
        listed_writable += edges[i].stated_writable;
        listed_constant += edges[i].stated_constant;
        fallback += edges[i].fallback;
        if (i + 1 == edges.size() || edges[i + 1].at == edges[i].at || (listed == 0 && fallback == 0))
            continue;
        const bool writable = listed > 0 ? listed_writable > 0 : true;
        const bool constant = listed > 0 && listed_constant == listed;
        if (!segments_.empty() && segments_.back().end == edges[i].at &&
            segments_.back().writable == writable && segments_.back().constant == constant) {
            segments_.back().end = edges[i + 1].at;
        } else {
            segments_.push_back({edges[i].at, edges[i + 1].at, writable, constant});
        }
    }
}

const Segment* Ranges::find(u64 address, u64 bytes) const {
    auto after = std::upper_bound(segments_.begin(), segments_.end(), address,
                                  [](u64 value, const Segment& s) { return value < s.begin; });
    if (after == segments_.begin()) return nullptr;
    const Segment& segment = *std::prev(after);
    return address + bytes <= segment.end && address + bytes >= address ? &segment : nullptr;
}

std::string Ranges::describe(u64 address, u64 bytes) const {
    const Segment* nearest = nullptr;
    u64 best = ~u64{0};
    for (const Segment& s : segments_) {
        const u64 distance = address < s.begin ? s.begin - address : address >= s.end ? address - s.end : 0;
        if (distance < best || (distance == best && nearest == nullptr)) best = distance, nearest = &s;
    }
    if (nearest == nullptr) return "the launch names no global memory";
    const char* kind = nearest->writable ? "writable" : "read-only";
    const u64 size = nearest->end - nearest->begin;
    if (address >= nearest->begin && address + bytes <= nearest->end) {
        return fmt::format("inside the {} range [{:#x}, {:#x}) of {} bytes", kind, nearest->begin,
                           nearest->end, size);
    }
    if (address < nearest->begin) {
        return fmt::format("{} bytes before the {} range [{:#x}, {:#x}) of {} bytes",
                           nearest->begin - address, kind, nearest->begin, nearest->end, size);
    }
    return fmt::format("{} bytes past the end of the {} range [{:#x}, {:#x}) of {} bytes",
                       address + bytes - nearest->end, kind, nearest->begin, nearest->end, size);
}

}  // namespace deep_gemm::emulator
