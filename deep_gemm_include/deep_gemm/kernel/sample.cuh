// From logits to tokens (spec/sample.h), a CTA a row. Called by op/sample.cpp.
#pragma once

#include <deep_gemm/spec/sample.h>
#include <deep_gemm/tile/draw.h>
#include <deep_gemm/ptx/narrow.h>

namespace deep_gemm {

namespace sample_detail {

constexpr float kNan = codec::float_of_bits(codec::kNanBits);
constexpr SampleSmem kPlan = plan_smem(SampleSpec{});

struct Largest {
    u32 token;
    bool nan;
};
/// The largest logit's lowest index, and whether any is NaN. In all threads.
DG_DEVICE Largest largest_of(const float* logits, u32 v, ptx::SharedAddress smem) {
    u64 best = 0, nan = 0;
    for (u32 i = ptx::thread_index(); i < v; i += kSampleThreads) {
        const u32 order = tile::order_of(ptx::ld_global_f32(logits + i));
        const u64 key = tile::ranked(order, i);
        best = key > best ? key : best;
        if (order == 0) nan = 1;
    }
    best = tile::cta_max_u64(smem + kPlan.warps, best);
    nan = tile::cta_max_u64(smem + kPlan.warps, nan);
    return {tile::index_of(best), nan != 0};
}

/// In order of logits, the prefix of largest elements whose measure first reaches a target: everything above
/// `threshold` in order_of, and the first `equal` tokens at it.
struct Prefix {
    u32 threshold, equal;
};

/// measure(i) is an integer that is the same for equal logits; target is at least 1, at most the sum of all.
template <typename Measure>
DG_DEVICE Prefix find_prefix(const float* logits, u32 v, ptx::SharedAddress smem, u64 target,
                             const Measure& measure) {
    const u32 thread = ptx::thread_index();
    u32 threshold = 0, known = 0;
    u64 wanted = target;
    for (u32 shift = 24;; shift -= 8) {
        ptx::st_shared_u64(smem + kPlan.bins + thread * 8, 0);
        ptx::sync_threads();
        for (u32 i = thread; i < v; i += kSampleThreads) {
            const u32 order = tile::order_of(ptx::ld_global_f32(logits + i));
            if ((order & known) == threshold)
                ptx::red_shared_add_u64(smem + kPlan.bins + (order >> shift & 255) * 8, measure(i));
        }
        ptx::sync_threads();
        if (thread == 0) {
            u32 bin = 255;
            u64 above = 0;
            for (u64 here = ptx::ld_shared_u64(smem + kPlan.bins + bin * 8); bin > 0 && above + here < wanted;
                 here = ptx::ld_shared_u64(smem + kPlan.bins + bin * 8)) {
                above += here;
                --bin;
            }
            ptx::st_shared_u64(smem + kPlan.found, bin);
            ptx::st_shared_u64(smem + kPlan.found + 8, above);
        }
        ptx::sync_threads();
        threshold |= static_cast<u32>(ptx::ld_shared_u64(smem + kPlan.found)) << shift;
        known |= 255u << shift;
        wanted -= ptx::ld_shared_u64(smem + kPlan.found + 8);
        ptx::sync_threads();
        if (shift == 0) break;
    }
    // Equal logits have one measure.
    u64 one = 0;
    for (u32 i = thread; i < v; i += kSampleThreads)
        if (tile::order_of(ptx::ld_global_f32(logits + i)) == threshold) one = measure(i);
    one = tile::cta_max_u64(smem + kPlan.warps, one);
    return {threshold, one == 0 ? 0 : static_cast<u32>((wanted + one - 1) / one)};
}

DG_DEVICE Prefix shorter(const Prefix& a, const Prefix& b) {
    if (a.threshold != b.threshold) return a.threshold > b.threshold ? a : b;
    return a.equal < b.equal ? a : b;
}

}  // namespace sample_detail

/// A cluster a row: its CTAs take turns along the row, in pieces of as many logits as they have threads.
template <SampleSpec S>
DG_KERNEL(kArgmaxThreads, 1)
argmax(DG_GRID_CONSTANT const ArgmaxParams p) {
    constexpr SampleSmem kPlan = plan_smem(S);
    constexpr u32 kStep = kArgmaxThreads * kArgmaxCluster;
    static_assert(kArgmaxThreads / 32 == 32, "the first warp takes one number of each");
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 row = ptx::block_index() / kArgmaxCluster, rank = ptx::cluster_rank();
    const u32 lane = ptx::lane_index(), first = rank * kArgmaxThreads + ptx::thread_index();
    const float* logits = p.logits + row * p.stride;
    u64 best = 0;
    bool nan = false;
    for (u32 base = first; base < p.v; base += kStep * kArgmaxUnroll) {
        float values[kArgmaxUnroll];
#pragma unroll
        for (u32 j = 0; j < kArgmaxUnroll; ++j) {
            const u32 i = base + j * kStep;
            values[j] = ptx::ld_global_f32(logits + (i < p.v ? i : first));  // again: no other maximum
        }
#pragma unroll
        for (u32 j = 0; j < kArgmaxUnroll; ++j) {
            const u32 i = base + j * kStep, order = tile::order_of(values[j]);
            const u64 key = tile::ranked(order, i < p.v ? i : first);
            best = key > best ? key : best;
            nan = nan || order == 0;
        }
    }
    // A NaN is above every rank.
    best = tile::warp_max_u64(nan ? ~u64{0} : best);
    const ptx::SharedAddress warps = ptx::dynamic_smem() + kPlan.bins, mine = warps + kArgmaxThreads / 32 * 8;
    const u32 warp = ptx::warp_index();
    if (lane == 0) ptx::st_shared_u64(warps + warp * 8, best);
    ptx::sync_threads();
    if (warp == 0) {
        best = tile::warp_max_u64(ptx::ld_shared_u64(warps + lane * 8));
        if (lane == 0) ptx::st_shared_u64(mine, best);
    }
    ptx::cluster_sync();
    if (rank == 0 && warp == 0) {
        const ptx::UInt2 peer = ptx::ld_cluster_v2_u32(ptx::map_to_rank(mine, lane % kArgmaxCluster));
        best = tile::warp_max_u64(peer.x | static_cast<u64>(peer.y) << 32);
        if (lane == 0)
            ptx::st_global_s32(p.tokens + row, best == ~u64{0} ? -1 : static_cast<i32>(tile::index_of(best)));
    }
    ptx::cluster_sync();  // the shared memory stays until it has been read
}

template <SampleSpec S>
DG_KERNEL(kSampleThreads, 2)
sample_distribution(DG_GRID_CONSTANT const DistributionParams p) {
    constexpr SampleSmem kPlan = plan_smem(S);
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 row = ptx::block_index(), thread = ptx::thread_index();
    const float* logits = p.logits + row * p.stride;
    float* out = p.probabilities + row * p.out_stride;
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const auto found = sample_detail::largest_of(logits, p.v, smem);
    const float temperature = ptx::ld_global_f32(p.temperature + row);
    const float largest = ptx::ld_global_f32(logits + found.token);
    if (found.nan || !(temperature > 0)) {
        for (u32 i = thread; i < p.v; i += kSampleThreads)
            ptx::st_global_f32(out + i, found.nan ? sample_detail::kNan : i == found.token ? 1.0f : 0.0f);
        return;
    }
    const auto weight_at = [&](u32 i) -> u64 {
        const float logit = ptx::ld_global_f32(logits + i);
        if (logit == largest) return static_cast<u64>(1) << 44;
        return ptx::cvt_u64_f32(
            ptx::mul_rn_f32(ptx::exp_f32(ptx::div_rn_f32(logit - largest, temperature)), kSampleUnits));
    };
    u64 total = 0;
    for (u32 i = thread; i < p.v; i += kSampleThreads) total += weight_at(i);
    total = tile::cta_sum_u64(smem + kPlan.warps, total);

    sample_detail::Prefix prefix{0, p.v};  // everything
    const i32 top_k = ptx::ld_global_s32(p.top_k + row);
    if (top_k > 0 && static_cast<u32>(top_k) < p.v)
        prefix = sample_detail::find_prefix(logits, p.v, smem, static_cast<u64>(top_k),
                                            [](u32) -> u64 { return 1; });
    const float top_p = ptx::ld_global_f32(p.top_p + row);
    if (top_p < 1) {
        const u64 share = ptx::cvt_u64_f32(ptx::mul_rn_f32(top_p > 0 ? top_p : 0.0f, 0x1p32f)) << 32;
        const u64 target = ptx::mul_hi_u64(total, share);
        prefix = sample_detail::shorter(
            prefix, sample_detail::find_prefix(logits, p.v, smem, target > 0 ? target : 1, weight_at));
    }
    const u64 least = ptx::cvt_u64_f32(ptx::mul_rn_f32(ptx::ld_global_f32(p.min_p + row), kSampleUnits));

    // In order of tokens: which are kept, and their sum; then the same again to write.
    const u32 warp = ptx::warp_index(), lane = ptx::lane_index();
    const auto sweep = [&](const auto& visit) {
        u32 equal = 0;
        for (u32 base = 0; base < p.v; base += kSampleThreads) {
            const u32 i = base + thread;
            const u32 order = i < p.v ? tile::order_of(ptx::ld_global_f32(logits + i)) : 0;
            const bool at_threshold = i < p.v && order == prefix.threshold;
            const u32 mask = ptx::ballot(at_threshold);
            if (lane == 0) ptx::st_shared_u32(smem + kPlan.counts + warp * 4, ptx::popc(mask));
            ptx::sync_threads();
            u32 before = equal + ptx::popc(mask & ((1u << lane) - 1));
            for (u32 w = 0; w < tile::kSampleWarps; ++w) {
                const u32 count = ptx::ld_shared_u32(smem + kPlan.counts + w * 4);
                if (w < warp) before += count;
                equal += count;
            }
            if (i < p.v) {
                const u64 weight = weight_at(i);
                const bool inside = order > prefix.threshold || (at_threshold && before < prefix.equal);
                visit(i, inside && weight >= least ? weight : 0);
            }
            ptx::sync_threads();
        }
    };
    u64 kept = 0;
    sweep([&](u32, u64 weight) { kept += weight; });
    kept = tile::cta_sum_u64(smem + kPlan.warps, kept);
    sweep([&](u32 i, u64 weight) {
        ptx::st_global_f32(out + i, ptx::cvt_f32_u64(weight) / ptx::cvt_f32_u64(kept));
    });
}

template <SampleSpec S>
DG_KERNEL(kSampleThreads, 2)
sample_draw(DG_GRID_CONSTANT const DrawParams p) {
    constexpr SampleSmem kPlan = plan_smem(S);
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 row = ptx::block_index();
    const float* probabilities = p.probabilities + row * p.stride;
    const i32 position = ptx::ld_global_s32(p.positions + row);
    u64 nan = 0;
    for (u32 i = ptx::thread_index(); i < p.v; i += kSampleThreads)
        if (tile::order_of(ptx::ld_global_f32(probabilities + i)) == 0) nan = 1;
    nan = tile::cta_max_u64(ptx::dynamic_smem() + kPlan.warps, nan);
    i32 token = -1;
    if (position >= 0 && nan == 0)
        token = tile::draw(
            ptx::dynamic_smem(), p.v, tile::random_of(p.seed, position, p.purpose).bits64(), [&](u32 i) {
                return ptx::cvt_u64_f32(ptx::mul_rn_f32(ptx::ld_global_f32(probabilities + i), kSampleUnits));
            });
    if (ptx::thread_index() == 0) ptx::st_global_s32(p.tokens + row, token);
}

template <SampleSpec S>
DG_KERNEL(kSampleThreads, 2)
accept_drafts(DG_GRID_CONSTANT const AcceptParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    // All threads follow the same few decisions.
    u32 accepted = 0;
    bool rejected = false;
    for (u32 i = 0; i + 1 < p.n; ++i) {
        const i32 draft = ptx::ld_global_s32(p.tokens + i + 1);
        if (draft < 0) break;
        if constexpr (S.sampled) {
            bool accept = false;
            if (static_cast<u32>(draft) < p.v) {
                const float u =
                    tile::random_of(p.seed, ptx::ld_global_s32(p.positions + i), kPurposeAccept).uniform();
                accept = ptx::mul_rn_f32(u, ptx::ld_global_f32(p.q + i * p.q_stride + draft)) <
                         ptx::ld_global_f32(p.p + i * p.p_stride + draft);
            }
            rejected = !accept;
        } else {
            rejected = ptx::ld_global_s32(p.targets + i) != draft;
        }
        if (rejected) break;
        ++accepted;
    }
    const i32 position = ptx::ld_global_s32(p.positions + accepted);
    i32 next = -1;
    if constexpr (S.sampled) {
        const float* target = p.p + accepted * p.p_stride;
        const float* draft = p.q + accepted * p.q_stride;
        const auto units = [](float x) { return ptx::cvt_u64_f32(ptx::mul_rn_f32(x, kSampleUnits)); };
        const ptx::SharedAddress smem = ptx::dynamic_smem();
        if (rejected)
            next = tile::draw(
                smem, p.v, tile::random_of(p.seed, position, kPurposeResidual).bits64(), [&](u32 i) {
                    const float rest = ptx::ld_global_f32(target + i) - ptx::ld_global_f32(draft + i);
                    return units(rest > 0 ? rest : 0.0f);
                });
        if (next < 0)
            next = tile::draw(smem, p.v, tile::random_of(p.seed, position, kPurposeDraw).bits64(),
                              [&](u32 i) { return units(ptx::ld_global_f32(target + i)); });
    } else {
        next = ptx::ld_global_s32(p.targets + accepted);
    }
    if (ptx::thread_index() != 0) return;
    ptx::st_global_s32(p.record, static_cast<i32>(accepted));
    ptx::st_global_s32(p.record + 1, next);
    ptx::st_global_s32(p.record + 2, position + 1);
    ptx::st_global_s32(p.record + 3, rejected ? 1 : 0);
}

template <SampleSpec S>
DG_KERNEL(kSampleThreads, 2)
fill_positions(DG_GRID_CONSTANT const PositionsParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 i = ptx::block_index() * kSampleThreads + ptx::thread_index();
    if (i >= p.n) return;
    const bool active = !p.count || static_cast<i32>(i) < ptx::ld_global_s32(p.count);
    ptx::st_global_s32(p.positions + i,
                       active ? ptx::ld_global_s32(p.base) + p.offset + static_cast<i32>(i) : -1);
}

}  // namespace deep_gemm
