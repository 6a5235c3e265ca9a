// Tables of NVFP4: the eight bytes of nv_bytes() (spec/nvfp4_weights.h) from a scale, without memory. All are
// a scale's code, or that of two thirds of it, plus or minus whole octaves, so that four scales are served by
// the same additions; permutes then put the bytes of each in order.
#pragma once

#include <deep_gemm/tile/fp4_smem.h>
#include <deep_gemm/ptx/bytes.h>

namespace deep_gemm::tile {

class NvScales {
  public:
    /// From the three bytes of a blob that hold a thread's four scales. No sum below carries from one byte to
    /// the next: codes are kNvLowest to kNvHighest.
    DG_DEVICE explicit NvScales(u32 bytes) {
        constexpr u32 kGather = 1 << 6 | 1 << 12 | 1 << 18;  // bits 6, 14 and 22 to 24, 26 and 28
        const u32 fourth = (bytes & 0x00c0c0c0) * kGather;
        codes_ = ((bytes & 0x003f3f3f) | (fourth & 0x3f000000)) + kNvLowest * 0x01010101;
    }

    /// The table of scale `i`, a constant after unrolling, for one of a weight's terms.
    template <Fp4Form form, u32 term>
    DG_DEVICE ptx::UInt2 table(u32 i) const {
        constexpr u32 kUp = kNvOctave * 0x01010101;
        const u32 half = codes_ - kUp;
        if constexpr (form == Fp4Form::nv_single) {
            // u: the code of two thirds of the scale s. {0, u / 2, u, s, 2 u, 2 s, 4 u, 4 s}
            const u32 two_thirds = codes_of_two_thirds();
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

    /// Those of the nearest e4m3: 4 below the scale's for mantissas 3, 4 and 5, 5 below for the others.
    DG_DEVICE u32 codes_of_two_thirds() const {
        const u32 mantissas = codes_ & 0x07070707;
        const u32 beyond_2 = mantissas + 0x05050505, beyond_5 = mantissas + 0x02020202;  // in bit 3
        return codes_ - 0x05050505 + ((beyond_2 & ~beyond_5) >> 3 & 0x01010101);
    }

    u32 codes_;
};

}  // namespace deep_gemm::tile
