// Projections of many rows on tensor cores, with the bits of project_mma (spec/project_mma.h). wgmma adds 16
// products to a sum as mma.sync does, whatever their order; so the steps are given the same columns
// (kernel/project_operands.cuh), each chunk is summed and scaled on its own, and the sums of what are eight
// warps there are added at the end, the first one's first. Called by op/project.cpp.
#pragma once

#include <deep_gemm/kernel/project_wide_load.h>
#include <deep_gemm/tile/decode.h>
#include <deep_gemm/tile/dot.h>
#include <deep_gemm/ptx/math.h>
#include <deep_gemm/ptx/narrow.h>
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

/// What the sums of a chunk are multiplied by, for the lane's two rows of x: asked for before the products.
template <ProjectMmaSpec S>
struct RowScales {
    const float* x[2];
    u64 first_w;
    float of_w = 1, of_x[2] = {1, 1};

    DG_DEVICE RowScales(const ProjectMmaParams& p, const Block& block, u32 row) {
        first_w = block.first_row / kProjectColumns * block.part->scale_stride_row;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 token = row + half * 8 < p.rows ? row + half * 8 : p.rows - 1;
            x[half] = p.x_scale + token * p.x_scale_stride + block.part->x_scale_offset;
        }
    }
    DG_DEVICE void load(const Block& block, u32 chunk) {
        if constexpr (S.w_scale != Format::none)
            of_w = tile::load_scale<S.w_scale>(block.part->scale, first_w + chunk);
        if constexpr (S.x == Format::fp8_e4m3)
#pragma unroll
            for (u32 half = 0; half < 2; ++half) of_x[half] = ptx::ld_global_f32(x[half] + chunk);
    }
    [[nodiscard]] DG_DEVICE float get(u32 half) const {
        return S.x == Format::fp8_e4m3 ? ptx::mul_rn_f32(of_w, of_x[half]) : of_w;
    }
};

template <ProjectMmaSpec S>
class Multiplier {
  public:
    DG_DEVICE Multiplier(const ProjectWideParams& params, Ring ring)
        : params_(params), p_(params.p), ring_(ring) {}

    DG_DEVICE void run() {
        for (u32 index = ptx::block_index(); index < blocks_of(p_); index += ptx::grid_size()) {
            const Block block(params_, index);
            float totals[kSums];
            multiply(totals, block);
            store(totals, block);
        }
    }

  private:
    using Mma = typename Product<S.x == Format::fp8_e4m3>::Mma;
    static constexpr bool kScaled = S.w_scale != Format::none;

    /// The lane's first row of x.
    static DG_DEVICE u32 row_of_block() { return ptx::warp_index() * 16 + ptx::lane_index() / 4; }
    static DG_DEVICE u32 row_of(const Block& block) { return block.first_token + row_of_block(); }

    /// Starts a chunk's products, or what they add to those before.
    DG_DEVICE void start_chunk(float (&part)[kSums], bool adds) {
        pipe::Cursor<Ring::kPlan.stages> second = at_;
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
    }
    DG_DEVICE void finish_chunk(float (&part)[kSums]) {
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
        float part[kSums], sums[kScaled ? kSums : 1];
        RowScales<S> scales(p_, block, row_of(block));
        u32 chunk = 0;
#pragma unroll 1
        for (u32 i = 0; i < chunks; ++i) {
            const u32 following = chunk_after(chunk, chunks);
            const bool first = chunk < kProjectWarps;  // of what is a warp there
            scales.load(block, chunk);
            start_chunk(part, !kScaled && !first);
            finish_chunk(part);
            if constexpr (kScaled) {
                const float scale[2] = {scales.get(0), scales.get(1)};
#pragma unroll
                for (u32 s = 0; s < kSums; ++s)
                    sums[s] = ptx::fma_rn_f32(part[s], scale[half_of(s)], first ? 0.0f : sums[s]);
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
        const u64 address = reinterpret_cast<u64>(part.y), stride = part.y_stride * bytes_of(S.y);
        const bool whole = block.first_row + kWideRows <= part.n && (address | stride) % 16 == 0;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u64 token = row_of(block) + half * 8;
            u8* row = static_cast<u8*>(part.y) + token * stride + u64{block.first_row} * bytes_of(S.y);
            if (S.add == Format::none && whole)
                store_whole(totals, half, token < p_.rows ? row : nullptr);
            else if (token < p_.rows)
                store_some(totals, half, token, block);
        }
    }
    /// All 128 columns of a row, which four lanes have; whole warps call, with null where there is no row.
    static DG_DEVICE void store_whole(const float (&totals)[kSums], u32 half, u8* row) {
        const u32 q = ptx::lane_index() % 4;
        if constexpr (S.y == Format::fp32) {
            if (!row) return;
#pragma unroll
            for (u32 group = 0; group < kSums / 4; ++group)
                ptx::st_global_v2_f32(row + (group * 8 + q * 2) * 4, totals[group * 4 + half * 2],
                                      totals[group * 4 + half * 2 + 1]);
        } else {
            // Of four groups of eight columns, a lane stores one.
#pragma unroll
            for (u32 first = 0; first < kSums / 4; first += 4) {
                u32 pair[4], mine[4];
#pragma unroll
                for (u32 i = 0; i < 4; ++i)
                    pair[i] = ptx::cvt_bf16x2(totals[(first + i) * 4 + half * 2],
                                              totals[(first + i) * 4 + half * 2 + 1]);
#pragma unroll
                for (u32 r = 0; r < 4; ++r) {  // what lane q ^ r needs of this one, and gives
                    const u32 got = ptx::shfl_bfly_u32(one_of(pair, q ^ r), r);
#pragma unroll
                    for (u32 i = 0; i < 4; ++i) mine[i] = (q ^ r) == i ? got : r == 0 ? 0 : mine[i];
                }
                if (row)
                    ptx::st_global_v4_u32(row + ((first + q) * 8) * 2, mine[0], mine[1], mine[2], mine[3]);
            }
        }
    }
    static DG_DEVICE u32 one_of(const u32 (&values)[4], u32 index) {
        const u32 low = index % 2 ? values[1] : values[0], high = index % 2 ? values[3] : values[2];
        return index < 2 ? low : high;
    }
    DG_DEVICE void store_some(const float (&totals)[kSums], u32 half, u64 token, const Block& block) const {
        const ProjectPart& part = *block.part;
        const u32 first = block.first_row + ptx::lane_index() % 4 * 2;
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

    const ProjectWideParams& params_;
    const ProjectMmaParams& p_;
    Ring ring_;
    pipe::Cursor<Ring::kPlan.stages> at_;
};

}  // namespace project_wide_detail

template <ProjectMmaSpec S>
DG_KERNEL(kWideThreads, 1)
project_wide(DG_GRID_CONSTANT const ProjectWideParams p) {
    using namespace project_wide_detail;
    static_assert(S.wide);
    const Ring ring{ptx::dynamic_smem()};
    if (ptx::thread_index() == 0) {
        for (u32 stage = 0; stage < Ring::kPlan.stages; ++stage) {
            ptx::mbarrier_init(ring.full(stage), 1);
            ptx::mbarrier_init(ring.empty(stage), kWideMathThreads / 32);
        }
        ptx::fence_mbarrier_init();
        ptx::prefetch_tensor_map(p.operands);
    }
    ptx::sync_threads();
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    if (ptx::warp_index() >= kWideMathThreads / 32) {
        ptx::setmaxnreg_dec<kWideLoadRegisters>();
        if (ptx::warp_index() == kWideMathThreads / 32) load_blocks(p, ring);
    } else {
        ptx::setmaxnreg_inc<kWideMathRegisters>();
        Multiplier<S>(p, ring).run();
    }
}

}  // namespace deep_gemm
