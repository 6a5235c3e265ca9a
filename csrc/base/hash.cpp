#include "base/hash.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

namespace deep_gemm {

namespace {

static_assert(std::endian::native == std::endian::little, "digests are compared across machines");

constexpr u64 kOdd0 = 0xff51afd7ed558ccdull, kOdd1 = 0xbf58476d1ce4e5b9ull;

u64 load(const std::byte* bytes) {
    u64 value;
    std::memcpy(&value, bytes, sizeof(value));
    return value;
}

u64 avalanche(u64 value) {
    value ^= value >> 31;
    value *= kOdd0;
    value ^= value >> 29;
    value *= kOdd1;
    return value ^ (value >> 32);
}

}  // namespace

std::string Digest::hex() const {
    return fmt::format("{:016x}{:016x}", high, low);
}

void Hash::block(u64 first, u64 second) {
    a_ = (a_ ^ first) * kOdd0;
    a_ ^= a_ >> 32;
    b_ = (b_ ^ second ^ std::rotl(a_, 23)) * kOdd1;
    b_ ^= b_ >> 29;
    a_ += std::rotl(b_, 41);
}

Hash& Hash::bytes(std::span<const std::byte> data) {
    const size_t held = length_ % sizeof(tail_);
    length_ += data.size();
    if (held != 0) {
        const size_t taken = std::min(data.size(), sizeof(tail_) - held);
        std::memcpy(tail_ + held, data.data(), taken);
        data = data.subspan(taken);
        if (held + taken < sizeof(tail_)) return *this;
        block(load(tail_), load(tail_ + 8));
    }
    while (data.size() >= sizeof(tail_)) {
        block(load(data.data()), load(data.data() + 8));
        data = data.subspan(sizeof(tail_));
    }
    if (!data.empty()) std::memcpy(tail_, data.data(), data.size());
    return *this;
}

Hash& Hash::field(u64 number) {
    return bytes(std::as_bytes(std::span(&number, 1)));
}

Hash& Hash::field(std::string_view text) {
    field(text.size());
    return bytes(std::as_bytes(std::span(text)));
}

Digest Hash::digest() const {
    Hash last = *this;
    std::byte padded[sizeof(tail_)] = {};
    std::memcpy(padded, tail_, length_ % sizeof(tail_));
    last.block(load(padded), load(padded + 8));
    last.block(length_, ~length_);
    return {avalanche(last.a_ + last.b_), avalanche(last.b_ ^ std::rotl(last.a_, 32))};
}

}  // namespace deep_gemm
