// Experiment: the CTA of hc_sums that is last applies.
#pragma once

#include <deep_gemm/spec/hc_few.h>
#include <deep_gemm/kernel/hc_parts.h>
#include <deep_gemm/tile/narrow_copy.h>
#include <deep_gemm/ptx/mma_sync.h>
#include <deep_gemm/ptx/stream.h>

namespace deep_gemm {

namespace hc_last_detail {
using namespace hc_detail;
__device__ u32 ticket;

template <HcLastSpec S>
struct Last {
    static constexpr bool kAdds = S.add != Format::none;
    static constexpr u32 kThreads = 256, kGroups = S.steps * 4;  // of 128 channels of a warp
    const HcTwoParams& params;
    const HcParams& p;
    ptx::SharedAddress smem;
    u32 slice = ptx::block_index(), warp = ptx::warp_index(), lane = ptx::lane_index();
    tile::Float4 raw[kHcFewFragments];
    Taken taken;

    DG_DEVICE u32 channel() const { return slice * kHcSliceChannels + warp * 16 + lane % 4 * 4; }
    DG_DEVICE void ask() {
#pragma unroll
        for (u32 stream = 0; stream < kHcStreams; ++stream)
#pragma unroll
            for (u32 tile = 0; tile < kFnTiles; ++tile)
                raw[stream * kFnTiles + tile] = ptx::ld_global_v4_f32(
                    p.fn + (static_cast<u64>(tile * 8 + lane / 4) * kHcStreams + stream) * p.d + channel());
    }
    DG_DEVICE u16* stream_at(u32 row, u32 stream, u32 c) const {
        return static_cast<u16*>(p.x.data) + row * p.x.stride + stream * p.x.inner_stride + c;
    }
    DG_DEVICE void sums() {
        const u32 token = lane / 4, row = token < p.rows ? token : p.rows - 1;
        Loaded loaded{};
#pragma unroll
        for (u32 a = 0; a < kHcStreams; ++a) {
            const ptx::Word2 w = ptx::ld_global_v2_u32(stream_at(row, a, channel()));
            loaded.x[a][0] = w.x, loaded.x[a][1] = w.y;
        }
        if constexpr (kAdds) {
            const ptx::Word2 w = ptx::ld_global_v2_u32(static_cast<const u16*>(p.add.data) + row * p.add.stride + channel());
            loaded.y[0] = w.x, loaded.y[1] = w.y;
            const tile::Float4 post = ptx::ld_global_v4_f32(p.post + row * kHcStreams);
            tile::Float4 comb[kHcStreams];
#pragma unroll
            for (u32 a = 0; a < kHcStreams; ++a) comb[a] = ptx::ld_global_v4_f32(p.comb + (row * kHcStreams + a) * kHcStreams);
            take_in(taken, loaded, post, [&](u32 a) { return comb[a]; });
            if (token < p.rows)
#pragma unroll
                for (u32 b = 0; b < kHcStreams; ++b)
                    ptx::st_global_v2_u32(stream_at(token, b, channel()), taken.pair[b][0], taken.pair[b][1]);
        } else {
#pragma unroll
            for (u32 a = 0; a < kHcStreams; ++a) taken.pair[a][0] = loaded.x[a][0], taken.pair[a][1] = loaded.x[a][1];
        }
        float product[kFnTiles][4] = {};
#pragma unroll
        for (u32 b = 0; b < kHcStreams; ++b) {
            const u32 a[4] = {taken.pair[b][0], 0, taken.pair[b][1], 0};
#pragma unroll
            for (u32 tile = 0; tile < kFnTiles; ++tile) {
                u32 word[kFnParts][2];
                split_fn(word, raw[b * kFnTiles + tile]);
#pragma unroll
                for (u32 part = 0; part < kFnParts; ++part) ptx::mma_m16n8k16_bf16(product[tile], a, word[part][0], word[part][1]);
            }
        }
        const ptx::SharedAddress to = smem + (warp * 8 + token) * kHcSumsPitch * 4;
#pragma unroll
        for (u32 tile = 0; tile < kFnTiles; ++tile)
            ptx::st_shared_v2_f32(to + (tile * 8 + lane % 4 * 2) * 4, product[tile][0], product[tile][1]);
        const float squares = taken.squares();
        if (lane % 4 == 0) ptx::st_shared_f32(to + kHcMixes * 4, squares);
    }
    DG_DEVICE void records() {
        if (warp >= p.rows || warp >= 8) return;
        const u32 item = lane < kHcMixes ? lane : kHcMixes;
        float total = 0;
#pragma unroll
        for (u32 w = 0; w < 8; ++w) total = ptx::add_rn_f32(total, ptx::ld_shared_f32(smem + (w * 8 + warp) * kHcSumsPitch * 4 + item * 4));
        if (lane <= kHcMixes)
            ptx::st_global_f32(params.records + (static_cast<u64>(warp) * params.slices + slice) * kHcRecord + lane, total);
    }
    DG_DEVICE bool is_last() {
        asm volatile("fence.acq_rel.gpu;" ::: "memory");
        ptx::sync_threads();
        if (ptx::thread_index() == 0) {
            u32 before;
            asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(&ticket) : "memory");
            if (before + 1 == params.slices) asm volatile("st.global.u32 [%0], 0;" ::"l"(&ticket) : "memory");
            ptx::st_shared_u32(smem, before + 1 == params.slices);
        }
        ptx::sync_threads();
        const bool last = ptx::ld_shared_u32(smem) != 0;
        asm volatile("fence.acq_rel.gpu;" ::: "memory");
        return last;
    }
    DG_DEVICE void apply(u32 row, float scale, float base) {
        const u32 item = lane < kHcMixes ? lane : kHcMixes;
        ptx::Word2 x[kGroups][kHcStreams];
        tile::Float4 weight[kGroups], u[kGroups];
        if (warp < 8) {
            float sum[2] = {};
#pragma unroll
            for (u32 i = 0; i < 2; ++i)
#pragma unroll
                for (u32 s = 0; s < S.steps * 2; ++s) {
                    const u32 at = warp + i * 8 + s * 16;
                    if (at < params.slices)
                        sum[i] = ptx::add_rn_f32(sum[i], ptx::ld_global_f32(params.records + (static_cast<u64>(row) * params.slices + at) * kHcRecord + item));
                }
#pragma unroll
            for (u32 g = 0; g < kGroups; ++g) {
                const u32 c = (g * 8 + warp) * 128 + lane * 4;
                if (c >= p.d) break;
#pragma unroll
                for (u32 a = 0; a < kHcStreams; ++a) x[g][a] = ptx::ld_global_v2_u32(stream_at(row, a, c));
                if constexpr (S.weight != Format::none) weight[g] = tile::load4<S.weight>(p.weight, c);
            }
            ptx::sync_threads();
#pragma unroll
            for (u32 i = 0; i < 2; ++i) ptx::st_shared_f32(smem + 256 + ((warp + i * 8) * 32 + lane) * 4, sum[i]);
        } else {
            ptx::sync_threads();
        }
        ptx::sync_threads();
        float total = 0;
#pragma unroll
        for (u32 i = 0; i < 16; ++i) total = ptx::add_rn_f32(total, ptx::ld_shared_f32(smem + 256 + (i * 32 + lane) * 4));
        const float square = codec::float_of_bits(ptx::shfl_idx(codec::bits_of_float(total), kHcMixes));
        const float z = z_of(p, total, square, scale, base);
        if (warp == 8) return store_post<kHcStreams>(p, row, z);
        const float pre_of_lane = sigmoid(z) + p.hc_eps;
        float pre[kHcStreams];
#pragma unroll
        for (u32 a = 0; a < kHcStreams; ++a) pre[a] = codec::float_of_bits(ptx::shfl_idx(codec::bits_of_float(pre_of_lane), a));
#pragma unroll
        for (u32 g = 0; g < kGroups; ++g) {
            u[g] = {};
            if ((g * 8 + warp) * 128 >= p.d) break;
#pragma unroll
            for (u32 a = 0; a < kHcStreams; ++a) mix_in(u[g], pre[a], x[g][a].x, x[g][a].y);
        }
        if constexpr (S.weight != Format::none) {
#pragma unroll
            for (u32 g = 0; g < kGroups; ++g) {
                const float s = squares_of(u[g]);
                if (lane == 0) ptx::st_shared_f32(smem + 2304 + (g * 8 + warp) * 4, s);
            }
            ptx::named_barrier_sync(1, 256);
            float s = 0;
#pragma unroll
            for (u32 first = 0; first < kGroups * 8; first += 32)
                if (first + lane < p.d / 128) s = ptx::add_rn_f32(s, ptx::ld_shared_f32(smem + 2304 + (first + lane) * 4));
            const float factor = norm_of(p, s);
#pragma unroll
            for (u32 g = 0; g < kGroups; ++g) u[g] = normed(u[g], factor, weight[g]);
        }
#pragma unroll
        for (u32 g = 0; g < kGroups; ++g) {
            const u32 c = (g * 8 + warp) * 128 + lane * 4;
            if (c >= p.d) break;
            tile::store4<S.y>(p.y.data, row * p.y.stride + c, u[g]);
            if constexpr (S.narrow) tile::store_copy<S.recipe, ScaleRule::up>(p.codes, p.scales, row, p.d, c, u[g]);
        }
    }
};

}  // namespace hc_last_detail

template <HcLastSpec S>
DG_KERNEL(288, 2)
hc_last(DG_GRID_CONSTANT const HcTwoParams params) {
    ptx::grid_dependency_launch();
    hc_last_detail::Last<S> of{params, params.p, ptx::dynamic_smem()};
    const u32 lane = ptx::lane_index();
    const u32 mix = lane < kHcMixes ? lane : 0;
    const float scale = ptx::ld_global_f32(params.p.scale + hc_detail::scale_of(mix)), base = ptx::ld_global_f32(params.p.base + mix);
    if (of.warp < 8) of.ask();
    ptx::grid_dependency_wait();
    if (of.warp < 8) of.sums();
    ptx::sync_threads();
    of.records();
    if (!of.is_last()) return;
    for (u32 row = 0; row < params.p.rows; ++row) of.apply(row, scale, base);
}

}  // namespace deep_gemm
