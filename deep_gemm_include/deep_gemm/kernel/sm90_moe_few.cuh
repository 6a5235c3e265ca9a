// A mixture of experts for few tokens on Hopper (spec/moe_few.h). Weights go from memory to registers and
// straight into wgmma, several units of a warp on their way at once: nothing is staged, and nothing is waited
// for but the pair's expert and the token. Called by op/moe_few.cpp.
#pragma once

#include <deep_gemm/kernel/moe_few_dots.h>
#include <deep_gemm/tile/activation.h>
#include <deep_gemm/tile/real.h>

namespace deep_gemm {

namespace moe_few_detail {

/// The scale of 128 x 128 weights.
DG_DEVICE float block_scale(const MoeFewWeights& w, u32 expert, u32 row, u32 chunk) {
    return ptx::ld_global_f32(w.scales + expert * w.scale_stride_expert +
                              row / kFewChunk * w.scale_stride_row + chunk * w.scale_stride_chunk);
}

/// A CTA of sm90_moe_few_up. What follows may start only now that the experts are known: sm90_moe_few_down
/// reads them, and weights, before it waits for anything.
template <MoeFewUpSpec S>
DG_DEVICE void few_up_block(const MoeFewUpParams& p, u32 block) {
    constexpr MoeFewUpSmem kPlan = plan_smem(S);
    constexpr u32 kHalf = kFewRows / 2;
    ptx::grid_dependency_wait();
    ptx::grid_dependency_launch();
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 blocks = p.n / kFewUpChannels, pair = block / blocks;
    const u32 expert = expert_of(p.topk_ids, pair, p.first_expert);
    if (expert >= p.experts) return;
    const u32 thread = ptx::thread_index(), group = thread / 128, lane = ptx::lane_index();
    const u32 channel = block % blocks * kFewUpChannels;
    const ptx::SharedAddress sums = smem + kPlan.sums;
    const auto sums_of = [&](u32 of_group, u32 chunk, u32 row) {
        return sums + ((of_group * S.chunks + chunk) * kFewRows + row) * 4;
    };

    // E4M3: a warpgroup has eight gate rows and the up rows of the same channels. MXFP4: one warpgroup has
    // the gate rows, the other one the up rows.
    const u32 first_row = S.w.fp4 ? channel + group * p.n : channel + group * kHalf;
    const auto load = [&](u32 chunk, Unit<S.w>& unit) {
        const bool present = chunk < S.chunks;
        if constexpr (S.w.fp4) {
            const u8* blob = blob_of(p.w, fp4_blob_bytes_of(S.w.form), expert, first_row, chunk);
            unit.load(present ? blob : nullptr, quarter_of(first_row));
        } else {
            const u8* row = p.w.data + expert * p.w.stride_expert + (first_row + lane / 4) * p.w.stride_row +
                            chunk * kFewChunk;
            unit.load(present ? row : nullptr, row + p.n * p.w.stride_row);
        }
    };
    float row_scales[2] = {1, 1};  // MXFP4: of gate and up row `thread`
    const auto ready = [&] {
        if constexpr (S.w.fp4) {
            write_table<S.w.form>(smem + kPlan.table);
            if (thread < kFewUpChannels) {
#pragma unroll
                for (u32 i = 0; i < 2; ++i)
                    row_scales[i] = ptx::ld_global_f32(p.w.scales + expert * p.w.scale_stride_expert +
                                                       i * p.n + channel + thread);
            }
        } else {
            // The channels of a block share their scales.
            for (u32 i = thread; i < 2 * S.chunks; i += kFewUpThreads)
                ptx::st_shared_f32(smem + kPlan.w_scales + i * 4,
                                   block_scale(p.w, expert, channel + i / S.chunks * p.n, i % S.chunks));
        }
        const u32 token = pair / p.top_k;
        write_chunks<S.w.fp4>(
            smem, smem + kPlan.x_scales, S.chunks, kFewUpThreads, [&](u32 chunk, u32 column) {
                if constexpr (S.x != Format::fp8_e4m3) {
                    return rounded_chunk<S.x, S.rule>(p.x, token * p.x_stride, S.chunks, chunk, column);
                } else {
                    tile::Fp8Chunk codes{};
                    if (chunk >= S.chunks) return codes;
                    const ptx::Word2 words = ptx::ld_global_v2_u32(
                        static_cast<const u8*>(p.x) + token * p.x_stride + chunk * kFewChunk + column);
                    codes.words[0] = words.x, codes.words[1] = words.y;
                    codes.scale = ptx::ld_global_f32(p.x_scales + token * p.x_scale_stride + chunk);
                    return codes;
                }
            });
        ptx::sync_threads();
    };
    multiply_units<S.w, S.chunks, kWarps>(thread / 32 % kWarps, smem, smem + kPlan.table, load, ready,
                                          [&](u32 chunk) { return sums_of(group, chunk, 0); });
    ptx::sync_threads();
    if (thread >= kFewUpChannels) return;
    const auto product = [&](u32 which) {  // 0: gate, 1: up
        const u32 of_group = S.w.fp4 ? which : thread / kHalf;
        const u32 row = S.w.fp4 ? thread : which * kHalf + thread % kHalf;
        float sum = sum_chunks<S.w.fp4>(sums_of(of_group, 0, row), smem + kPlan.x_scales,
                                        smem + kPlan.w_scales + which * S.chunks * 4, S.chunks);
        if constexpr (S.w.fp4) sum = ptx::mul_rn_f32(sum, row_scales[which]);
        return tile::through_bf16(sum);
    };
    float gate = product(0), up = product(1);
    if constexpr (S.limited) {
        gate = ptx::min_nan_f32(gate, p.limit);
        up = ptx::min_nan_f32(ptx::max_nan_f32(up, -p.limit), p.limit);
    }
    float v = tile::swiglu(gate, up);
    if constexpr (S.weighted) v = ptx::mul_rn_f32(v, ptx::ld_global_f32(p.weights + pair));
    tile::store<Format::bf16>(p.mid, static_cast<u64>(pair) * p.n + channel + thread, v);
}

}  // namespace moe_few_detail

template <MoeFewUpSpec S>
DG_KERNEL(kFewUpThreads, ctas_per_sm_of(S))
sm90_moe_few_up(DG_GRID_CONSTANT const MoeFewUpParams p) {
    static_assert(why_illegal(S) == nullptr);
    moe_few_detail::few_up_block<S>(p, ptx::block_index());
}

template <MoeFewDownSpec S>
DG_KERNEL(kFewDownThreads, ctas_per_sm_of(S))
sm90_moe_few_down(DG_GRID_CONSTANT const MoeFewDownParams p) {
    static_assert(why_illegal(S) == nullptr);
    using namespace moe_few_detail;
    constexpr MoeFewDownSmem kPlan = plan_smem(S);
    constexpr u32 kChunks = chunks_of(S), kTopK = S.combine.top_k;
    ptx::grid_dependency_launch();
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 blocks = p.n / kFewRows, token = ptx::block_index() / blocks;
    const u32 first = ptx::block_index() % blocks * kFewRows;
    const u32 thread = ptx::thread_index(), lane = ptx::lane_index();
    // Lane i has the expert of slot i. Whole warps ask.
    const u32 of_lane =
        lane < kTopK ? expert_of(p.topk_ids, token * kTopK + lane, p.first_expert) : p.experts;
    const auto expert = [&](u32 slot) { return ptx::shfl_idx(of_lane, slot); };

    const auto load = [&](u32 chunk, Unit<S.w>& unit) {
        const u32 e = expert(chunk < kChunks ? chunk / S.chunks : kTopK);
        if constexpr (S.w.fp4) {
            const u8* blob = blob_of(p.w, fp4_blob_bytes_of(S.w.form), e, first, chunk % S.chunks);
            unit.load(e < p.experts ? blob : nullptr, quarter_of(first));
        } else {
            const u8* row = p.w.data + e * p.w.stride_expert + (first + lane / 4) * p.w.stride_row +
                            chunk % S.chunks * kFewChunk;
            unit.load(e < p.experts ? row : nullptr, row + kFewRows / 2 * p.w.stride_row);
        }
    };
    const u32 my_slot = thread / kFewRows, my_row = thread % kFewRows;  // of a sum
    float row_scale = 1, weight = 1;                                    // MXFP4; combine_weighted
    const auto ready = [&] {
        const u32 mine = expert(my_slot < kTopK ? my_slot : kTopK);
        if constexpr (S.combine.combine_weighted) {
            if (my_slot < kTopK) weight = ptx::ld_global_f32(p.weights + token * kTopK + my_slot);
        }
        if constexpr (S.w.fp4) {
            write_table<S.w.form>(smem + kPlan.table);
            if (mine < p.experts)
                row_scale = ptx::ld_global_f32(p.w.scales + mine * p.w.scale_stride_expert + first + my_row);
        } else {
            static_assert(kMaxFewChunks <= kFewDownThreads);
            const u32 e = expert(thread < kChunks ? thread / S.chunks : kTopK);
            if (thread < kChunks)
                ptx::st_shared_f32(smem + kPlan.w_scales + thread * 4,
                                   e < p.experts ? block_scale(p.w, e, first, thread % S.chunks) : 0.0f);
        }
        ptx::grid_dependency_wait();
        // The activation of an expert that is not here may be anything: its sums are dropped.
        const u64 row = static_cast<u64>(token) * kChunks * kFewChunk;
        write_chunks<S.w.fp4>(
            smem, smem + kPlan.mid_scales, kChunks, kFewDownThreads, [&](u32 chunk, u32 column) {
                return rounded_chunk<Format::bf16, S.rule>(p.mid, row, kChunks, chunk, column);
            });
        ptx::sync_threads();
    };
    const auto sums_of = [&](u32 chunk, u32 row) { return smem + kPlan.sums + (chunk * kFewRows + row) * 4; };
    multiply_units<S.w, kChunks, kFewDownThreads / 32>(ptx::warp_index(), smem, smem + kPlan.table, load,
                                                       ready, [&](u32 chunk) { return sums_of(chunk, 0); });
    ptx::sync_threads();
    if (my_slot < kTopK) {
        const u32 chunk = my_slot * S.chunks;
        float y = sum_chunks<S.w.fp4>(sums_of(chunk, my_row), smem + kPlan.mid_scales + chunk * 4,
                                      smem + kPlan.w_scales + chunk * 4, S.chunks);
        if constexpr (S.w.fp4) y = ptx::mul_rn_f32(y, row_scale);
        y = tile::through_bf16(y);
        if constexpr (S.combine.combine_weighted) y = ptx::mul_rn_f32(y, weight);
        ptx::st_shared_f32(smem + kPlan.parts + thread * 4, y);
    }
    const u32 present = ptx::ballot(of_lane < p.experts);
    float shared = 0;
    if constexpr (S.combine.shared) {
        if (thread < kFewRows)
            shared = tile::load<Format::bf16>(p.shared, token * p.shared_stride + first + thread);
    }
    ptx::sync_threads();
    if (thread >= kFewRows) return;
    float sum = 0;
#pragma unroll
    for (u32 slot = 0; slot < kTopK; ++slot) {
        if ((present >> slot & 1) == 0) continue;
        sum = ptx::add_rn_f32(sum, ptx::ld_shared_f32(smem + kPlan.parts + (slot * kFewRows + thread) * 4));
    }
    if constexpr (S.combine.shared) sum = ptx::add_rn_f32(sum, shared);
    tile::store<S.combine.d>(p.d, token * p.d_stride + first + thread, sum);
}

}  // namespace deep_gemm
