// Lightning indexer (spec/indexer.h): scores of compressed rows, on CUDA cores a warp for eight rows, on
// tensor cores for sixteen. Which of them are the largest: kernel/top_k.cuh. Called by op/indexer.cpp.
#pragma once

#include <deep_gemm/kernel/index_rows.h>

namespace deep_gemm {

template <IndexScoreSpec S>
DG_KERNEL(kIndexThreads, 4)
index_scores(DG_GRID_CONSTANT const IndexScoreParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 token = ptx::block_index() % p.tokens, sequence = tile::sequence_of(p.sequences, token);
    const u32 visible = tile::visible_rows(ptx::ld_global_s32(p.positions + token), p.ratio, p.rows.rows);
    const u32 first =
        ptx::block_index() / p.tokens * kIndexRowsOfBlock + ptx::warp_index() * kIndexRowsOfWarp;
    if (sequence >= p.rows.sequences || first >= visible || visible <= p.only_above) return;
    const u32 channel = ptx::lane_index() * 4;
    const bool active = channel < p.d;
    tile::Float4 row[kIndexRowsOfWarp] = {};
#pragma unroll
    for (u32 i = 0; i < kIndexRowsOfWarp; ++i)
        if (active && first + i < visible)
            row[i] = tile::read_latent<S.rows>(p.rows, sequence, first + i, channel);
    float score[kIndexRowsOfWarp] = {};
    for (u32 head = 0; head < p.heads; ++head) {
        tile::Float4 q{};
        if (active)
            q = tile::load4<S.query>(p.query.data,
                                     token * p.query.stride + head * p.query.inner_stride + channel);
        const float weight = ptx::ld_global_f32(p.weights + token * p.weights_stride + head);
#pragma unroll
        for (u32 i = 0; i < kIndexRowsOfWarp; ++i) {
            float dot = ptx::mul_rn_f32(q.x, row[i].x);
            dot = ptx::fma_rn_f32(q.y, row[i].y, dot);
            dot = ptx::fma_rn_f32(q.z, row[i].z, dot);
            dot = tile::warp_sum(ptx::fma_rn_f32(q.w, row[i].w, dot));
            score[i] = ptx::fma_rn_f32(weight, ptx::max_nan_f32(dot, 0.0f), score[i]);
        }
    }
#pragma unroll
    for (u32 i = 0; i < kIndexRowsOfWarp; ++i)
        if (ptx::lane_index() == i && first + i < visible)
            ptx::st_global_f32(p.scores + token * p.scores_stride + first + i, score[i] * p.scale);
}

namespace index_detail {

/// 64 heads of a token and their weights; zeros beyond the last.
template <Format Rows>
DG_DEVICE void load_heads(const IndexScoreParams& p, u32 token, u32 first, ptx::SharedAddress smem) {
    constexpr u32 kPieces = kIndexMmaChannels / 8;  // of 16 bytes
    for (u32 i = ptx::thread_index(); i < kIndexMmaHeads * kPieces; i += kIndexMmaThreads) {
        const u32 head = i / kPieces, piece = i % kPieces;
        ptx::UInt4 v{};
        if (first + head < p.heads)
            v = ptx::ld_global_v4_u32(static_cast<const u8*>(p.query.data) +
                                      (token * p.query.stride + (first + head) * p.query.inner_stride) * 2 +
                                      piece * 16);
        ptx::st_shared_v4_u32(smem + head * kIndexPitch + place_of<Rows>(piece), in_pairs<Rows>(v));
    }
    load_weights(p, token, first, smem + kIndexWeights);
}

}  // namespace index_detail

template <IndexMmaSpec S>
DG_KERNEL(kIndexMmaThreads, 4)
index_mma(DG_GRID_CONSTANT const IndexScoreParams p) {
    using namespace index_detail;
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 token = ptx::block_index() % p.tokens, sequence = tile::sequence_of(p.sequences, token);
    const u32 visible = tile::visible_rows(ptx::ld_global_s32(p.positions + token), p.ratio, p.rows.rows);
    const u32 step = p.blocks * kIndexMmaRows, begin = ptx::block_index() / p.tokens * kIndexMmaRows;
    if (sequence >= p.rows.sequences || begin >= visible || visible <= p.only_above) return;
    const u32 lane = ptx::lane_index(), place = ptx::warp_index() * kIndexMmaWarpRows + lane / 4;
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const bool once = p.heads <= kIndexMmaHeads;  // then heads stay in shared memory
    bool held = false;

    StoredRow<S.rows> next[2];
    const auto fetch = [&](u32 first) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
            if (const u32 row = first + place + half * 8; row < visible)
                next[half].fetch(p.rows, sequence, row);
    };
    fetch(begin);
#pragma unroll 1
    for (u32 first = begin; first < visible; first += step) {
        ptx::UInt4 rows[2][kLoads];
#pragma unroll
        for (u32 half = 0; half < 2; ++half) next[half].decode(rows[half]);
        fetch(first + step);
        float score[2] = {};
        for (u32 head = 0; head < p.heads; head += kIndexMmaHeads) {
            if (!held) {
                load_heads<S.rows>(p, token, head, smem);
                ptx::sync_threads();
                held = once;
            }
            add_heads(score, rows, smem);
            if (!once) ptx::sync_threads();
        }
        store_scores(p, token, first + ptx::warp_index() * kIndexMmaWarpRows, visible, score);
    }
}

}  // namespace deep_gemm
