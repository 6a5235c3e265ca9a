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

/// A lane's part of one block of the tokens.
struct TokenBlock {
    u32 word[2] = {0, 0};
    float scale[2] = {0.0f, 0.0f};
};

template <GemvSpec S>
struct Tokens {
    const u8* values;       // of token lane / 4, from the lane's first bytes of a block; null: there is none
    const float* scale[2];  // of tokens 2 (lane % 4) and the next
    ptx::SharedAddress resident_values, resident_scales;  // the same

    /// meanwhile() runs when the first bytes are on their way. Scope: the block.
    template <typename Meanwhile>
    DG_DEVICE void start(const GemvParams& p, u32 first, u32 count, const Meanwhile& meanwhile) {
        const u32 lane = ptx::lane_index(), mine = lane / 4, column = lane % 4 * 2;
        if constexpr (S.resident) {
            const ptx::SharedAddress to = ptx::dynamic_smem() + plan_smem(S).bytes;
            copy(p, to, first, count, meanwhile);
            resident_values = to + (mine < count ? mine : 0) * x_pitch_of(S, p.k) + lane % 4 * 4;
            resident_scales = to + count * x_pitch_of(S, p.k) + column * 4;
            return;
        }
        meanwhile();
        values = mine < count ? p.x + (first + mine) * p.x_stride + lane % 4 * 4 : nullptr;
        for (u32 i = 0; i < 2; ++i)
            scale[i] = column + i < count ? p.x_scale + (first + column + i) * p.x_scale_stride : nullptr;
    }

    DG_DEVICE void read(TokenBlock& to, u32 block) const {
        if constexpr (S.resident) {
            const ptx::Float2 scales = ptx::ld_shared_v2_f32(resident_scales + block * kMmaTileTokens * 4);
            for (u32 i = 0; i < 2; ++i)
                to.word[i] = ptx::ld_shared_u32(resident_values + block * kQ8Block + i * kQ8Block / 2);
            to.scale[0] = scales.x, to.scale[1] = scales.y;
            return;
        }
        for (u32 i = 0; i < 2; ++i)
            if (values) to.word[i] = ptx::ld_cached_u32(values + u64{block} * kQ8Block + i * kQ8Block / 2);
#pragma unroll
        for (u32 i = 0; i < 2; ++i)
            if (scale[i]) to.scale[i] = ptx::ld_cached_f32(scale[i] + block);
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
        kernel::copy_vectors(count, vectors, threads_of(S), fetch, store, meanwhile);
        const ptx::SharedAddress scales = to + count * pitch;
        for (u32 i = ptx::thread_index(); i < blocks * kMmaTileTokens; i += threads_of(S)) {
            const u32 block = i / kMmaTileTokens, token = i % kMmaTileTokens;
            const float* from = p.x_scale + (first + token) * p.x_scale_stride + block;
            ptx::st_shared_f32(scales + i * 4, token < count ? ptx::ld_cached_f32(from) : 0.0f);
        }
        ptx::sync_threads();
    }
};

}  // namespace deep_gemm::gemv_q8_detail
