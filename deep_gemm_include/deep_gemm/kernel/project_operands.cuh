// What project_wide multiplies (spec/project_mma.h): x and w as 16-bit values, in the order of the products.
//
// The order of K: project_mma lets a lane of four have 16 bytes of a row of w, so that step s of its mma.sync
// has four columns of every 16 (FP8 weights) or every 8 (bf16). Here lane q of four reads the same columns of
// 64 and puts its four of step s where wgmma has elements 4 q to 4 q + 3 of the sixteen of step s. Called by
// op/project.cpp.
#pragma once

#include <deep_gemm/kernel/project_mma.cuh>
#include <deep_gemm/ptx/global.h>

namespace deep_gemm {

namespace project_operands_detail {

/// Where a thread is: lane q of four of a group of 64 columns, of a row of the matrix and of the result.
struct Place {
    u32 row, to, column;

    DG_DEVICE Place(const ProjectOperandsParams& p, const ProjectOperand& of, u32 first, u32 load) {
        const u32 groups = p.k / kWideColumns;
        const u32 group =
            ptx::block_index() * kOperandGroups + load * (kOperandThreads / 4) + ptx::thread_index() / 4;
        to = group / groups;
        const u32 place = to - first;
        row = place < of.rows ? place : of.rows - 1;
        column = group % groups * kWideColumns;
    }
};

/// Rows of type F: all loads of a thread before its first store.
template <ProjectOperandsSpec S, Format F>
DG_DEVICE void rearrange(const ProjectOperandsParams& p, const ProjectOperand& of, u32 first) {
    constexpr u32 kSpan = S.w == Format::fp8_e4m3 ? 16 : 8;  // columns that a lane reads at once
    constexpr u32 kPieces = 16 * bytes_of(F) / 16, kOfSpan = kSpan * bytes_of(F) / 16;
    constexpr u32 kOfStep = bytes_of(F);  // words of four columns
    const u32 q = ptx::lane_index() % 4;
    u32 word[kOperandLoads][kPieces * 4];
#pragma unroll
    for (u32 load = 0; load < kOperandLoads; ++load) {
        const Place at(p, of, first, load);
        const u8* row = static_cast<const u8*>(of.data) + (at.row * of.stride + at.column) * bytes_of(F);
#pragma unroll
        for (u32 piece = 0; piece < kPieces; ++piece) {
            const u32 byte = (piece / kOfSpan * 4 + q) * kSpan * bytes_of(F) + piece % kOfSpan * 16;
            const ptx::UInt4 v = ptx::ld_global_v4_u32(row + byte);
            word[load][piece * 4] = v.x, word[load][piece * 4 + 1] = v.y;
            word[load][piece * 4 + 2] = v.z, word[load][piece * 4 + 3] = v.w;
        }
    }
#pragma unroll
    for (u32 load = 0; load < kOperandLoads; ++load) {
        const Place at(p, of, first, load);
        u8* to = static_cast<u8*>(p.to) + (u64{at.to} * p.k + at.column) * 2 + q * 8;
#pragma unroll
        for (u32 step = 0; step < 4; ++step) {
            u32 mine[kOfStep], low, high;
#pragma unroll
            for (u32 i = 0; i < kOfStep; ++i) mine[i] = word[load][step * kOfStep + i];
            project_detail::pairs_of<S.x == Format::fp8_e4m3, F>(mine, 0, low, high);
            ptx::st_global_v2_u32(to + step * 32, low, high);
        }
    }
}

}  // namespace project_operands_detail

template <ProjectOperandsSpec S>
DG_KERNEL(kOperandThreads, 4)
project_operands(DG_GRID_CONSTANT const ProjectOperandsParams p) {
    using namespace project_operands_detail;
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 block = ptx::block_index() * kOperandGroups / (p.k / kWideColumns) / kWideRows;
    u32 of = 0, before = 0;
    while (block >= p.of[of].end) before = p.of[of++].end;
    if (of < p.x_groups)
        rearrange<S, S.x>(p, p.of[of], before * kWideRows);
    else
        rearrange<S, S.w>(p, p.of[of], before * kWideRows);
}

}  // namespace deep_gemm
