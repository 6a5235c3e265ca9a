// Fills the streams of a token, a CTA a row (spec/embed.h). Called by op/embed.cpp.
#pragma once

#include <deep_gemm/spec/embed.h>
#include <deep_gemm/tile/real.h>

namespace deep_gemm {

template <EmbedSpec S>
DG_KERNEL(kEmbedThreads, 8)
embed(DG_GRID_CONSTANT const EmbedParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 row = ptx::block_index();
    const u32 source = S.gather ? static_cast<u32>(ptx::ld_global_s32(p.tokens + row)) : row;
    const bool known = !S.gather || source < p.vocabulary;
    for (u32 i = ptx::thread_index() * 4; i < p.d; i += kEmbedThreads * 4) {
        tile::Float4 v{};
        if (known) v = tile::load4<S.value>(p.value.data, source * p.value.stride + i);
        for (u32 stream = 0; stream < p.streams; ++stream) {
            const u64 at = row * p.x.stride + stream * p.x.inner_stride + i;
            tile::Float4 sum = v;
            if constexpr (S.accumulate) {
                const tile::Float4 old = tile::load4<S.x>(p.x.data, at);
                sum = {old.x + v.x, old.y + v.y, old.z + v.z, old.w + v.w};
            }
            tile::store4<S.x>(p.x.data, at, sum);
        }
    }
}

}  // namespace deep_gemm
