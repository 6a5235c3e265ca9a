// Experts and weights of a token (spec/router.h). Called by op/router.cpp.
#pragma once

#include <deep_gemm/spec/router.h>
#include <deep_gemm/tile/order.h>
#include <deep_gemm/tile/reduce.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm {

namespace router_detail {

DG_DEVICE float sqrt_softplus(float z) {
    return ptx::sqrt_rn_f32(z > 20.0f ? z : ptx::log1p_f32(ptx::exp_f32(z)));
}

/// Scores of all experts into shared memory; a softmax is the first warp's.
template <RouterSpec S>
DG_DEVICE void score(const RouterParams& p, const float* logits, ptx::SharedAddress scores) {
    const u32 lane = ptx::lane_index();
    if constexpr (S.score == RouterScore::sqrt_softplus) {
        for (u32 e = ptx::thread_index(); e < p.num_experts; e += kRouterThreads)
            ptx::st_shared_f32(scores + e * 4, sqrt_softplus(ptx::ld_global_f32(logits + e)));
    } else if (ptx::warp_index() == 0) {
        float largest = codec::float_of_bits(codec::kSignBit | codec::kInfinityBits), sum = 0;
#pragma unroll 4
        for (u32 e = lane; e < p.num_experts; e += 32)
            largest = ptx::max_nan_f32(largest, ptx::ld_global_f32(logits + e));
        largest = tile::warp_max(largest);
        for (u32 e = lane; e < p.num_experts; e += 32) {
            const float exp = ptx::exp_f32(ptx::ld_global_f32(logits + e) - largest);
            ptx::st_shared_f32(scores + e * 4, exp);
            sum += exp;
        }
        sum = tile::warp_sum(sum);
        for (u32 e = lane; e < p.num_experts; e += 32)
            ptx::st_shared_f32(scores + e * 4, ptx::ld_shared_f32(scores + e * 4) / sum);
    }
}

}  // namespace router_detail

template <RouterSpec S>
DG_DEVICE void route_block(const RouterParams& p, u32 row) {
    constexpr RouterSmem kPlan = plan_smem(S);
    const u32 lane = ptx::lane_index();
    const ptx::SharedAddress scores = ptx::dynamic_smem() + kPlan.scores,
                             keys = ptx::dynamic_smem() + kPlan.keys;
    router_detail::score<S>(p, p.logits + row * p.logits_stride, scores);
    ptx::sync_threads();
    if constexpr (!S.hash) {
        for (u32 e = ptx::thread_index(); e < p.num_experts; e += kRouterThreads) {
            float value = ptx::ld_shared_f32(scores + e * 4);
            if constexpr (S.bias) value += ptx::ld_global_f32(p.bias + e);
            const u32 order = tile::order_of(value);
            ptx::st_shared_u32(keys + e * 4, order != 0 ? order : 1);  // 0: taken
        }
        ptx::sync_threads();
    }
    if (ptx::warp_index() != 0) return;

    // Lane j has choice j; an expert at or above num_experts is none.
    u32 expert = p.num_experts;
    if constexpr (S.hash) {
        const u32 token = static_cast<u32>(ptx::ld_global_s32(p.tokens + row));
        if (lane < p.choices && token < p.vocabulary)
            expert =
                static_cast<u32>(ptx::ld_global_s32(p.table + static_cast<u64>(token) * p.choices + lane));
    } else {
        for (u32 j = 0; j < p.choices; ++j) {
            u64 best = 0;
#pragma unroll 4
            for (u32 e = lane; e < p.num_experts; e += 32) {
                const u64 key = tile::ranked(ptx::ld_shared_u32(keys + e * 4), e);
                best = key > best ? key : best;
            }
            const u32 chosen = tile::index_of(tile::warp_max_u64(best));
            if (lane == j) expert = chosen;
            if (chosen % 32 == lane) ptx::st_shared_u32(keys + chosen * 4, 0);
        }
    }
    ptx::sync_warp();
    const bool known = expert < p.num_experts;
    const float mine = known ? ptx::ld_shared_f32(scores + expert * 4) : 0.0f;
    float divisor = 1;
    if constexpr (S.normalize) {
        divisor = 0;
        for (u32 j = 0; j < p.choices; ++j) divisor += ptx::shfl_idx_f32(mine, j);
        if (divisor == 0) divisor = 1;
    }
    if (lane >= p.choices) return;
    const u64 at = static_cast<u64>(row) * p.choices + lane;
    ptx::st_global_s32(p.experts + at, known ? static_cast<i32>(expert) : -1);
    ptx::st_global_f32(p.weights + at, mine / divisor * p.scale);
}

template <RouterSpec S>
DG_KERNEL(kRouterThreads, 4)
route(DG_GRID_CONSTANT const RouterParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    route_block<S>(p, ptx::block_index());
}

}  // namespace deep_gemm
