// A 128-bit streaming hash for cache keys and checksums: stable across machines and runs, not cryptographic.
// Every step on a block is invertible for a given state, so no block can absorb what came before it.
#pragma once

#include <deep_gemm/spec/types.h>

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace deep_gemm {

struct Digest {
    u64 high = 0, low = 0;
    [[nodiscard]] std::string hex() const;  // 32 characters
    friend bool operator==(const Digest&, const Digest&) = default;
};

struct DigestHasher {  // for unordered containers
    size_t operator()(const Digest& digest) const noexcept { return digest.low; }
};

class Hash {
  public:
    // Bytes as they come; field() also mixes in the length, so that ("ab", "c") differs from ("a", "bc").
    Hash& bytes(std::span<const std::byte> data);
    Hash& field(std::string_view text);
    Hash& field(u64 number);
    [[nodiscard]] Digest digest() const;

  private:
    void block(u64 first, u64 second);

    u64 a_ = 0x9ae16a3b2f90404full, b_ = 0xc2b2ae3d27d4eb4full;
    u64 length_ = 0;
    std::byte tail_[16] = {};
};

[[nodiscard]] inline Digest hash_of(std::span<const std::byte> data) {
    return Hash().bytes(data).digest();
}
[[nodiscard]] inline Digest hash_of(std::string_view text) {
    return hash_of(std::as_bytes(std::span(text)));
}

}  // namespace deep_gemm
