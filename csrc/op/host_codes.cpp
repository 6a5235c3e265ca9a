#include "op/host_codes.h"

namespace deep_gemm::op {

namespace {

// Where the bits of a code of Packing::fragments are, of the code of a pair that stands in the low half; by
// i of elements 8 i + 2 q and the one after. A crossed sign is in the half of the pair's other code.
struct FragmentBits {
    u32 sign, bit[3];
    bool crossed;
};
constexpr FragmentBits kFragmentBits[4] = {
    {15, {6, 7, 8}, false}, {2, {9, 10, 11}, true}, {5, {12, 13, 14}, true}, {1, {3, 4, 0}, false}};
constexpr u32 kHalfBits = 16, kSignOfCode = 3;

// Calls visit(bit of the row, bit of the code) for the four bits of the code of element e.
template <typename Visit>
void for_bits(Packing packing, u64 e, Visit&& visit) {
    if (packing == Packing::fragments) {
        const u64 group = e / kFragmentK, i = e % kFragmentK / 8, q = e % 8 / 2, half = e % 2;
        const FragmentBits& place = kFragmentBits[i];
        const u64 word = (group * 4 + q) * 32;
        for (u32 b = 0; b < kSignOfCode; ++b) visit(word + half * kHalfBits + place.bit[b], b);
        visit(word + (half ^ (place.crossed ? 1 : 0)) * kHalfBits + place.sign, kSignOfCode);
        return;
    }
    u64 first = e * 4;
    if (packing == Packing::interleaved) {
        const u64 chunk = e / kInterleaveK, inside = e % kInterleaveK;
        const u64 g = inside / 32, c = inside / 8 % 4;
        first = chunk * kInterleaveK * 4 + (4 * c + g) * 32 + inside % 8 * 4;
    }
    for (u32 b = 0; b < 4; ++b) visit(first + b, b);
}

}  // namespace

void pack_row(Packing packing, std::span<const u8> codes, u8* row) {
    for (u64 e = 0; e < codes.size(); ++e)
        for_bits(packing, e, [&](u64 to, u32 from) {
            row[to / 8] = static_cast<u8>(row[to / 8] | (codes[e] >> from & 1) << to % 8);
        });
}

void unpack_row(Packing packing, const u8* row, std::span<u8> codes) {
    for (u64 e = 0; e < codes.size(); ++e) {
        codes[e] = 0;
        for_bits(packing, e, [&](u64 from, u32 to) {
            codes[e] = static_cast<u8>(codes[e] | (row[from / 8] >> from % 8 & 1) << to);
        });
    }
}

}  // namespace deep_gemm::op
