// Sorts (token, expert) pairs by expert: spec/moe.h. A CTA has one expert; it counts the pairs of all
// experts, which gives the place of its own slots without any exchange between CTAs, and then lists its pairs
// in their order. Called by op/moe.cpp.
#pragma once

#include <deep_gemm/spec/moe.h>
#include <deep_gemm/ptx/narrow.h>

namespace deep_gemm {

namespace moe_group_detail {

/// The expert's number on this device; anything at or beyond `experts`: not here.
DG_DEVICE u32 expert_of(const MoeGroupParams& p, u32 pair) {
    return static_cast<u32>(ptx::ld_global_s32(p.topk_ids + pair)) - p.first_expert;
}

/// Sum over the warp, in all lanes.
DG_DEVICE u32 warp_sum(u32 value) {
#pragma unroll
    for (u32 mask = 1; mask < ptx::kWarpThreads; mask *= 2)
        value += ptx::shfl_idx(value, ptx::lane_index() ^ mask);
    return value;
}

struct Before {
    u32 slots, entries;  // of the experts before this one
};

/// Scope: CTA; the counts are complete.
template <MoeGroupSpec S>
DG_DEVICE Before before(const MoeGroupParams& p, ptx::SharedAddress smem, u32 expert) {
    constexpr MoeGroupSmem kPlan = plan_smem(S);
    u32 slots = 0, entries = 0;
    for (u32 e = ptx::thread_index(); e < expert; e += kMoeThreads) {
        const u32 count = ptx::ld_shared_b32(smem + kPlan.counts + e * 4);
        slots += align_up(count, p.alignment);
        entries += count > 0;
    }
    slots = warp_sum(slots);
    entries = warp_sum(entries);
    const u32 thread = ptx::thread_index(), warp = thread / ptx::kWarpThreads;
    if (thread % ptx::kWarpThreads == 0) {
        ptx::st_shared_b32(smem + kPlan.starts + warp * 8, slots);
        ptx::st_shared_b32(smem + kPlan.starts + warp * 8 + 4, entries);
    }
    ptx::sync_threads();
    Before all{0, 0};
#pragma unroll
    for (u32 w = 0; w < kMoeWarps; ++w) {
        all.slots += ptx::ld_shared_b32(smem + kPlan.starts + w * 8);
        all.entries += ptx::ld_shared_b32(smem + kPlan.starts + w * 8 + 4);
    }
    return all;
}

/// Lists the pairs of `expert` from slot `start` on. A warp has a segment of the pairs; segments are in
/// order.
template <MoeGroupSpec S>
DG_DEVICE void list_pairs(const MoeGroupParams& p, ptx::SharedAddress smem, u32 expert, u32 start) {
    constexpr MoeGroupSmem kPlan = plan_smem(S);
    const u32 warp = ptx::warp_index(), lane = ptx::lane_index();
    const u32 segment = align_up(ceil_div(p.pairs, kMoeWarps), ptx::kWarpThreads);
    const u32 first = warp * segment, end = first + segment < p.pairs ? first + segment : p.pairs;
    u32 mine = 0;
    for (u32 base = first; base < end; base += ptx::kWarpThreads)
        mine += ptx::count_bits(ptx::ballot(base + lane < end && expert_of(p, base + lane) == expert));
    if (lane == 0) ptx::st_shared_b32(smem + kPlan.warps + warp * 4, mine);
    ptx::sync_threads();
    u32 slot = start;
    for (u32 w = 0; w < warp; ++w) slot += ptx::ld_shared_b32(smem + kPlan.warps + w * 4);
    for (u32 base = first; base < end; base += ptx::kWarpThreads) {
        const u32 pair = base + lane;
        const bool match = pair < end && expert_of(p, pair) == expert;
        const u32 matches = ptx::ballot(match), below = ptx::count_bits(matches & ((1u << lane) - 1));
        if (match) {
            ptx::st_global_s32(p.slot_pairs + slot + below, static_cast<i32>(pair));
            ptx::st_global_s32(p.slot_tokens + slot + below, static_cast<i32>(pair / p.top_k));
            ptx::st_global_s32(p.pair_slots + pair, static_cast<i32>(slot + below));
        }
        slot += ptx::count_bits(matches);
    }
}

/// Where the expert's slots are, for everyone who asks.
DG_DEVICE void publish(const MoeGroupParams& p, u32 expert, u32 count, const Before& before) {
    const u32 end = before.slots + align_up(count, p.alignment);
    for (u32 slot = before.slots + count + ptx::thread_index(); slot < end; slot += kMoeThreads) {
        ptx::st_global_s32(p.slot_pairs + slot, -1);
        ptx::st_global_s32(p.slot_tokens + slot, -1);
    }
    if (ptx::thread_index() != 0) return;
    ptx::st_global_s32(p.offsets + expert, static_cast<i32>(before.slots));
    ptx::st_global_s32(p.ends + expert, static_cast<i32>(before.slots + count));
    if (count > 0) ptx::st_global_v4_u32(p.entries + before.entries, expert, before.slots, count, 0);
    if (expert + 1 < p.experts) return;
    ptx::st_global_s32(p.offsets + p.experts, static_cast<i32>(end));
    ptx::st_global_v4_u32(p.head, before.entries + (count > 0), 0, 0, 0);
}

}  // namespace moe_group_detail

/// All blocks that this one depends on have launched; it waits for what they write.
template <MoeGroupSpec S>
DG_DEVICE void moe_group_block(const MoeGroupParams& p, u32 expert) {
    static_assert(why_illegal(S) == nullptr);
    constexpr MoeGroupSmem kPlan = plan_smem(S);
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    for (u32 e = ptx::thread_index(); e < p.experts; e += kMoeThreads)
        ptx::st_shared_b32(smem + kPlan.counts + e * 4, 0);
    ptx::sync_threads();
    ptx::grid_dependency_wait();
    for (u32 pair = ptx::thread_index(); pair < p.pairs; pair += kMoeThreads) {
        const u32 of_pair = moe_group_detail::expert_of(p, pair);
        if (of_pair < p.experts)
            ptx::red_shared_add_u32(smem + kPlan.counts + of_pair * 4, 1);
        else if (expert == 0)
            ptx::st_global_s32(p.pair_slots + pair, -1);
    }
    ptx::sync_threads();
    const moe_group_detail::Before before = moe_group_detail::before<S>(p, smem, expert);
    moe_group_detail::list_pairs<S>(p, smem, expert, before.slots);
    moe_group_detail::publish(p, expert, ptx::ld_shared_b32(smem + kPlan.counts + expert * 4), before);
}

template <MoeGroupSpec S>
DG_KERNEL(kMoeThreads, 4)
moe_group(DG_GRID_CONSTANT const MoeGroupParams p) {
    ptx::grid_dependency_launch();
    moe_group_block<S>(p, ptx::block_index());
}

}  // namespace deep_gemm
