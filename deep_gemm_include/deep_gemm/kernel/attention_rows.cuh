// The small operations of attention that run side by side (spec/attention_rows.h). Called by
// op/attention_rows.cpp.
#pragma once

#include <deep_gemm/kernel/compressor.cuh>
#include <deep_gemm/kernel/norm.cuh>
#include <deep_gemm/kernel/rope.cuh>
#include <deep_gemm/spec/attention_rows.h>

namespace deep_gemm {

template <AttentionRowsSpec S>
DG_KERNEL(kLatentThreads, 4)
attention_rows(DG_GRID_CONSTANT const AttentionRowsParams p) {
    ptx::grid_dependency_launch();
    const u32 block = ptx::block_index();
    ptx::grid_dependency_wait();
    if (block < p.norm_end) return norm_block<S.norm>(p.norm, block);
    if (block < p.write_end) return latent_write_block<S.write>(p.write, block - p.norm_end);
    if constexpr (S.has_main)
        if (block < p.main_end) return compressor_block<S.main>(p.main, block - p.write_end);
    if constexpr (S.has_index) compressor_block<S.index>(p.index, block - p.main_end);
}

template <AttentionHeadsSpec S>
DG_KERNEL(kLatentThreads, 8)
attention_heads(DG_GRID_CONSTANT const AttentionHeadsParams p) {
    ptx::grid_dependency_launch();
    const u32 block = ptx::block_index();
    ptx::grid_dependency_wait();
    if (block < p.query_end) return rope_block<S.query>(p.query, block);
    if constexpr (S.has_index) rope_block<S.index>(p.index, block - p.query_end);
}

}  // namespace deep_gemm
