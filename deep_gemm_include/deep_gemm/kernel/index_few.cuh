// Lightning indexer of few tokens in one kernel (spec/index_few.h). Called by op/index_select.cpp.
#pragma once

#include <deep_gemm/kernel/index_rows.h>
#include <deep_gemm/kernel/top_k.cuh>
#include <deep_gemm/spec/index_few.h>

namespace deep_gemm {
namespace index_detail {

/// A lane's four channels of a head where add_heads() reads them: what lies beside them in a piece of eight is
/// the next lane's. Whole warps call; `place`: from the first head on.
struct HeadQuad {
    u32 place, first, second;
};
template <Format Rows>
DG_DEVICE HeadQuad quad_of(u32 head, const tile::Float4& v) {
    const u32 lane = ptx::lane_index();
    const bool upper = lane % 2 != 0;
    u32 x = ptx::cvt_bf16x2(v.x, v.y), y = ptx::cvt_bf16x2(v.z, v.w);
    if constexpr (Rows == Format::fp4_e2m1) {
        constexpr u32 kLow = 0x5410, kHigh = 0x7632;  // as in_pairs()
        const u32 other = ptx::shfl_bfly_u32(upper ? x : y, 1);
        const u32 a = upper ? other : x, b = upper ? y : other;
        x = ptx::permute_bytes_or_signs(a, b, kLow), y = ptx::permute_bytes_or_signs(a, b, kHigh);
    }
    return {head * kIndexPitch + place_of<Rows>(lane / 2) + (upper ? 8 : 0), x, y};
}

}  // namespace index_detail

/// A CTA of the cluster of `token`. All CTAs of it call.
template <IndexFewSpec S>
DG_DEVICE void index_few_block(const IndexFewParams& params, u32 token) {
    using namespace index_detail;
    constexpr TopKSpec kChoice = choice_of(S);
    ptx::cluster_arrive();  // this CTA has started
    const IndexScoreParams& p = params.scores;
    const u32 lane = ptx::lane_index(), warp = ptx::warp_index(), rank = ptx::cluster_rank();
    const u32 channel = lane * 4;
    // Units of 16 rows, and heads, go round the CTAs first, then the warps of each.
    const u32 turn = warp * params.ctas + rank, turns = kIndexFewWarps * params.ctas;
    const bool rotated = channel >= kIndexMmaChannels - params.dims;
    tile::Frequency frequency;  // of pair `lane`; nobody writes it
    if (lane < params.dims / 2) frequency = tile::load_frequency(params.frequencies, lane);
    ptx::grid_dependency_wait();
    const auto load_head = [&](u32 head) {
        tile::Float4 v{};
        if (head < p.heads)
            v = tile::load4<Format::bf16>(p.query.data,
                                          token * p.query.stride + head * p.query.inner_stride + channel);
        return v;
    };
    tile::Float4 v = load_head(turn);
    const u32 sequence = tile::sequence_of(p.sequences, token);
    const i32 position = ptx::ld_global_s32(p.positions + token);
    const u32 visible = sequence < p.rows.sequences ? tile::visible_rows(position, p.ratio, p.rows.rows) : 0;
    i32* picks = params.picks + static_cast<u64>(token) * params.k;
    if (visible <= params.k) {
        for (u32 i = rank * kIndexFewThreads + ptx::thread_index(); i < params.k;
             i += params.ctas * kIndexFewThreads)
            ptx::st_global_s32(picks + i, i < visible ? static_cast<i32>(i) : -1);
        return ptx::cluster_wait();
    }
    const ptx::SharedAddress smem = ptx::dynamic_smem(), heads = smem + plan_smem(S).heads;

    StoredRow<S.rows> next[2];
    const auto fetch = [&](u32 unit) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
            if (const u32 row = unit * kIndexMmaWarpRows + half * 8 + lane / 4; row < visible)
                next[half].fetch(p.rows, sequence, row);
    };
    fetch(turn);
    load_weights(p, token, 0, heads + kIndexWeights);
    top_k_detail::RadixSelect<kChoice> select(smem);
    bool started = false;
    const tile::Rotation mine = tile::rotation_at(frequency, static_cast<float>(position), false);
    tile::Rotation by[2];
#pragma unroll
    for (u32 i = 0; i < 2; ++i) by[i] = mine.of_lane((channel - (kIndexMmaChannels - params.dims)) / 2 + i);
#pragma unroll 1
    for (u32 head = turn; head < kIndexMmaHeads; head += turns) {
        if (rotated) tile::rotate(v.x, v.y, by[0]), tile::rotate(v.z, v.w, by[1]);
        tile::finish_row<S.finish>(v, channel, kIndexMmaChannels, params.dims);
        const HeadQuad quad = quad_of<S.rows>(head, v);
        v = load_head(head + turns);
        if (!started) ptx::cluster_wait();
        started = true;
#pragma unroll 1
        for (u32 i = 0; i < params.ctas; ++i)
            ptx::st_cluster_v2_u32(ptx::map_to_rank(heads + quad.place, i), quad.first, quad.second);
    }
    if (!started) ptx::cluster_wait();
    ptx::cluster_sync();

    const top_k_detail::Share share(visible, 1, 0, kIndexFewWarps);
    const ptx::SharedAddress orders = ptx::map_to_rank(smem + plan_smem(kChoice).orders, 0);
#pragma unroll 1
    for (u32 unit = turn; unit * kIndexMmaWarpRows < visible; unit += turns) {
        ptx::UInt4 rows[2][kLoads];
#pragma unroll
        for (u32 half = 0; half < 2; ++half) next[half].decode(rows[half]);
        fetch(unit + turns);
        float score[2] = {};
        add_heads(score, rows, heads);
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const float sum = tile::warp_sum<4>(score[half]) * p.scale;
            const u32 row = unit * kIndexMmaWarpRows + half * 8 + lane / 4, of = row / share.per_warp;
            if (lane % 4 == 0 && row < visible)
                ptx::st_cluster_u32(
                    orders + (of * top_k_detail::Scores<kChoice>::kHeld + row % share.per_warp) * 4,
                    tile::order_of(sum));
        }
    }
    ptx::cluster_sync();
    if (rank > 0) return;
    const top_k_detail::Scores<kChoice> scores(smem, nullptr, share.begin_of(warp), share.begin_of(warp + 1));
    scores.take();
    top_k_detail::choose<kChoice>(params.k, picks, smem, scores, select);
}

template <IndexFewSpec S>
DG_KERNEL(kIndexFewThreads, 1)
index_few(DG_GRID_CONSTANT const IndexFewParams params) {
    ptx::grid_dependency_launch();
    index_few_block<S>(params, ptx::block_index() / params.ctas);
}

}  // namespace deep_gemm
