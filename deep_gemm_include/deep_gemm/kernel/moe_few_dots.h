// What the two kernels of sm90_moe_few.cuh share: activations as E4M3 in shared memory, and the products and
// sums of chunks (spec/moe_few.h).
#pragma once

#include <deep_gemm/kernel/moe_few_units.h>
#include <deep_gemm/tile/quantize.h>
#include <deep_gemm/ptx/wgmma.h>
#include <deep_gemm/ptx/wgmma_rs_shapes.h>

namespace deep_gemm::moe_few_detail {

constexpr u32 kWarps = 4;        // of a warpgroup: chunks of a round
constexpr u32 kChunkLanes = 16;  // of a chunk that becomes E4M3
constexpr u32 kInFlight = 4;     // units of a warp on their way at once

/// The expert of a pair; at or above `experts`: none of this device's.
DG_DEVICE u32 expert_of(const i32* topk_ids, u32 pair, u32 first_expert) {
    return static_cast<u32>(ptx::ld_global_s32(topk_ids + pair)) - first_expert;
}

/// Eight codes of chunk `chunk` from its column `column` on, where wgmma looks for them: in plain order, or
/// where packed weights expect each four.
template <bool Fp4>
DG_DEVICE void store_codes(ptx::SharedAddress codes, u32 chunk, u32 column, u32 low, u32 high) {
    const u32 row = chunk % kFewColumns;
    const ptx::SharedAddress to = codes + chunk / kFewColumns * kFewAtomBytes + row * kFewChunk;
    if constexpr (Fp4) {
        const u32 word = column / 4;
        ptx::st_shared_b32(to + (activation_chunk(word) ^ row) * 16 + activation_word(word) * 4, low);
        ptx::st_shared_b32(to + (activation_chunk(word + 1) ^ row) * 16 + activation_word(word + 1) * 4,
                           high);
    } else {
        ptx::st_shared_v2_u32(to + ((column / 16) ^ row) * 16 + column % 16, low, high);
    }
}

/// Chunks 0 to count - 1 to E4M3, and zeros up to the end of their last atom. load(chunk, column) gives eight
/// codes, of which all kChunkLanes lanes know the scale. All threads call; a barrier has to follow.
template <bool Fp4, typename Load>
DG_DEVICE void write_chunks(ptx::SharedAddress codes, ptx::SharedAddress scales, u32 count, u32 threads,
                            Load&& load) {
    const u32 column = ptx::thread_index() % kChunkLanes * kQuantizeChunk, step = threads / kChunkLanes;
    // Whole warps go round: lanes that share a scale stay together.
    for (u32 base = 0; base < align_up(count, kFewColumns); base += step) {
        const u32 chunk = base + ptx::thread_index() / kChunkLanes;
        const tile::Fp8Chunk out = load(chunk, column);
        if (chunk >= align_up(count, kFewColumns)) continue;
        store_codes<Fp4>(codes, chunk, column, out.words[0], out.words[1]);
        if (chunk < count && column == 0) ptx::st_shared_f32(scales + chunk * 4, out.scale);
    }
    ptx::fence_proxy_async();
}
/// What write_chunks() wants: eight elements of a row, rounded here; zeros beyond the row's end.
template <Format X, ScaleRule Rule>
DG_DEVICE tile::Fp8Chunk rounded_chunk(const void* x, u64 row, u32 count, u32 chunk, u32 column) {
    tile::Chunk v;
#pragma unroll
    for (u32 i = 0; i < kQuantizeChunk; ++i) v[i] = 0;
    if (chunk < count) tile::load_chunk<X>(x, row + chunk * kFewChunk + column, v);
    return tile::to_fp8<Rule>(v);
}

/// Starts the four wgmma of one unit of each warp: the columns of `atom` are eight chunks of the activation.
template <MoeFewWeightSpec W>
DG_DEVICE void start(float (&sums)[4], const u32 (&a)[16], ptx::SharedAddress atom) {
    constexpr Format kFormat = W.fp4 ? decoded_of(W.form) : Format::fp8_e4m3;
    const u64 tokens = ptx::wgmma_descriptor(atom);
    ptx::wgmma_fence();
#pragma unroll
    for (u32 step = 0; step < 4; ++step)
        ptx::WgmmaRs<kFormat, kFewColumns>::mma(sums, a + 4 * step, tokens + 2 * step, step > 0);
    ptx::wgmma_commit();
}

/// Of the results of one unit of each warp, the column of this warp's chunk: 16 floats at `to`.
template <MoeFewWeightSpec W>
DG_DEVICE void store_column(ptx::SharedAddress to, u32 column, const float (&sums)[4]) {
    if (ptx::lane_index() % 4 != column / 2) return;
    ptx::st_shared_f32(to + unit_row<W>(0) * 4, column % 2 ? sums[1] : sums[0]);
    ptx::st_shared_f32(to + unit_row<W>(1) * 4, column % 2 ? sums[3] : sums[2]);
}

/// Units of a warp: of chunk `first`, and every `Step` further on. load(chunk, unit) brings one, zeros for
/// chunks beyond the last. The activation's codes are there after ready(). What comes out, 16 floats for each
/// chunk, lies at sums(chunk) after a barrier.
template <MoeFewWeightSpec W, u32 Chunks, u32 Step, typename Load, typename Ready, typename Sums>
DG_DEVICE void multiply_units(u32 first, ptx::SharedAddress codes, ptx::SharedAddress table, Load&& load,
                              Ready&& ready, Sums&& sums_of) {
    constexpr u32 kRounds = ceil_div(Chunks, Step), kTurns = ceil_div(kRounds, kInFlight);
    constexpr u32 kDepth = ceil_div(kRounds, kTurns);
    Unit<W> units[kDepth];
#pragma unroll
    for (u32 i = 0; i < kDepth; ++i) load(first + i * Step, units[i]);
    ready();
    const u32 of_group = first - first % kWarps;
    // A turn at a time: unrolled further, the addresses of all rounds would be in registers.
#pragma unroll 1
    for (u32 turn = 0; turn < kTurns; ++turn) {
#pragma unroll
        for (u32 i = 0; i < kDepth; ++i) {
            const u32 before = (turn * kDepth + i) * Step, chunk = first + before;
            u32 a[16];
            float sums[4] = {0, 0, 0, 0};
            if constexpr (W.fp4)
                units[i].to_fragments(table, a);
            else
                units[i].to_fragments(a);
            if (turn + 1 < kTurns) load(chunk + kDepth * Step, units[i]);
            ptx::wgmma_keep(a);
            ptx::wgmma_keep(sums);
            // The warpgroup's chunks lie in one half of an atom; those beyond the last one meet zeros.
            const u32 group_chunk = of_group + before;
            start<W>(sums, a, codes + (group_chunk < Chunks ? group_chunk / kFewColumns : 0) * kFewAtomBytes);
            ptx::wgmma_wait<0>();
            ptx::wgmma_keep(sums);
            if (chunk < Chunks) store_column<W>(sums_of(chunk), chunk % kFewColumns, sums);
        }
    }
}

/// The scaled sum of `count` chunks of a row, whose results lie 16 floats apart. E4M3 weights: their scales
/// come chunk by chunk, packed ones' after the sum, in which their K has an even number of chunks.
template <bool Fp4>
DG_DEVICE float sum_chunks(ptx::SharedAddress sums, ptx::SharedAddress x_scales, ptx::SharedAddress w_scales,
                           u32 count) {
    float sum = 0;
#pragma unroll 8
    for (u32 c = 0; c < count; ++c) {
        float scale = ptx::ld_shared_f32(x_scales + c * 4);
        if constexpr (!Fp4) scale = ptx::mul_rn_f32(scale, ptx::ld_shared_f32(w_scales + c * 4));
        sum = ptx::fma_rn_f32(scale, ptx::ld_shared_f32(sums + c * (kFewRows * 4)), sum);
    }
    return Fp4 && count % 2 != 0 ? ptx::add_rn_f32(sum, 0.0f) : sum;
}

}  // namespace deep_gemm::moe_few_detail
