// What the two kernels of sm90_moe_few.cuh share: activations to E4M3 in shared memory, and the products of
// chunks (spec/moe_few.h) by wgmma with the weights in registers.
#pragma once

#include <deep_gemm/spec/moe_few.h>
#include <deep_gemm/tile/quantize.h>
#include <deep_gemm/ptx/stream.h>
#include <deep_gemm/ptx/wgmma.h>
#include <deep_gemm/ptx/wgmma_rs_shapes.h>

namespace deep_gemm::moe_few_detail {

constexpr u32 kWarps = 4;     // of a warpgroup: chunks of a round
constexpr u32 kHalfWarp = 16;  // lanes of a chunk that is quantised

/// The expert of a pair; at or above `experts`: none of this device's.
DG_DEVICE u32 expert_of(const i32* topk_ids, u32 pair, u32 first_expert) {
    return static_cast<u32>(ptx::ld_global_s32(topk_ids + pair)) - first_expert;
}

/// Eight codes of chunk `chunk` from its column `column` on, where wgmma looks for them.
DG_DEVICE void store_codes(ptx::SharedAddress codes, u32 chunk, u32 column, u32 low, u32 high) {
    const u32 row = chunk % kFewColumns;
    ptx::st_shared_v2_u32(codes + chunk / kFewColumns * kFewAtomBytes + row * kFewChunk +
                              ((column / 16) ^ row) * 16 + column % 16,
                          low, high);
}

/// Chunks 0 to count - 1 to E4M3, and zeros up to the end of their last atom. load(chunk, column, v) fills v.
/// All threads call; a barrier has to follow.
template <typename Load>
DG_DEVICE void quantize_chunks(ptx::SharedAddress codes, ptx::SharedAddress scales, u32 count, u32 threads,
                               Load&& load) {
    const u32 column = ptx::thread_index() % kHalfWarp * kQuantizeChunk, step = threads / kHalfWarp;
    // Whole warps go round: lanes that share a scale stay together.
    for (u32 base = 0; base < align_up(count, kFewColumns); base += step) {
        const u32 chunk = base + ptx::thread_index() / kHalfWarp;
        tile::Chunk v;
#pragma unroll
        for (u32 i = 0; i < kQuantizeChunk; ++i) v[i] = 0;
        if (chunk < count) load(chunk, column, v);
        const tile::Fp8Chunk out = tile::to_fp8<ScaleRule::exact>(v);
        if (chunk >= align_up(count, kFewColumns)) continue;
        store_codes(codes, chunk, column, out.words[0], out.words[1]);
        if (chunk < count && column == 0) ptx::st_shared_f32(scales + chunk * 4, out.scale);
    }
    ptx::fence_proxy_async();
}

/// 16 rows of weights and one chunk of K. Lane l has bytes 16 (l % 4) to 16 (l % 4) + 15 of both halves of
/// rows l / 4 and l / 4 + 8; after to_fragments() what wgmma wants of the lane.
struct Weights {
    u32 word[2][2][4];  // [row][half of the chunk]

    /// `row` points at the chunk in one of the two rows, `other` in the other one; null: zeros.
    DG_DEVICE void load(const u8* row, const u8* other) {
        const u32 at = ptx::lane_index() % 4 * 16;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 column = half * 64 + at;
            const ptx::Words4 a = row ? ptx::ld_stream_v4(row + column) : ptx::Words4{};
            const ptx::Words4 b = row ? ptx::ld_stream_v4(other + column) : ptx::Words4{};
#pragma unroll
            for (u32 i = 0; i < 4; ++i) word[0][half][i] = a.word[i], word[1][half][i] = b.word[i];
        }
    }

    /// Word j of lane i of four neighbours goes to word i of lane j: a step of wgmma wants word j of a row in
    /// lane j.
    static DG_DEVICE void transpose(u32 (&v)[4]) {
        const u32 lane = ptx::lane_index();
#pragma unroll
        for (u32 mask = 1; mask < 4; mask *= 2) {
            const bool upper = (lane & mask) != 0;
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                if (i & mask) continue;
                const u32 sent = upper ? v[i] : v[i + mask];
                const u32 got = ptx::shfl_idx(sent, lane ^ mask);
                (upper ? v[i] : v[i + mask]) = got;
            }
        }
    }
    DG_DEVICE void to_fragments(u32 (&a)[16]) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            transpose(word[0][half]);
            transpose(word[1][half]);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                // Register i % 4 of a step: rows alternate, then 16 columns further on.
                const u32 step = half * 2 + i / 2, at = step * 4 + i % 2 * 2;
                a[at] = word[0][half][i];
                a[at + 1] = word[1][half][i];
            }
        }
    }
};

/// Starts the four wgmma of one chunk of each warp: the columns of `atom` are eight chunks of the activation.
DG_DEVICE void start(float (&sums)[4], const u32 (&a)[16], ptx::SharedAddress atom) {
    const u64 tokens = ptx::wgmma_descriptor(atom);
#pragma unroll
    for (u32 step = 0; step < 4; ++step)
        ptx::WgmmaRs<Format::fp8_e4m3, kFewColumns>::mma(sums, a + 4 * step, tokens + 2 * step, step > 0);
}

/// Of the results of one chunk of each warp, the column of this warp's: 16 floats at `to`, rows in order.
DG_DEVICE void store_column(ptx::SharedAddress to, u32 column, const float (&sums)[4]) {
    const u32 lane = ptx::lane_index();
    if (lane % 4 != column / 2) return;
    ptx::st_shared_f32(to + lane / 4 * 4, column % 2 ? sums[1] : sums[0]);
    ptx::st_shared_f32(to + (lane / 4 + 8) * 4, column % 2 ? sums[3] : sums[2]);
}

/// The scaled sum of `count` chunks, whose results for a row lie 16 floats apart.
DG_DEVICE float sum_chunks(ptx::SharedAddress sums, ptx::SharedAddress x_scales, ptx::SharedAddress w_scales,
                           u32 count) {
    float sum = 0;
    for (u32 c = 0; c < count; ++c)
        sum = ptx::fma_rn_f32(
            ptx::mul_rn_f32(ptx::ld_shared_f32(x_scales + c * 4), ptx::ld_shared_f32(w_scales + c * 4)),
            ptx::ld_shared_f32(sums + c * 64), sum);
    return sum;
}

}  // namespace deep_gemm::moe_few_detail
