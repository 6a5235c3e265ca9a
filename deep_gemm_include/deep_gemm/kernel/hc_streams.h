// How hc_mix takes the streams in: four channels of a stream a thread, with the output of the sublayer
// before, and its share of what fn makes of them (spec/hyper_connection.h).
#pragma once

#include <deep_gemm/spec/hyper_connection.h>
#include <deep_gemm/tile/real.h>
#include <deep_gemm/ptx/convert.h>
#include <deep_gemm/ptx/math.h>
#include <deep_gemm/ptx/shared_words.h>
#include <deep_gemm/ptx/stream.h>

namespace deep_gemm::hc_detail {

/// Sums of 2 Count values over a warp: lane i gets that of value i, for a quarter of the shuffles of 32 sums.
template <u32 Count>
DG_DEVICE float transposed_sums(float (&values)[32]) {
    if constexpr (Count == 0) {
        return values[0];
    } else {
        const bool upper = (ptx::lane_index() & Count) != 0;
#pragma unroll
        for (u32 i = 0; i < Count; ++i) {
            const float kept = upper ? values[i + Count] : values[i],
                        given = upper ? values[i] : values[i + Count];
            values[i] = ptx::add_rn_f32(kept, ptx::shfl_bfly_f32(given, Count));
        }
        return transposed_sums<Count / 2>(values);
    }
}

DG_DEVICE float squares(const tile::Float4& v, float sum) {
    sum = ptx::fma_rn_f32(v.x, v.x, sum);
    sum = ptx::fma_rn_f32(v.y, v.y, sum);
    sum = ptx::fma_rn_f32(v.z, v.z, sum);
    return ptx::fma_rn_f32(v.w, v.w, sum);
}

/// Where a thread is in a step: four channels of a stream.
template <HcSpec S>
struct HcPlace {
    u32 stream, channel;
    bool inside;

    DG_DEVICE HcPlace(u32 step, u32 begin, u32 end)
        : stream(ptx::thread_index() % S.streams),
          channel(begin + (step * S.threads + ptx::thread_index()) / S.streams * 4),
          inside(channel < end) {}
};

/// Four channels of a stream after the sublayer's output y has been taken in: post y + the sum over streams a
/// of comb[a] x[a].
template <HcSpec S>
struct TakeIn {
    float post = 0, comb[S.streams] = {};  // of the thread's stream

    DG_DEVICE void fetch(const HcParams& p, u32 row, u32 stream) {
        post = ptx::ld_global_f32(p.post + row * S.streams + stream);
#pragma unroll
        for (u32 a = 0; a < S.streams; ++a)
            comb[a] = ptx::ld_global_f32(p.comb + (row * S.streams + a) * S.streams + stream);
    }
    template <typename X>
    [[nodiscard]] DG_DEVICE tile::Float4 apply(const tile::Float4& y, X&& x_of) const {
        tile::Float4 v{post * y.x, post * y.y, post * y.z, post * y.w};
#pragma unroll
        for (u32 a = 0; a < S.streams; ++a) {
            const tile::Float4 x = x_of(a);
            v = {ptx::fma_rn_f32(comb[a], x.x, v.x), ptx::fma_rn_f32(comb[a], x.y, v.y),
                 ptx::fma_rn_f32(comb[a], x.z, v.z), ptx::fma_rn_f32(comb[a], x.w, v.w)};
        }
        return S.x == Format::bf16 ? tile::through_bf16(v) : v;
    }
};

template <HcSpec S>
DG_DEVICE u64 stream_index(const HcParams& p, u32 row, const HcPlace<S>& at, u32 stream) {
    return row * p.x.stride + stream * p.x.inner_stride + at.channel;
}

/// Four channels of a stream, with the output of the sublayer before taken in where there is one.
template <HcSpec S>
DG_DEVICE tile::Float4 load_stream(const HcParams& p, u32 row, const HcPlace<S>& at) {
    tile::Float4 v{};
    if constexpr (S.add == Format::none) {
        if (at.inside) v = tile::load4<S.x>(p.x.data, stream_index(p, row, at, at.stream));
    } else {
        if (at.inside) {
            TakeIn<S> in;
            in.fetch(p, row, at.stream);
            v = in.apply(tile::load4<S.add>(p.add.data, row * p.add.stride + at.channel),
                         [&](u32 a) { return tile::load4<S.x>(p.x.data, stream_index(p, row, at, a)); });
        }
    }
    return v;
}

/// Where a thread's four channels of a token and step are kept.
template <HcSpec S>
DG_DEVICE u32 kept_at(u32 token, u32 step) {
    return ((token * S.steps + step) * S.threads + ptx::thread_index()) * 16;
}

/// What a thread multiplies in its only step, on the way before the preceding kernel has finished (nobody
/// writes fn): of the first mixes in registers, of the others in shared memory.
template <HcSpec S>
struct EarlyMixes {
    static constexpr u32 kHeld = hc_held_of(S), kLate = hc_late_of(S);
    tile::Float4 held[kHeld ? kHeld : 1];
    ptx::SharedAddress late;

    DG_DEVICE EarlyMixes(const HcParams& p, u32 begin, u32 end, ptx::SharedAddress smem)
        : late(smem + plan_smem(S).late + ptx::thread_index() * 16) {
        const HcPlace<S> at(0, begin, end);
        if (!at.inside) return;
#pragma unroll
        for (u32 m = 0; m < kLate; ++m)
            ptx::cp_async_16(late + m * S.threads * 16, place_of(p, at, kHeld + m), 16);
        ptx::cp_async_commit();
#pragma unroll
        for (u32 m = 0; m < kHeld; ++m) held[m] = ptx::ld_global_v4_f32(place_of(p, at, m));
    }
    static DG_DEVICE const float* place_of(const HcParams& p, const HcPlace<S>& at, u32 m) {
        return p.fn + (static_cast<u64>(m) * S.streams + at.stream) * p.d + at.channel;
    }
    [[nodiscard]] DG_DEVICE tile::Float4 get(const HcParams& p, const HcPlace<S>& at, u32 m) const {
        if (m < kHeld) return held[m < kHeld ? m : 0];
        if (m < kHeld + kLate) return ptx::ld_shared_v4_f32(late + (m - kHeld) * S.threads * 16);
        return ptx::ld_global_v4_f32(place_of(p, at, m));
    }
};

/// A warp's share of fn v and of v . v of token `token` of the cluster, row `row`, into `sums` of shared memory;
/// v goes to `streams`.
template <HcSpec S>
DG_DEVICE void share_of_mixes(const EarlyMixes<S>& early, const HcParams& p, u32 row, u32 token, u32 begin,
                              u32 end, ptx::SharedAddress smem) {
    constexpr u32 kMixes = mixes_of(S);
    constexpr HcSmem kPlan = plan_smem(S);
    float sums[32] = {};
    static_assert(kMixes < 32);
#pragma unroll 1
    for (u32 step = 0; step < S.steps; ++step) {
        const HcPlace<S> at(step, begin, end);
        const tile::Float4 v = load_stream<S>(p, row, at);
        ptx::st_shared_v4_f32(smem + kPlan.streams + kept_at<S>(token, step), v.x, v.y, v.z, v.w);
        if (!at.inside) continue;
        sums[kMixes] = squares(v, sums[kMixes]);
#pragma unroll
        for (u32 m = 0; m < kMixes; ++m) {
            const tile::Float4 f = early.get(p, at, m);
            sums[m] = ptx::fma_rn_f32(f.x, v.x, sums[m]);
            sums[m] = ptx::fma_rn_f32(f.y, v.y, sums[m]);
            sums[m] = ptx::fma_rn_f32(f.z, v.z, sums[m]);
            sums[m] = ptx::fma_rn_f32(f.w, v.w, sums[m]);
        }
    }
    const float sum = transposed_sums<16>(sums);
    const u32 lane = ptx::lane_index(), warp = ptx::warp_index();
    if (lane <= kMixes)
        ptx::st_shared_f32(smem + kPlan.sums + ((token * (kMixes + 1) + lane) * kHcMixWarps + warp) * 4, sum);
}

}  // namespace deep_gemm::hc_detail
