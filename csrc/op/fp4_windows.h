// How the scales of a row of FP4 weights fit the forms of spec/fp4_weights.h: which of them share a run, what
// they are stored as, and what row_scale makes up for.
#pragma once

#include <deep_gemm/spec/nvfp4_weights.h>

#include <array>
#include <vector>

namespace deep_gemm::op {

// Scales as integers in the order of their values, 0 to 255: the bytes of UE8M0, the codes nv_code_of() of
// E4M3 from the smallest up.
[[nodiscard]] u32 scale_key(Fp4Form form, u8 scale);
class ScaleKeys {
  public:
    void set(u32 key) { words_[key / 64] |= u64{1} << (key % 64); }
    [[nodiscard]] bool test(u32 key) const { return words_[key / 64] >> (key % 64) & 1; }
    [[nodiscard]] bool none() const { return (words_[0] | words_[1] | words_[2] | words_[3]) == 0; }
    [[nodiscard]] i32 lowest() const;  // some key is there
    [[nodiscard]] i32 highest() const;

  private:
    std::array<u64, 4> words_{};
};

// Whether a checkpoint may hold the byte: no NaN, and no sign. Zero, which E4M3 has, stands for zeros.
[[nodiscard]] bool is_scale(Fp4Form form, u8 scale);

// A stretch of keys that one run of a row holds: [low, high], both used.
struct ScaleWindow {
    i32 low, high;
};
// From the top down, so that a row whose scales fit has one window. Empty where no key is used.
[[nodiscard]] std::vector<ScaleWindow> windows_of(Fp4Form form, const ScaleKeys& used);

// A stored scale is key + shift; row_scale takes the shift back. `global`: of NVFP4, from 2^-100 to 2^100.
struct ScalePlacement {
    i32 shift = 0;
    float row_scale = 1;
};
[[nodiscard]] ScalePlacement place_window(Fp4Form form, const ScaleWindow& window, float global);
// The bits that a blob holds.
[[nodiscard]] u32 stored_scale(Fp4Form form, u32 key, i32 shift);

// Octaves from the lowest to the highest key, both included.
[[nodiscard]] u32 octaves_of(Fp4Form form, const ScaleKeys& used);

}  // namespace deep_gemm::op
