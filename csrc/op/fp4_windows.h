// The keys that the scales of a row use, and the windows (spec/fp4_windows.h) they are cut into.
#pragma once

#include <deep_gemm/spec/fp4_windows.h>

#include <array>
#include <vector>

namespace deep_gemm::op {

class ScaleKeys {
  public:
    void set(u32 key) { words_[key / 64] |= u64{1} << (key % 64); }
    [[nodiscard]] bool test(u32 key) const { return words_[key / 64] >> (key % 64) & 1; }
    [[nodiscard]] bool none() const { return (words_[0] | words_[1] | words_[2] | words_[3]) == 0; }
    [[nodiscard]] i32 lowest() const;  // some key is there
    [[nodiscard]] i32 highest() const;

  private:
    std::array<u64, kFp4Keys / 64> words_{};
};

struct ScaleWindow {
    i32 low, high;
};
// Empty where no key is used.
[[nodiscard]] std::vector<ScaleWindow> windows_of(Fp4Form form, const ScaleKeys& used);

// Octaves from the lowest to the highest key, both included.
[[nodiscard]] u32 octaves_of(Fp4Form form, const ScaleKeys& used);

}  // namespace deep_gemm::op
