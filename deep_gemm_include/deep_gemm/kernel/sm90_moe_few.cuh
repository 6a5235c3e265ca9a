// A mixture of FP8 experts for few tokens on Hopper (spec/moe_few.h). Weights go from memory to registers and
// straight into wgmma, all of a warp's at once: nothing is staged, and nothing is waited for but the pair's
// expert and the token. Called by op/moe_few.cpp.
#pragma once

#include <deep_gemm/kernel/moe_few_dots.h>
#include <deep_gemm/tile/activation.h>
#include <deep_gemm/tile/real.h>

namespace deep_gemm {

namespace moe_few_detail {

constexpr u32 kRoundsInFlight = 4;  // chunks of a warp on their way at once

/// All chunks of a warpgroup, or of several: `first` is this warp's first chunk, the next one `step` on.
/// load(chunk, weights) brings a chunk's weights, with zeros for chunks beyond the last; finish(chunk, sums)
/// takes the results. Columns of a chunk: codes in shared memory, complete after `ready`.
template <u32 Chunks, u32 Step, typename Load, typename Ready, typename Finish>
DG_DEVICE void multiply_chunks(u32 first, ptx::SharedAddress codes, Load&& load, Ready&& ready,
                               Finish&& finish) {
    constexpr u32 kRounds = ceil_div(Chunks, Step);
    constexpr u32 kDepth = kRounds < kRoundsInFlight ? kRounds : kRoundsInFlight;
    Weights weights[kDepth];
#pragma unroll
    for (u32 i = 0; i < kDepth; ++i) load(first + i * Step, weights[i]);
    ready();
    const u32 warp = first % kWarps;
#pragma unroll 1
    for (u32 base = 0; base < kRounds; base += kDepth) {
        float sums[kDepth][4];
        u32 a[kDepth][16];
#pragma unroll
        for (u32 i = 0; i < kDepth; ++i) {
            weights[i].to_fragments(a[i]);
            ptx::wgmma_keep(a[i]);
#pragma unroll
            for (u32 j = 0; j < 4; ++j) sums[i][j] = 0;
            ptx::wgmma_keep(sums[i]);
            ptx::wgmma_fence();
            // The warpgroup's chunks lie in one half of an atom; those beyond the last one meet zeros.
            const u32 chunk = first - warp + (base + i) * Step;
            start(sums[i], a[i], codes + (chunk < Chunks ? chunk / kFewColumns : 0) * kFewAtomBytes);
            ptx::wgmma_commit();
        }
        ptx::wgmma_wait<0>();
#pragma unroll
        for (u32 i = 0; i < kDepth; ++i) {
            ptx::wgmma_keep(sums[i]);
            ptx::wgmma_keep(a[i]);
        }
#pragma unroll
        for (u32 i = 0; i < kDepth; ++i) {
            const u32 chunk = first + (base + i) * Step;
            if (base + kDepth < kRounds) load(chunk + kDepth * Step, weights[i]);
            if (chunk < Chunks) finish(chunk, sums[i]);
        }
    }
}

}  // namespace moe_few_detail

template <MoeFewUpSpec S>
DG_KERNEL(kFewUpThreads, 2)
sm90_moe_few_up(DG_GRID_CONSTANT const MoeFewUpParams p) {
    static_assert(why_illegal(S) == nullptr);
    using namespace moe_few_detail;
    constexpr MoeFewUpSmem kPlan = plan_smem(S);
    constexpr u32 kGroups = kFewUpThreads / 128, kRows = 2 * kFewUpChannels;
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 blocks = p.n / (kGroups * kFewUpChannels), pair = ptx::block_index() / blocks;
    const u32 expert = expert_of(p.topk_ids, pair, p.first_expert);
    if (expert >= p.experts) return;
    const u32 thread = ptx::thread_index(), group = thread / 128, lane = ptx::lane_index();
    const u32 channel = (ptx::block_index() % blocks * kGroups + group) * kFewUpChannels;
    // Row l / 4 of a lane is a gate row, row l / 4 + 8 the up row of the same channel.
    const u8* const gate = p.w.data + expert * p.w.stride_expert + (channel + lane / 4) * p.w.stride_row;
    const u8* const up = gate + p.n * p.w.stride_row;
    const ptx::SharedAddress sums = smem + kPlan.sums + group * S.chunks * kRows * 4;

    const auto load = [&](u32 chunk, Weights& weights) {
        const bool present = chunk < S.chunks;
        weights.load(present ? gate + chunk * kFewChunk : nullptr, up + chunk * kFewChunk);
    };
    const auto ready = [&] {
        // The channels of a block share their scales.
        for (u32 i = thread; i < 2 * S.chunks; i += kFewUpThreads) {
            const u32 chunk = i % S.chunks, row = channel + i / S.chunks * p.n;
            ptx::st_shared_f32(smem + kPlan.w_scales + i * 4,
                               ptx::ld_global_f32(p.w.scales + expert * p.w.scale_stride_expert +
                                                  row / kFewChunk * p.w.scale_stride_row +
                                                  chunk * p.w.scale_stride_chunk));
        }
        const u64 row = pair / p.top_k * p.x_stride;
        quantize_chunks(smem, smem + kPlan.x_scales, S.chunks, kFewUpThreads,
                        [&](u32 chunk, u32 column, tile::Chunk& v) {
                            tile::load_chunk<S.x>(p.x, row + chunk * kFewChunk + column, v);
                        });
        ptx::sync_threads();
    };
    multiply_chunks<S.chunks, kWarps>(thread / 32 % kWarps, smem, load, ready,
                                      [&](u32 chunk, const float(&results)[4]) {
                                          store_column(sums + chunk * kRows * 4, chunk % kFewColumns, results);
                                      });
    ptx::sync_threads();
    if (thread % 128 >= kFewUpChannels) return;
    const u32 at = thread % 128;
    const auto product = [&](u32 row, u32 scales) {
        return tile::through_bf16(sum_chunks(sums + row * 4, smem + kPlan.x_scales,
                                             smem + kPlan.w_scales + scales * S.chunks * 4, S.chunks));
    };
    float g = product(at, 0), u = product(at + kFewUpChannels, 1);
    if constexpr (S.limited) {
        g = ptx::min_nan_f32(g, p.limit);
        u = ptx::min_nan_f32(ptx::max_nan_f32(u, -p.limit), p.limit);
    }
    float v = tile::swiglu(g, u);
    if constexpr (S.weighted) v = ptx::mul_rn_f32(v, ptx::ld_global_f32(p.weights + pair));
    tile::store<Format::bf16>(p.mid, static_cast<u64>(pair) * p.n + channel + at, v);
}

template <MoeFewDownSpec S>
DG_KERNEL(kFewDownThreads, 1)
sm90_moe_few_down(DG_GRID_CONSTANT const MoeFewDownParams p) {
    static_assert(why_illegal(S) == nullptr);
    using namespace moe_few_detail;
    constexpr MoeFewDownSmem kPlan = plan_smem(S);
    constexpr u32 kChunks = chunks_of(S), kTopK = S.combine.top_k;
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 blocks = p.n / kFewDownRows, token = ptx::block_index() / blocks;
    const u32 first = ptx::block_index() % blocks * kFewDownRows;
    const u32 thread = ptx::thread_index(), lane = ptx::lane_index();
    const auto expert = [&](u32 slot) {
        return expert_of(p.topk_ids, token * kTopK + slot, p.first_expert);
    };

    const auto load = [&](u32 chunk, Weights& weights) {
        const u32 e = chunk < kChunks ? expert(chunk / S.chunks) : p.experts;
        const u8* const row = p.w.data + e * p.w.stride_expert + (first + lane / 4) * p.w.stride_row +
                              chunk % S.chunks * kFewChunk;
        weights.load(e < p.experts ? row : nullptr, row + 8 * p.w.stride_row);
    };
    const auto ready = [&] {
        for (u32 chunk = thread; chunk < kChunks; chunk += kFewDownThreads) {
            const u32 e = expert(chunk / S.chunks);
            float scale = 0;
            if (e < p.experts)
                scale = ptx::ld_global_f32(p.w.scales + e * p.w.scale_stride_expert +
                                           first / kFewChunk * p.w.scale_stride_row +
                                           chunk % S.chunks * p.w.scale_stride_chunk);
            ptx::st_shared_f32(smem + kPlan.w_scales + chunk * 4, scale);
        }
        const u64 row = static_cast<u64>(token) * kChunks * kFewChunk;
        quantize_chunks(smem, smem + kPlan.mid_scales, kChunks, kFewDownThreads,
                        [&](u32 chunk, u32 column, tile::Chunk& v) {
                            // That of an expert that is not here may be anything: its sums are dropped.
                            tile::load_chunk<Format::bf16>(p.mid, row + chunk * kFewChunk + column, v);
                        });
        ptx::sync_threads();
    };
    multiply_chunks<kChunks, kFewDownThreads / 32>(
        ptx::warp_index(), smem, load, ready, [&](u32 chunk, const float(&results)[4]) {
            store_column(smem + kPlan.sums + chunk * kFewDownRows * 4, chunk % kFewColumns, results);
        });
    ptx::sync_threads();
    if (thread < kTopK * kFewDownRows) {
        const u32 chunk = thread / kFewDownRows * S.chunks, row = thread % kFewDownRows;
        const float y =
            sum_chunks(smem + kPlan.sums + (chunk * kFewDownRows + row) * 4,
                       smem + kPlan.mid_scales + chunk * 4, smem + kPlan.w_scales + chunk * 4, S.chunks);
        ptx::st_shared_f32(smem + kPlan.parts + thread * 4, tile::through_bf16(y));
    }
    ptx::sync_threads();
    if (thread >= kFewDownRows) return;
    float sum = 0;
#pragma unroll
    for (u32 slot = 0; slot < kTopK; ++slot) {
        if (expert(slot) >= p.experts) continue;
        float y = ptx::ld_shared_f32(smem + kPlan.parts + (slot * kFewDownRows + thread) * 4);
        if constexpr (S.combine.combine_weighted)
            y = ptx::mul_rn_f32(y, ptx::ld_global_f32(p.weights + token * kTopK + slot));
        sum = ptx::add_rn_f32(sum, y);
    }
    if constexpr (S.combine.shared)
        sum = ptx::add_rn_f32(sum,
                              tile::load<Format::bf16>(p.shared, token * p.shared_stride + first + thread));
    tile::store<S.combine.d>(p.d, token * p.d_stride + first + thread, sum);
}

}  // namespace deep_gemm
