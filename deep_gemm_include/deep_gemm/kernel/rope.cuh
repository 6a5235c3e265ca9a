// Rotary positions: rope over heads of tokens (with or without their norm), latent_write (norm, rotation,
// rounding and cache row of a token in one), cache_write (plain rows). Called by op/rope.cpp.
#pragma once

#include <deep_gemm/tile/latent_row.h>

namespace deep_gemm {

/// Channels `channel` to `channel + 3` of a head after its norm and rotation. All threads of the CTA call.
template <LatentSpec S>
DG_DEVICE tile::Float4 rotated_head(const RopeParams& p, u32 row, u32 inner, u32 channel, i32 position) {
    tile::Float4 v{};
    if (channel < p.d) v = tile::load4<S.x>(p.x.data, row * p.x.stride + inner * p.x.inner_stride + channel);
    if constexpr (S.norm)
        tile::normalize<kLatentThreads, S.weight>(v, ptx::dynamic_smem() + plan_smem(S).sums, p.weight,
                                                  channel, p.d, p.eps);
    tile::rotate4<S.pairs>(v, channel, p.d, p.dims, p.frequencies, position, S.inverse);
    tile::finish_row<S.finish>(v, channel, p.d, p.dims);
    return v;
}

/// A CTA a head.
template <LatentSpec S>
DG_DEVICE void rope_block(const RopeParams& p, u32 block) {
    const u32 row = block / p.inner, inner = block % p.inner, channel = ptx::thread_index() * 4;
    const i32 position = ptx::ld_global_s32(p.positions + row);
    if (position < 0) return;
    const tile::Float4 v = rotated_head<S>(p, row, inner, channel, position);
    if (channel < p.d)
        tile::store4<S.rows>(p.y.data, row * p.y.stride + inner * p.y.inner_stride + channel, v);
}

template <LatentSpec S>
DG_KERNEL(kLatentThreads, 8)
rope(DG_GRID_CONSTANT const RopeParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    rope_block<S>(p, ptx::block_index());
}

/// A CTA a token.
template <LatentSpec S>
DG_DEVICE void latent_write_block(const LatentWriteParams& p, u32 row) {
    const u32 sequence = tile::sequence_of(p.sequences, row);
    const i32 position = ptx::ld_global_s32(p.positions + row);
    if (position < 0 || sequence >= p.rows.sequences) return;
    const u32 channel = ptx::thread_index() * 4;
    tile::Float4 v{};
    if (channel < p.d) v = tile::load4<S.x>(p.x.data, row * p.x.stride + channel);
    tile::normalize<kLatentThreads, S.weight>(v, ptx::dynamic_smem() + plan_smem(S).sums, p.weight, channel,
                                              p.d, p.eps);
    tile::rotate4<S.pairs>(v, channel, p.d, p.dims, p.frequencies, position, false);
    tile::finish_row<S.finish>(v, channel, p.d, p.dims);
    tile::write_latent<S.rows>(p.rows, sequence, static_cast<u32>(position) % p.rows.rows, channel, p.d, v);
}

template <LatentSpec S>
DG_KERNEL(kLatentThreads, 8)
latent_write(DG_GRID_CONSTANT const LatentWriteParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    latent_write_block<S>(p, ptx::block_index());
}

/// A CTA a token.
template <LatentSpec S>
DG_DEVICE void cache_write_block(const CacheWriteParams& p, u32 row) {
    const u32 sequence = tile::sequence_of(p.sequences, row);
    const i32 position = ptx::ld_global_s32(p.positions + row);
    if (position < 0 || sequence >= p.rows.sequences) return;
    const u64 to = tile::row_offset(p.rows, sequence, static_cast<u32>(position) % p.rows.rows);
    for (u32 i = ptx::thread_index() * 4; i < p.inner * p.d; i += kLatentThreads * 4) {
        const u32 inner = i / p.d, channel = i % p.d;
        const tile::Float4 v =
            tile::load4<S.x>(p.x.data, row * p.x.stride + inner * p.x.inner_stride + channel);
        tile::store4<S.rows>(p.rows.data, to + inner * p.stride_inner + channel, v);
    }
}

template <LatentSpec S>
DG_KERNEL(kLatentThreads, 8)
cache_write(DG_GRID_CONSTANT const CacheWriteParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    cache_write_block<S>(p, ptx::block_index());
}

}  // namespace deep_gemm
