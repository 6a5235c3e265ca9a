// Tables of NVFP4: the eight bytes of nv_bytes() (spec/nvfp4_weights.h) from a scale byte, without memory.
// All are a scale's code, or that of two thirds of it, plus or minus whole octaves, so that four scales are
// served by the same additions; permutes then put the bytes of each in order.
#pragma once

#include <deep_gemm/tile/fp4_smem.h>
#include <deep_gemm/ptx/bytes.h>

namespace deep_gemm::tile {

class NvScales {
  public:
    /// Four scale bytes of a blob. No sum below carries from one byte to the next: codes are 0x14 to 0x6e.
    DG_DEVICE explicit NvScales(u32 bytes) : codes_(bytes & 0x7f7f7f7f), lower_(bytes >> 7 & 0x01010101) {}

    /// The table of scale `i`, a constant after unrolling, for one of a weight's terms.
    template <Fp4Form form, u32 term>
    DG_DEVICE ptx::UInt2 table(u32 i) const {
        constexpr u32 kUp = kNvOctave * 0x01010101;
        const u32 half = codes_ - kUp;
        if constexpr (form == Fp4Form::nv_single) {
            // u: the code of two thirds of the scale s. {0, u / 2, u, s, 2 u, 2 s, 4 u, 4 s}
            const u32 two_thirds = codes_ - 0x04040404 - lower_;
            const u32 pair =
                ptx::permute_bytes(two_thirds, codes_, i | (4 + i) << 4 | i << 8 | (4 + i) << 12);
            return {ptx::permute_bytes_or_signs(pair, two_thirds - kUp, kZero | (4 + i) << 4 | 0x1000),
                    pair + kNvOctave * 0x02020101};
        } else if constexpr (term == 0) {  // {0, s / 2, s, s, 2 s, 2 s, 4 s, 4 s}
            const u32 twice = codes_ + kUp;
            return {ptx::permute_bytes_or_signs(codes_, half, kZero | (4 + i) << 4 | i << 8 | i << 12),
                    ptx::permute_bytes(twice, twice + kUp, i | i << 4 | (4 + i) << 8 | (4 + i) << 12)};
        } else {  // {0, 0, 0, s / 2, 0, s, 0, 2 s}
            return {
                ptx::permute_bytes_or_signs(codes_, half, kZero | kZero << 4 | kZero << 8 | (4 + i) << 12),
                ptx::permute_bytes_or_signs(codes_, codes_ + kUp,
                                            kZero | i << 4 | kZero << 8 | (4 + i) << 12)};
        }
    }

  private:
    static constexpr u32 kZero = 8;  // repeats the sign of the first byte, which has none

    u32 codes_, lower_;
};

}  // namespace deep_gemm::tile
