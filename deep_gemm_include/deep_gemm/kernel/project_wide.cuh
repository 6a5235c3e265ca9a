// Projections of many rows on tensor cores, with the bits of project_mma (spec/project_mma.h). wgmma adds 16
// products to a sum as mma.sync does, whatever their order; so the steps are given the same columns
// (kernel/project_wide_load.h), each chunk is summed and scaled on its own, and the sums of what are eight
// warps there are added at the end, the first one's first. Called by op/project.cpp.
#pragma once

#include <deep_gemm/kernel/project_wide_load.h>
#include <deep_gemm/ptx/wgmma.h>
#include <deep_gemm/ptx/wgmma_f16_shapes.h>

namespace deep_gemm {

namespace project_wide_detail {

constexpr u32 kSums = 64;  // of a thread: 64 rows of x by 128 rows of w, a warpgroup

template <bool F16>
struct Product {
    using Mma = ptx::Wgmma<Format::bf16, kWideRows>;
};
template <>
struct Product<true> {
    using Mma = ptx::WgmmaF16<kWideRows>;
};

/// Which row of x (of two) a sum belongs to.
DG_DEVICE u32 half_of(u32 sum) {
    return sum / 2 % 2;
}

/// Scales of a chunk: of the block's rows of w, and of the lane's two rows of x.
template <ProjectMmaSpec S>
struct Scales {
    const ProjectMmaParams& p;
    const void* w;
    u64 first_w;
    const float* x[2];
    float now[2], next[2] = {};

    DG_DEVICE Scales(const ProjectMmaParams& params, const Block& block, u32 row)
        : p(params),
          w(block.part->scale),
          first_w(block.first_row / kProjectColumns * block.part->scale_stride_row) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 mine = row + half * 8, last = p.rows - 1;
            x[half] = p.x_scale + (mine < last ? mine : last) * p.x_scale_stride + block.part->x_scale_offset;
        }
        fetch(0);
    }
    DG_DEVICE void fetch(u32 chunk) {
        if constexpr (S.w_scale == Format::none) return;
        const float of_w = tile::load_scale<S.w_scale>(w, first_w + chunk);
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
            next[half] =
                S.x == Format::fp8_e4m3 ? ptx::mul_rn_f32(of_w, ptx::ld_global_f32(x[half] + chunk)) : of_w;
    }
    /// Takes the chunk's; `following` is on its way from then on.
    DG_DEVICE void advance(u32 following, bool more) {
        now[0] = next[0], now[1] = next[1];
        if (more) fetch(following);
    }
};

template <ProjectMmaSpec S>
class Multiplier {
  public:
    DG_DEVICE Multiplier(const ProjectMmaParams& p, Ring<S> ring) : p_(p), ring_(ring) {}

    DG_DEVICE void run() {
        for (u32 index = ptx::block_index(); index < blocks_of(p_); index += ptx::grid_blocks()) {
            const Block block(p_, index);
            float totals[kSums];
            multiply(totals, block);
            store(totals, block);
        }
    }

  private:
    using Mma = typename Product<Lane<S>::kF16>::Mma;
    static constexpr bool kScaled = S.w_scale != Format::none;

    /// The lane's first row of x.
    static DG_DEVICE u32 row_of(const Block& block) {
        return block.first_token + ptx::warp_index() * 16 + ptx::lane_index() / 4;
    }

    /// A chunk's products, or what they add to those before.
    DG_DEVICE void multiply_chunk(float (&part)[kSums], bool adds) {
        pipe::Cursor<plan_wide(S).stages> second = at_;
        second.advance();
        ptx::mbarrier_wait(ring_.full(at_.stage), at_.phase);
        ptx::mbarrier_wait(ring_.full(second.stage), second.phase);
        const u32 rows = ptx::warp_index() / 4 * (kWideTileBytes / 2);
        const u64 x[2] = {ptx::wgmma_descriptor(ring_.x(at_.stage) + rows),
                          ptx::wgmma_descriptor(ring_.x(second.stage) + rows)},
                  w[2] = {ptx::wgmma_descriptor(ring_.w(at_.stage)),
                          ptx::wgmma_descriptor(ring_.w(second.stage))};
        ptx::wgmma_keep(part);
        ptx::wgmma_fence();
        Mma::template mma4<2, 2>(part, x[0], w[0], adds);
        Mma::template mma4<2, 2>(part, x[1], w[1], 1);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        ptx::wgmma_keep(part);
        release(), release();
    }
    DG_DEVICE void release() {
        ptx::sync_warp();
        if (ptx::lane_index() == 0) ptx::mbarrier_arrive(ring_.empty(at_.stage));
        at_.advance();
    }

    DG_DEVICE void multiply(float (&totals)[kSums], const Block& block) {
        const u32 chunks = p_.k / kProjectColumns;
        Scales<S> scales(p_, block, row_of(block));
        float part[kSums], sums[kScaled ? kSums : 1];
        u32 chunk = 0;
#pragma unroll 1
        for (u32 i = 0; i < chunks; ++i) {
            const u32 following = chunk_after(chunk, chunks);
            const bool first = chunk < kProjectWarps;  // of what is a warp there
            scales.advance(following, i + 1 < chunks);
            multiply_chunk(part, !kScaled && !first);
            if constexpr (kScaled) {
#pragma unroll
                for (u32 s = 0; s < kSums; ++s)
                    sums[s] = ptx::fma_rn_f32(part[s], scales.now[half_of(s)], first ? 0.0f : sums[s]);
            }
            if (following != chunk + kProjectWarps) {
#pragma unroll
                for (u32 s = 0; s < kSums; ++s) {
                    const float sum = kScaled ? sums[s] : part[s];
                    totals[s] = chunk % kProjectWarps == 0 ? sum : ptx::add_rn_f32(totals[s], sum);
                }
            }
            chunk = following;
        }
        if (chunks >= kProjectWarps) return;
#pragma unroll
        for (u32 s = 0; s < kSums; ++s)  // warps without a chunk add zeros: those of two signs become one
            totals[s] = ptx::add_rn_f32(totals[s], 0.0f);
    }

    DG_DEVICE void store(const float (&totals)[kSums], const Block& block) const {
        const ProjectPart& part = *block.part;
        const u32 first = block.first_row + ptx::lane_index() % 4 * 2;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u64 token = row_of(block) + half * 8;
            if (token >= p_.rows) continue;
#pragma unroll
            for (u32 group = 0; group < kSums / 4; ++group)
#pragma unroll
                for (u32 i = 0; i < 2; ++i) {
                    const u32 row = first + group * 8 + i;
                    if (row >= part.n) continue;
                    float y = totals[group * 4 + half * 2 + i];
                    if constexpr (S.add != Format::none)
                        y = ptx::add_rn_f32(tile::load<S.add>(part.add, token * part.add_stride + row), y);
                    tile::store<S.y>(part.y, token * part.y_stride + row, y);
                }
        }
    }

    const ProjectMmaParams& p_;
    Ring<S> ring_;
    pipe::Cursor<plan_wide(S).stages> at_;
};

}  // namespace project_wide_detail

template <ProjectMmaSpec S>
DG_KERNEL(kWideThreads, 1)
project_wide(DG_GRID_CONSTANT const ProjectMmaParams p) {
    using namespace project_wide_detail;
    static_assert(S.wide);
    const Ring<S> ring{ptx::dynamic_smem()};
    if (ptx::thread_index() == 0) {
        for (u32 stage = 0; stage < plan_wide(S).stages; ++stage) {
            ptx::mbarrier_init(ring.full(stage), 4);
            ptx::mbarrier_init(ring.empty(stage), kWideMathThreads / 32);
        }
        ptx::fence_mbarrier_init();
    }
    ptx::sync_threads();
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    if (ptx::warp_index() >= kWideMathThreads / 32) {
        ptx::setmaxnreg_dec<wide_load_registers_of(S)>();
        load_blocks<S>(p, ring);
    } else {
        ptx::setmaxnreg_inc<wide_math_registers_of(S)>();
        Multiplier<S>(p, ring).run();
    }
}

}  // namespace deep_gemm
