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

/// Heads without a norm that a warp has room for: a warp a head.
template <LatentSpec S>
DG_DEVICE void rope_warps(const RopeParams& p, u32 block) {
    const u32 head = block * S.heads + ptx::warp_index(), row = head / p.inner, inner = head % p.inner,
              channel = ptx::lane_index() * 4;
    const i32 position = ptx::ld_global_s32(p.positions + row);
    if (position < 0) return;
    tile::Float4 v{};
    if (channel < p.d) v = tile::load4<S.x>(p.x.data, row * p.x.stride + inner * p.x.inner_stride + channel);
    tile::rotate4<S.pairs>(v, channel, p.d, p.dims, p.frequencies, position, S.inverse);
    tile::finish_row<S.finish>(v, channel, p.d, p.dims);
    if (channel < p.d)
        tile::store4<S.rows>(p.y.data, row * p.y.stride + inner * p.y.inner_stride + channel, v);
}

/// Some heads of a token, which are on their way at once and turn by the same angles.
template <LatentSpec S>
DG_DEVICE void rope_heads(const RopeParams& p, u32 block) {
    static_assert(S.pairs == RopePairs::interleaved && S.norm);
    const u32 row = block * S.heads / p.inner, first = block * S.heads % p.inner,
              channel = ptx::thread_index() * 4;
    const i32 position = ptx::ld_global_s32(p.positions + row);
    if (position < 0) return;
    const bool inside = channel < p.d, turns = inside && channel >= p.d - p.dims;
    tile::Float4 v[S.heads] = {};
#pragma unroll
    for (u32 i = 0; i < S.heads; ++i)
        if (inside)
            v[i] = tile::load4<S.x>(p.x.data, row * p.x.stride + (first + i) * p.x.inner_stride + channel);
    tile::Rotation by[2]{};
    if (turns) {
#pragma unroll
        for (u32 i = 0; i < 2; ++i)
            by[i] = tile::rotation_at(p.frequencies, (channel - (p.d - p.dims)) / 2 + i,
                                      static_cast<float>(position), S.inverse);
    }
    tile::normalize<kLatentThreads, S.weight>(v, ptx::dynamic_smem() + plan_smem(S).sums, p.weight, channel,
                                              p.d, p.eps);
#pragma unroll
    for (u32 i = 0; i < S.heads; ++i) {
        if (turns) tile::rotate(v[i].x, v[i].y, by[0]), tile::rotate(v[i].z, v[i].w, by[1]);
        tile::finish_row<S.finish>(v[i], channel, p.d, p.dims);
        if (inside)
            tile::store4<S.rows>(p.y.data, row * p.y.stride + (first + i) * p.y.inner_stride + channel, v[i]);
    }
}

/// A CTA a head, or some.
template <LatentSpec S>
DG_DEVICE void rope_block(const RopeParams& p, u32 block) {
    if constexpr (S.heads > 1 && !S.norm) return rope_warps<S>(p, block);
    if constexpr (S.heads > 1 && S.norm) return rope_heads<S>(p, block);
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
