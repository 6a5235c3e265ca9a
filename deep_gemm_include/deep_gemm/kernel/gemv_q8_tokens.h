// The tokens of the Q8_0 kernel: where a lane finds its eight bytes of a block of its token (four, and four
// that are 16 further), and the scales of two.
//
// In memory every warp reads them again for every tile of rows; in shared memory (S.resident) they lie for as
// long as the kernel runs: bytes token after token, then scales, [block][token]. Tokens that a tile of eight
// lacks are the first one there: their columns are dropped.
#pragma once

#include <deep_gemm/kernel/gemv_prefetch.h>
#include <deep_gemm/ptx/shared.h>

namespace deep_gemm::gemv_q8_detail {

/// A lane's part of one block of the tokens: [tile of eight].
template <GemvSpec S>
struct TokenBlock {
    static constexpr u32 kTiles = S.tokens / kMmaTileTokens;
    u32 word[kTiles][2] = {};
    float scale[kTiles][2] = {};
};

template <GemvSpec S>
struct Tokens {
    static constexpr u32 kTiles = TokenBlock<S>::kTiles;

    const u8*
        values[kTiles];  // of token lane / 4, from the lane's first bytes of a block; null: there is none
    const float* scale[kTiles][2];                                // of tokens 2 (lane % 4) and the next
    ptx::SharedAddress resident_values[kTiles], resident_scales;  // the same; scales of tile 0

    /// meanwhile() runs when the first bytes are on their way. Scope: the block.
    template <typename Meanwhile>
    DG_DEVICE void start(const GemvParams& p, u32 first, u32 count, const Meanwhile& meanwhile) {
        const u32 lane = ptx::lane_index(), inside = lane % 4 * 4;
        const ptx::SharedAddress to = ptx::dynamic_smem() + plan_smem(S).bytes;
        if constexpr (S.resident)
            copy(p, to, first, count, meanwhile);
        else
            meanwhile();
        resident_scales = to + count * x_pitch_of(S, p.k) + lane % 4 * 8;
#pragma unroll
        for (u32 t = 0; t < kTiles; ++t) {
            const u32 mine = t * kMmaTileTokens + lane / 4, column = t * kMmaTileTokens + lane % 4 * 2;
            resident_values[t] = to + (mine < count ? mine : 0) * x_pitch_of(S, p.k) + inside;
            values[t] = mine < count ? p.x + (first + mine) * p.x_stride + inside : nullptr;
            for (u32 i = 0; i < 2; ++i)
                scale[t][i] =
                    column + i < count ? p.x_scale + (first + column + i) * p.x_scale_stride : nullptr;
        }
    }

    DG_DEVICE void read(TokenBlock<S>& to, u32 block) const {
#pragma unroll
        for (u32 t = 0; t < kTiles; ++t) {
            if constexpr (S.resident) {
                const ptx::Float2 scales =
                    ptx::ld_shared_v2_f32(resident_scales + (block * S.tokens + t * kMmaTileTokens) * 4);
                for (u32 i = 0; i < 2; ++i)
                    to.word[t][i] =
                        ptx::ld_shared_u32(resident_values[t] + block * kQ8Block + i * kQ8Block / 2);
                to.scale[t][0] = scales.x, to.scale[t][1] = scales.y;
            } else {
#pragma unroll
                for (u32 i = 0; i < 2; ++i) {
                    if (values[t])
                        to.word[t][i] =
                            ptx::ld_cached_u32(values[t] + u64{block} * kQ8Block + i * kQ8Block / 2);
                    if (scale[t][i]) to.scale[t][i] = ptx::ld_cached_f32(scale[t][i] + block);
                }
            }
        }
    }

  private:
    /// Rows of bytes are whole blocks.
    template <typename Meanwhile>
    static DG_DEVICE void copy(const GemvParams& p, ptx::SharedAddress to, u32 first, u32 count,
                               const Meanwhile& meanwhile) {
        const u32 blocks = ceil_div(p.k, kQ8Block), vectors = blocks * 2, pitch = x_pitch_of(S, p.k);
        const auto fetch = [&](u32(&words)[4], u32 token, u32 i) {
            const ptx::Words4 v = ptx::ld_cached_v4(p.x + (first + token) * p.x_stride + i * 16);
            for (u32 k = 0; k < 4; ++k) words[k] = v.word[k];
            return to + token * pitch + i * 16;
        };
        const auto store = [](ptx::SharedAddress at, const u32(&words)[4]) {
            ptx::st_shared_v4_u32(at, {words[0], words[1], words[2], words[3]});
        };
        kernel::copy_token_scales<S>(p, to + count * pitch, first, count, blocks, blocks, [&] {
            kernel::copy_vectors(count, vectors, threads_of(S), fetch, store, meanwhile);
        });
        ptx::sync_threads();
    }
};

}  // namespace deep_gemm::gemv_q8_detail
