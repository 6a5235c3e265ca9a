// The small operations before grouped-query attention, side by side (spec/gqa_rows.h). Called by
// op/attention_rows.cpp.
#pragma once

#include <deep_gemm/kernel/rope.cuh>
#include <deep_gemm/spec/gqa_rows.h>

namespace deep_gemm {

namespace gqa_rows_detail {

/// A CTA a key head: through bf16 where the projection left bf16, as if it went through memory.
template <LatentSpec S>
DG_DEVICE void key_block(const RopeParams& p, const CacheWriteParams& cache, u32 block) {
    const u32 row = block / p.inner, inner = block % p.inner, channel = ptx::thread_index() * 4;
    const u32 sequence = tile::sequence_of(cache.sequences, row);
    const i32 position = ptx::ld_global_s32(p.positions + row);
    if (position < 0 || sequence >= cache.rows.sequences) return;
    tile::Float4 v = rotated_head<S>(p, row, inner, channel, position);
    if (channel >= p.d) return;
    if constexpr (S.x == Format::bf16) v = tile::through_bf16(v);
    const u64 to = tile::row_offset(cache.rows, sequence, static_cast<u32>(position) % cache.rows.rows);
    tile::store4<S.rows>(cache.rows.data, to + inner * cache.stride_inner + channel, v);
}

}  // namespace gqa_rows_detail

template <GqaRowsSpec S>
DG_KERNEL(kLatentThreads, 8)
gqa_rows(DG_GRID_CONSTANT const GqaRowsParams p) {
    ptx::grid_dependency_launch();
    const u32 block = ptx::block_index();
    ptx::grid_dependency_wait();
    if (block < p.query_end) return rope_block<S.query>(p.query, block);
    if (block < p.key_end) return gqa_rows_detail::key_block<S.key>(p.key, p.keys, block - p.query_end);
    cache_write_block<S.value>(p.values, block - p.key_end);
}

}  // namespace deep_gemm
