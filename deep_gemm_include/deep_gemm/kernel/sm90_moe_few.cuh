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

/// A unit of 16 channels of an expert; zeros beyond the last chunk, or if the expert is none of this device's.
/// E4M3: a warpgroup has eight gate rows and the up rows of the same channels. MXFP4: one warpgroup has the gate
/// rows, the other one the up rows.
template <MoeFewUpSpec S>
DG_DEVICE void load_up(const MoeFewUpParams& p, u32 expert, u32 channel, u32 group, u32 chunk,
                       Unit<S.w>& unit) {
    const u32 first_row = channel + group * (S.w.fp4 ? p.n : kFewRows / 2);
    const bool there = chunk < S.chunks && expert < p.experts;
    if constexpr (S.w.fp4) {
        const u8* blob = blob_of(p.w, fp4_blob_bytes_of(S.w.form), expert, first_row, chunk);
        unit.load(there ? blob : nullptr, quarter_of(first_row));
    } else {
        const u8* row = p.w.data + expert * p.w.stride_expert +
                        (first_row + ptx::lane_index() / 4) * p.w.stride_row + chunk * kFewChunk;
        unit.load(there ? row : nullptr, row + p.n * p.w.stride_row);
    }
}

/// The token's codes and scales, into shared memory.
template <MoeFewUpSpec S>
DG_DEVICE void write_token(const MoeFewUpParams& p, u32 token, ptx::SharedAddress smem) {
    write_chunks<S.w.fp4>(
        smem, smem + plan_smem(S).x_scales, S.chunks, kFewUpThreads, [&](u32 chunk, u32 column) {
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
}

/// CTA `cta` of `ctas` of sm90_moe_few_up: blocks of 16 channels of a pair of token and expert one after the
/// other, and the weights of the next one on their way while one is finished. What follows may start only now
/// that the experts are known: sm90_moe_few_down reads them, and weights, before it waits for anything.
template <MoeFewUpSpec S>
DG_DEVICE void few_up_blocks(const MoeFewUpParams& p, u32 cta, u32 ctas) {
    constexpr MoeFewUpSmem kPlan = plan_smem(S);
    constexpr u32 kHalf = kFewRows / 2;
    using T = Turns<S.chunks, kWarps>;
    ptx::grid_dependency_wait();
    ptx::grid_dependency_launch();
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 of_pair = p.n / kFewUpChannels, all = p.pairs * of_pair;
    const u32 begin = few_share(all, cta, ctas);
    u32 left = few_share(all, cta + 1, ctas) - begin;
    const u32 thread = ptx::thread_index(), group = thread / 128, warp = thread / 32 % kWarps;
    // First of the block's elements of mid, and of its expert's channels.
    u32 out = begin * kFewUpChannels, channel = begin % of_pair * kFewUpChannels;
    u32 expert = expert_of(p.topk_ids, begin / of_pair, p.first_expert);
    Units<S.w, S.chunks, kWarps> units;
#pragma unroll
    for (u32 i = 0; i < T::kDepth; ++i) load_up<S>(p, expert, channel, group, warp + i * kWarps, units[i]);
    if constexpr (S.w.fp4) write_table<S.w.form>(smem + kPlan.table);
    write_token<S>(p, begin / of_pair / p.top_k, smem);
    ptx::sync_threads();

    const auto next_channel = [&] { return channel + kFewUpChannels < p.n ? channel + kFewUpChannels : 0; };
    for (; left > 0; --left) {
        const u32 half = left % 2;  // the other one may still be read for the block before
        const ptx::SharedAddress sums = smem + kPlan.sums + half * few_up_sums_bytes(S),
                                 w_scales = smem + kPlan.w_scales + half * few_up_scales_bytes(S),
                                 weights = smem + kPlan.weights + half * (ptx::kWarpThreads * 4);
        const auto sums_of = [&](u32 of_group, u32 chunk, u32 row) {
            return sums + ((of_group * S.chunks + chunk) * kFewRows + row) * 4;
        };
        const bool present = expert < p.experts;
        // The thread that asks for these is the one that needs them.
        if (S.weighted && thread < ptx::kWarpThreads)
            ptx::cp_async<4>(weights + thread * 4, p.weights + out / p.n, 4);
        if constexpr (S.w.fp4) {
            // Of gate row `thread`, or of the up row 16 before.
            if (present && thread < ptx::kWarpThreads)
                ptx::cp_async<4>(w_scales + thread * 4,
                                 p.w.scales + expert * p.w.scale_stride_expert + channel +
                                     (thread < kFewUpChannels ? thread : p.n + thread - kFewUpChannels),
                                 4);
        } else {
            // The channels of a block share their scales.
            for (u32 i = thread; present && i < 2 * S.chunks; i += kFewUpThreads)
                ptx::st_shared_f32(w_scales + i * 4,
                                   block_scale(p.w, expert, channel + i / S.chunks * p.n, i % S.chunks));
        }
        u32 next_expert = expert;
        if (left == 1)
            next_expert = p.experts;
        else if (next_channel() == 0)
            next_expert = expert_of(p.topk_ids, out / p.n + 1, p.first_expert);
        multiply_units<S.w, S.chunks, kWarps>(
            units, warp, smem, smem + kPlan.table,
            [&](u32 chunk, Unit<S.w>& unit) { load_up<S>(p, expert, channel, group, chunk, unit); },
            [&](u32 chunk, Unit<S.w>& unit) {
                load_up<S>(p, next_expert, next_channel(), group, chunk, unit);
            },
            [&](u32 chunk) { return sums_of(group, chunk, 0); });
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
        ptx::sync_threads();
        if (thread < ptx::kWarpThreads && present) {
            const u32 mine = thread % kFewUpChannels;
            const auto product = [&](u32 which) {  // 0: gate, 1: up
                const u32 of_group = S.w.fp4 ? which : mine / kHalf;
                const u32 row = S.w.fp4 ? mine : which * kHalf + mine % kHalf;
                float sum = sum_chunks<S.w.fp4>(sums_of(of_group, 0, row), smem + kPlan.x_scales,
                                                w_scales + which * S.chunks * 4, S.chunks);
                if constexpr (S.w.fp4) sum = ptx::mul_rn_f32(sum, ptx::ld_shared_f32(w_scales + thread * 4));
                return tile::through_bf16(sum);
            };
            // Half a warp has the gates, the other one what they are multiplied with.
            float v = product(thread / kFewUpChannels);
            float gate = v, up = ptx::shfl_bfly_f32(v, kFewUpChannels);
            if constexpr (S.limited) {
                gate = ptx::min_nan_f32(gate, p.limit);
                up = ptx::min_nan_f32(ptx::max_nan_f32(up, -p.limit), p.limit);
            }
            v = tile::swiglu(gate, up);
            if constexpr (S.weighted) v = ptx::mul_rn_f32(v, ptx::ld_shared_f32(weights + thread * 4));
            if (thread < kFewUpChannels) tile::store<Format::bf16>(p.mid, u64{out} + thread, v);
        }
        expert = next_expert, channel = next_channel(), out += kFewUpChannels;
        if (const u32 token = out / p.n / p.top_k; left > 1 && channel == 0 && token * p.top_k == out / p.n) {
            ptx::sync_threads();  // the codes and their scales may still be read
            write_token<S>(p, token, smem);
            ptx::sync_threads();
        }
    }
}

}  // namespace moe_few_detail

template <MoeFewUpSpec S>
DG_KERNEL(kFewUpThreads, ctas_per_sm_of(S))
sm90_moe_few_up(DG_GRID_CONSTANT const MoeFewUpParams p) {
    static_assert(why_illegal(S) == nullptr);
    moe_few_detail::few_up_blocks<S>(p, ptx::block_index(), ptx::grid_size());
}

template <MoeFewDownSpec S>
DG_KERNEL(kFewDownThreads, ctas_per_sm_of(S))
sm90_moe_few_down(DG_GRID_CONSTANT const MoeFewDownParams p) {
    static_assert(why_illegal(S) == nullptr);
    using namespace moe_few_detail;
    constexpr MoeFewDownSmem kPlan = plan_smem(S);
    constexpr u32 kChunks = chunks_of(S), kTopK = S.combine.top_k, kWarpsOfCta = kFewDownThreads / 32;
    using T = Turns<kChunks, kWarpsOfCta>;
    ptx::grid_dependency_launch();
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 of_token = p.n / kFewRows, blocks = p.tokens * of_token;  // of 16 rows
    const u32 begin = few_share(blocks, ptx::block_index(), ptx::grid_size()),
              end = few_share(blocks, ptx::block_index() + 1, ptx::grid_size());
    const u32 thread = ptx::thread_index(), lane = ptx::lane_index(), warp = ptx::warp_index();
    const u32 my_slot = thread / kFewRows, my_row = thread % kFewRows;  // of a sum
    u32 of_lane = p.experts;  // lane i has the expert of slot i; whole warps ask
    const auto expert = [&](u32 slot) { return ptx::shfl_idx(of_lane, slot); };
    const auto load = [&](u32 first, u32 chunk, Unit<S.w>& unit) {
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
    Units<S.w, kChunks, kWarpsOfCta> units;
    for (u32 block = begin, token = ~0u; block < end; ++block) {
        const u32 first = block % of_token * kFewRows;
        const bool other = block / of_token != token;
        if (other) {
            token = block / of_token;
            of_lane = lane < kTopK ? expert_of(p.topk_ids, token * kTopK + lane, p.first_expert) : p.experts;
#pragma unroll
            for (u32 i = 0; i < T::kDepth; ++i) load(first, warp + i * kWarpsOfCta, units[i]);
        }
        float row_scale = 1, weight = 1;  // MXFP4; combine_weighted
        const u32 mine = expert(my_slot < kTopK ? my_slot : kTopK);
        if constexpr (S.combine.combine_weighted) {
            if (my_slot < kTopK) weight = ptx::ld_global_f32(p.weights + token * kTopK + my_slot);
        }
        if constexpr (S.w.fp4) {
            if (mine < p.experts)
                row_scale = ptx::ld_global_f32(p.w.scales + mine * p.w.scale_stride_expert + first + my_row);
        } else {
            static_assert(kMaxFewChunks <= kFewDownThreads);
            const u32 e = expert(thread < kChunks ? thread / S.chunks : kTopK);
            if (thread < kChunks)
                ptx::st_shared_f32(smem + kPlan.w_scales + thread * 4,
                                   e < p.experts ? block_scale(p.w, e, first, thread % S.chunks) : 0.0f);
        }
        if (other) {
            if (block == begin) {
                if constexpr (S.w.fp4) write_table<S.w.form>(smem + kPlan.table);
                ptx::grid_dependency_wait();
            }
            // The activation of an expert that is not here may be anything: its sums are dropped.
            const u64 row = static_cast<u64>(token) * kChunks * kFewChunk;
            write_chunks<S.w.fp4>(
                smem, smem + kPlan.mid_scales, kChunks, kFewDownThreads, [&](u32 chunk, u32 column) {
                    return rounded_chunk<Format::bf16, S.rule>(p.mid, row, kChunks, chunk, column);
                });
            ptx::sync_threads();
        }
        const bool goes_on = block + 1 < end && (block + 1) / of_token == token;
        const auto sums_of = [&](u32 chunk, u32 row) {
            return smem + kPlan.sums + (chunk * kFewRows + row) * 4;
        };
        multiply_units<S.w, kChunks, kWarpsOfCta>(
            units, warp, smem, smem + kPlan.table,
            [&](u32 chunk, Unit<S.w>& unit) { load(first, chunk, unit); },
            [&](u32 chunk, Unit<S.w>& unit) { load(first + kFewRows, goes_on ? chunk : kChunks, unit); },
            [&](u32 chunk) { return sums_of(chunk, 0); });
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
        if (thread >= kFewRows) continue;
        float sum = 0;
#pragma unroll
        for (u32 slot = 0; slot < kTopK; ++slot) {
            if ((present >> slot & 1) == 0) continue;
            sum =
                ptx::add_rn_f32(sum, ptx::ld_shared_f32(smem + kPlan.parts + (slot * kFewRows + thread) * 4));
        }
        if constexpr (S.combine.shared) sum = ptx::add_rn_f32(sum, shared);
        tile::store<S.combine.d>(p.d, token * p.d_stride + first + thread, sum);
    }
}

}  // namespace deep_gemm
