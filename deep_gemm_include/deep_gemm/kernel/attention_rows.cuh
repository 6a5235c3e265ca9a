// The small operations of attention that run side by side (spec/attention_rows.h). Called by
// op/attention_rows.cpp.
#pragma once

#include <deep_gemm/kernel/compressor.cuh>
#include <deep_gemm/kernel/norm.cuh>
#include <deep_gemm/kernel/rope.cuh>
#include <deep_gemm/spec/attention_rows.h>
#include <deep_gemm/ptx/stream.h>

namespace deep_gemm {

namespace attention_rows_detail {

/// On their way to L2 while the launch in front still runs. They are small, read once a pass, and would else
/// come from memory when a block has waited for everything else.
DG_DEVICE void bring(const void* data, u32 bytes) {
    constexpr u32 kStep = 64;  // what memory gives at a time
    for (u32 i = ptx::thread_index() * kStep; i < bytes; i += kLatentThreads * kStep)
        ptx::prefetch_line(static_cast<const u8*>(data) + i);
}
template <CompressorSpec S>
DG_DEVICE void bring_compressor(const CompressorParams& p) {
    constexpr u32 kMost = 16384;  // of longer tables a token needs a small part
    const u32 ape = p.ratio * (S.overlap ? 2 : 1) * p.dim * 4;
    if (ape <= kMost) bring(p.ape, ape);
    bring(p.weight, p.dim * bytes_of(S.weight));
}

/// What block `block` reads and nobody writes.
template <LatentSpec S>
DG_DEVICE void bring_write(const LatentWriteParams& p) {
    bring(p.weight, p.d * bytes_of(S.weight));
    bring(p.frequencies, p.dims * 4);
}

template <AttentionRowsSpec S>
DG_DEVICE void bring_weights(const AttentionRowsParams& p, u32 block) {
    if (block < p.norm_end) return bring(p.norm.weight, p.norm.d * bytes_of(S.norm.weight));
    if (block < p.write_end) return bring_write<S.write>(p.write);
    if constexpr (S.has_main)
        if (block < p.main_end) return bring_compressor<S.main>(p.main);
    if constexpr (S.has_index) bring_compressor<S.index>(p.index);
}

}  // namespace attention_rows_detail

template <AttentionRowsSpec S>
DG_KERNEL(kLatentThreads, 4)
attention_rows(DG_GRID_CONSTANT const AttentionRowsParams p) {
    ptx::grid_dependency_launch();
    const u32 block = ptx::block_index();
    attention_rows_detail::bring_weights<S>(p, block);
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
