// What the loading warp of project_wide does (kernel/project_wide.cuh): tiles of both operands, 64 columns of
// 128 rows each, come to a ring of stages by TMA, in the swizzle that wgmma reads.
#pragma once

#include <deep_gemm/spec/project_mma.h>
#include <deep_gemm/pipe/ring.h>
#include <deep_gemm/ptx/copy.h>

namespace deep_gemm::project_wide_detail {

/// The block of threads' block `index` of the launch.
struct Block {
    const ProjectPart* part;
    u32 first_row, first_token;  // of the part
    u32 x_row, w_row;            // of the operands

    DG_DEVICE Block(const ProjectWideParams& params, u32 index) {
        const ProjectMmaParams& p = params.p;
        const u32 row_block = index / p.token_blocks, token_block = index % p.token_blocks;
        u32 of = 0, before = 0;
        while (row_block >= p.parts[of].end) before = p.parts[of++].end;
        part = &p.parts[of];
        first_row = (row_block - before) * kWideRows;
        first_token = token_block * kWideRows;
        x_row = ((params.x_groups == 1 ? 0 : of) * p.token_blocks + token_block) * kWideRows;
        w_row = (params.x_groups * p.token_blocks + row_block) * kWideRows;
    }
};
DG_DEVICE u32 blocks_of(const ProjectMmaParams& p) {
    return p.parts[p.num_parts - 1].end * p.token_blocks;
}

/// Chunks 0, 8, 16, .., then 1, 9, ..: those of one warp of project_mma after the other.
DG_DEVICE u32 chunk_after(u32 chunk, u32 chunks) {
    return chunk + kProjectWarps < chunks ? chunk + kProjectWarps : chunk % kProjectWarps + 1;
}

/// The barriers and stages.
struct Ring {
    static constexpr ProjectWideSmem kPlan = plan_wide();
    ptx::SharedAddress base;

    DG_DEVICE ptx::SharedAddress x(u32 stage) const { return base + stage * kWideStageBytes; }
    DG_DEVICE ptx::SharedAddress w(u32 stage) const { return x(stage) + kWideTileBytes; }
    DG_DEVICE ptx::SharedAddress full(u32 stage) const { return base + kPlan.barriers + stage * 16; }
    DG_DEVICE ptx::SharedAddress empty(u32 stage) const { return full(stage) + 8; }
};

/// All blocks of the CTA, stage by stage. One warp.
DG_DEVICE void load_blocks(const ProjectWideParams& params, Ring ring) {
    const ProjectMmaParams& p = params.p;
    const u64 policy = ptx::l2_evict_last();
    pipe::Cursor<Ring::kPlan.stages> at;
    const u32 chunks = p.k / kProjectColumns;
    for (u32 index = ptx::block_index(); index < blocks_of(p); index += ptx::grid_size()) {
        const Block block(params, index);
        u32 chunk = 0;
        for (u32 i = 0; i < chunks; ++i, chunk = chunk_after(chunk, chunks))
            for (u32 half = 0; half < kProjectColumns / kWideColumns; ++half, at.advance()) {
                ptx::mbarrier_wait(ring.empty(at.stage), at.phase ^ 1);
                if (!ptx::elect_one()) continue;
                const u32 column = chunk * kProjectColumns + half * kWideColumns;
                ptx::mbarrier_arrive_expect_tx(ring.full(at.stage), kWideStageBytes);
                ptx::tma_load_3d(ring.x(at.stage), params.operands, ring.full(at.stage), column, block.x_row,
                                 0, policy);
                ptx::tma_load_3d(ring.w(at.stage), params.operands, ring.full(at.stage), column, block.w_row,
                                 0, policy);
            }
    }
}

}  // namespace deep_gemm::project_wide_detail
