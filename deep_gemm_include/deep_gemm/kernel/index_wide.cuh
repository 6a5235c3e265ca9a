// Scores of the indexer over many FP4 rows on wgmma, with the bits of index_mma (spec/indexer.h): 64 rows of a
// warpgroup are operand A, decoded in registers; the heads, in shared memory for all warpgroups, are operand B.
// wgmma adds the same sixteen products to a sum as mma.sync does there. Called by op/indexer.cpp.
#pragma once

#include <deep_gemm/kernel/index_rows.h>
#include <deep_gemm/ptx/wgmma.h>
#include <deep_gemm/ptx/wgmma_rs_bf16_shapes.h>

namespace deep_gemm {

namespace index_detail {

constexpr u32 kWideSums = kIndexMmaHeads / 2;       // of a lane: two rows by the heads of its columns
constexpr u32 kWideParts = kIndexMmaChannels / 64;  // the second is decoded while the first is multiplied

/// All heads of a token as wgmma reads them: each step has the channels of one of index_mma's, pair by pair.
DG_DEVICE void load_wide_heads(const IndexScoreParams& p, u32 token, ptx::SharedAddress smem) {
    for (u32 i = ptx::thread_index(); i < kIndexMmaHeads * kLoads; i += kIndexWideThreads) {
        const u32 head = i / kLoads, load = i % kLoads;
        ptx::UInt4 of_lane[4] = {};  // eight channels of each lane of a row
        if (head < p.heads)
#pragma unroll
            for (u32 lane = 0; lane < 4; ++lane)
                of_lane[lane] = in_pairs<Format::fp4_e2m1>(ptx::ld_global_v4_u32(
                    static_cast<const u8*>(p.query.data) +
                    (token * p.query.stride + head * p.query.inner_stride) * 2 + lane * 64 + load * 16));
        const auto& [a, b, c, d] = of_lane;
        const ptx::SharedAddress at = smem + load / 2 * kIndexSlabBytes + head * 128;
        const auto store = [&](u32 unit, const ptx::UInt4& v) {
            ptx::st_shared_v4_u32(at + ((load % 2 * 4 + unit) ^ head % 8) * 16, v);
        };
        store(0, {a.x, b.x, c.x, d.x}), store(1, {a.y, b.y, c.y, d.y});
        store(2, {a.z, b.z, c.z, d.z}), store(3, {a.w, b.w, c.w, d.w});
    }
    ptx::fence_proxy_async();
}

/// The lane's first row of a tile and the page that has it; without a division for each tile.
class WidePlace {
  public:
    DG_DEVICE WidePlace(const LatentView& view, u32 row, u32 step)
        : view_(view),
          row_(row),
          page_(row / view.page_rows),
          in_page_(row % view.page_rows),
          step_(step),
          step_pages_(step / view.page_rows),
          step_rest_(step % view.page_rows) {}

    /// Asks for the lane's rows of the tile, this one and the eighth after it, and goes on to the next tile's.
    DG_DEVICE void fetch(StoredRow<Format::fp4_e2m1> (&rows)[2], u32 sequence, u32 visible) {
        if (row_ + 8 < visible && in_page_ + 8 < view_.page_rows) {
            const Fp4Place at(view_, tile::page_begin(view_, sequence, page_), in_page_);
            rows[0].fetch(at), rows[1].fetch(at, 8);
        } else {
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
                if (row_ + half * 8 < visible) rows[half].fetch(view_, sequence, row_ + half * 8);
        }
        row_ += step_, page_ += step_pages_, in_page_ += step_rest_;
        if (in_page_ >= view_.page_rows) ++page_, in_page_ -= view_.page_rows;
    }

  private:
    const LatentView& view_;
    u32 row_, page_, in_page_, step_, step_pages_, step_rest_;
};

/// Starts the products of half of the channels.
template <u32 Part>
DG_DEVICE void start_part(float (&dots)[kWideSums], const StoredRow<Format::fp4_e2m1> (&stored)[2],
                          u64 heads) {
    constexpr u32 kPartLoads = kLoads / kWideParts, kSteps = kPartLoads * 2;
    ptx::UInt4 rows[2][kPartLoads];
#pragma unroll
    for (u32 half = 0; half < 2; ++half) stored[half].template decode<Part * kPartLoads>(rows[half]);
    u32 fragments[kSteps * 4];
#pragma unroll
    for (u32 load = 0; load < kPartLoads; ++load) {
        const ptx::UInt4 &a = rows[0][load], &b = rows[1][load];
        const u32 words[] = {a.x, b.x, a.y, b.y, a.z, b.z, a.w, b.w};
#pragma unroll
        for (u32 i = 0; i < 8; ++i) fragments[load * 8 + i] = words[i];
    }
    ptx::wgmma_keep(fragments);
    if constexpr (Part == 0) ptx::wgmma_keep(dots);
    ptx::wgmma_fence();
#pragma unroll
    for (u32 step = 0; step < kSteps; ++step)
        ptx::WgmmaRsBf16<kIndexMmaHeads>::mma(dots, fragments + 4 * step,
                                              ptx::wgmma_step(heads, Part * (kIndexSlabBytes / 32) + step),
                                              Part > 0 || step > 0);
    ptx::wgmma_commit();
}

/// Starts what the heads give for the rows of a warpgroup: of a lane, two rows by heads 8 (i / 4) + 2 (lane % 4) + i % 2.
DG_DEVICE void multiply_heads(float (&dots)[kWideSums], const StoredRow<Format::fp4_e2m1> (&stored)[2],
                              u64 heads) {
    start_part<0>(dots, stored, heads);
    start_part<1>(dots, stored, heads);
}

}  // namespace index_detail

template <IndexWideSpec S>
DG_KERNEL(kIndexWideThreads, 1)
index_wide(DG_GRID_CONSTANT const IndexScoreParams p) {
    using namespace index_detail;
    constexpr IndexWideSmem kPlan = plan_smem(S);
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 token = ptx::block_index() % p.tokens, sequence = tile::sequence_of(p.sequences, token);
    const u32 visible = tile::visible_rows(ptx::ld_global_s32(p.positions + token), p.ratio, p.rows.rows);
    // Tiles go round the blocks first, then the warpgroups of each: few tiles are spread over all.
    const u32 block = ptx::block_index() / p.tokens, turn = ptx::warp_index() / 4 * p.blocks + block;
    const u32 step = kIndexWideGroups * p.blocks * kIndexWideRows;
    if (sequence >= p.rows.sequences || block * kIndexWideRows >= visible || visible <= p.only_above) return;
    const u32 lane = ptx::lane_index();
    u32 first = turn * kIndexWideRows + ptx::warp_index() % 4 * kIndexMmaWarpRows;  // of the warp's rows

    StoredRow<Format::fp4_e2m1> next[S.ahead][2];
    WidePlace place(p.rows, first + lane / 4, step);
#pragma unroll
    for (u32 slot = 0; slot < S.ahead; ++slot) place.fetch(next[slot], sequence, visible);
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    load_wide_heads(p, token, smem);
    load_weights(p, token, 0, smem + kPlan.weights);
    ptx::sync_threads();
    const u64 heads = ptx::wgmma_descriptor(smem);
    const ptx::SharedAddress weights = smem + kPlan.weights + lane % 4 * 8;

#pragma unroll 1
    for (u32 tile = turn * kIndexWideRows; tile < visible;) {
#pragma unroll
        for (u32 slot = 0; slot < S.ahead; ++slot) {
            if (tile >= visible) break;
            float dots[kWideSums], score[2] = {};
            multiply_heads(dots, next[slot], heads);
            place.fetch(next[slot], sequence, visible);
            ptx::wgmma_wait<0>();
            ptx::wgmma_keep(dots);
#pragma unroll
            for (u32 i = 0; i < kWideSums; i += 4)
                add_dots(score, dots + i, ptx::ld_shared_v2_f32(weights + i * 8));
            store_scores(p, token, first, visible, score);
            tile += step, first += step;
        }
    }
}

}  // namespace deep_gemm
