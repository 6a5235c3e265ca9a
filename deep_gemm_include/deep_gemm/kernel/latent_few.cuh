// Latent attention of few tokens on tensor cores (spec/latent_mma.h): a cluster has 16 heads of a token, a CTA of
// it a chunk of 64 rows. Every load of a CTA is on its way before the first product; then the sums of all chunks
// meet through distributed shared memory, each thread merging four channels of a head in order of the chunks.
// Called by op/attention.cpp.
#pragma once

#include <deep_gemm/kernel/latent_few_load.h>

namespace deep_gemm {

namespace latent_detail {

/// The weighted sums of the chunk's rows into shared memory, where the rows are: [head][channel]. All threads
/// call.
template <LatentMmaSpec S>
DG_DEVICE void leave_sums(ptx::SharedAddress smem) {
    constexpr LatentMmaSmem kPlan = plan_smem(S);
    constexpr u32 kSteps = kLatentChunk / 16;
    const u32 lane = ptx::lane_index(), first = ptx::warp_index() * kWarpChannels;
    const ptx::SharedAddress weights = smem + kPlan.weights + lane % 16 * kWeightPitchBytes + lane / 16 * 16;
    const ptx::SharedAddress rows = smem + kPlan.rows + lane % 16 * kPitchBytes + (first + lane / 16 * 8) * 2;
    u32 a[kSteps][4];
#pragma unroll
    for (u32 k = 0; k < kSteps; ++k) ptx::ldmatrix_x4(a[k], weights + k * 32);
    float sums[kTiles][4] = {};
#pragma unroll
    for (u32 t = 0; t < kTiles; t += 2)
#pragma unroll
        for (u32 k = 0; k < kSteps; ++k) {
            u32 b[4];
            ptx::ldmatrix_x4_trans(b, rows + k * 16 * kPitchBytes + t * 16);
            ptx::mma_m16n8k16_bf16(sums[t], a[k], b[0], b[1]);
            ptx::mma_m16n8k16_bf16(sums[t + 1], a[k], b[2], b[3]);
        }
    ptx::sync_threads();  // all have read the rows
#pragma unroll
    for (u32 t = 0; t < kTiles; ++t)
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
            ptx::st_shared_v2_f32(
                smem + kPlan.rows +
                    ((lane / 4 + half * 8) * kLatentSumsPitch + first + t * 8 + lane % 4 * 2) * 4,
                sums[t][2 * half], sums[t][2 * half + 1]);
}

/// What merging a head's chunks in order comes to (Merged), lane i's chunk being i; none where it has no rows.
struct MergedHead {
    Factors factors;     // of the lane's chunk and of those before it
    float max, weights;  // through the lane's chunk; of the chunk, scaled

    DG_DEVICE MergedHead(float m, float sum) {
        const u32 lane = ptx::lane_index();
        max = m;
#pragma unroll
        for (u32 delta = 1; delta < kLatentFewChunks; delta *= 2) {
            const float earlier = ptx::shfl_up_f32(max, delta);
            if (lane >= delta) max = ptx::max_nan_f32(earlier, max);
        }
        const float up = ptx::shfl_up_f32(max, 1), before = lane == 0 ? kNothing : up;
        factors = {1.0f, 0.0f};
        if (max != kNothing) factors = {ptx::exp_f32(before - max), ptx::exp_f32(m - max)};
        weights = ptx::mul_rn_f32(sum, factors.chunk);
    }
};

constexpr u32 kFewAtOnce = 5;  // chunks on their way: half of those of a window and 512 chosen rows

/// Four channels of a head of the output, of `chunks` CTAs. Whole warps call, for one head.
template <LatentMmaSpec S>
DG_DEVICE tile::Float4 merge_quad(u32 head, u32 channel, u32 chunks, float sink, ptx::SharedAddress smem) {
    constexpr LatentMmaSmem kPlan = plan_smem(S);
    const u32 lane = ptx::lane_index();
    const ptx::SharedAddress sums = smem + kPlan.rows + (head * kLatentSumsPitch + channel) * 4;
    float m = kNothing, weights = 0;
    if (lane < chunks) {
        const ptx::UInt2 pair = ptx::ld_cluster_v2_u32(ptx::map_to_rank(smem + kPlan.stats + head * 8, lane));
        m = codec::float_of_bits(pair.x), weights = codec::float_of_bits(pair.y);
    }
    tile::Float4 o{};
    Merged merged;
#pragma unroll 1
    for (u32 base = 0; base < chunks; base += kFewAtOnce) {
        tile::Float4 part[kFewAtOnce];
#pragma unroll
        for (u32 i = 0; i < kFewAtOnce; ++i)
            if (base + i < chunks) part[i] = ptx::ld_cluster_v4_f32(ptx::map_to_rank(sums, base + i));
        const MergedHead of_lane(m, weights);
#pragma unroll
        for (u32 i = 0; i < kFewAtOnce; ++i) {
            if (base + i >= chunks) break;
            const Factors factors{ptx::shfl_idx_f32(of_lane.factors.before, base + i),
                                  ptx::shfl_idx_f32(of_lane.factors.chunk, base + i)};
            merged.sum =
                ptx::fma_rn_f32(merged.sum, factors.before, ptx::shfl_idx_f32(of_lane.weights, base + i));
            o = {factors.apply(o.x, part[i].x), factors.apply(o.y, part[i].y), factors.apply(o.z, part[i].z),
                 factors.apply(o.w, part[i].w)};
        }
        merged.max = ptx::shfl_idx_f32(of_lane.max, chunks - 1);
    }
    const float factor = normalizer(merged, sink);
    return {ptx::mul_rn_f32(o.x, factor), ptx::mul_rn_f32(o.y, factor), ptx::mul_rn_f32(o.z, factor),
            ptx::mul_rn_f32(o.w, factor)};
}

}  // namespace latent_detail

template <LatentMmaSpec S>
DG_KERNEL(kLatentMmaThreads, 2)
latent_few(DG_GRID_CONSTANT const LatentMmaParams params) {
    using namespace latent_detail;
    static_assert(S.split && S.tiles == 1 && !S.wide);
    ptx::grid_dependency_launch();
    const AttentionParams& p = params.attention;
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 groups = ceil_div(p.heads, kLatentMmaHeads), rank = ptx::cluster_rank();
    const u32 unit = ptx::block_index() / params.chunks, token = unit / groups,
              first_head = unit % groups * kLatentMmaHeads;
    const u32 lane = ptx::lane_index(), warp = ptx::warp_index(), begin = rank * kLatentChunk;

    // What nobody writes. The last quad of a lane's channels turns, in queries and, back, in the output, by the
    // same angles.
    const u32 last = kFp8RowChannels - 128 + lane * 4;
    const bool turns = (S.rotate || S.raw) && last >= kFp8RowChannels - p.dims;
    tile::Frequency frequency;  // of pair `lane`
    if ((S.rotate || S.raw) && lane < p.dims / 2) frequency = tile::load_frequency(p.frequencies, lane);
    const u32 heads = p.heads - first_head < kLatentMmaHeads ? p.heads - first_head : kLatentMmaHeads;
    const u32 step = params.chunks * kLatentMmaThreads, end = heads * kHeadQuads;
    u32 at = rank * kLatentMmaThreads + ptx::thread_index();
    float sink = at < end ? sink_of<S>(p, first_head + at / kHeadQuads) : 0.0f;
    ptx::grid_dependency_wait();

    // What no other load decides: queries, and the picks of a token that sees a whole window.
    i32 early = -1;
    if constexpr (S.picks) {
        const u32 i = begin + warp * kWarpRows + lane - p.window;
        if (lane < kWarpRows && i < p.num_picks) early = load_pick(p, token, i);
    }
    fetch_queries<S>(p, token, first_head, smem);
    const Seen<S> seen(p, token);

    const WarpRows found = find_rows<S, kWarpRows>(
        p, seen, begin, [&](u32 i) { return seen.in_window == p.window ? early : load_pick(p, token, i); });
    const RawRows rows(found, smem + plan_smem(S).rows + warp * kWarpRows * kPitchBytes);
    ptx::cp_async_commit();

    tile::Rotation by[2] = {};
    if constexpr (S.rotate || S.raw) {
        const tile::Rotation mine = tile::rotation_at(frequency, static_cast<float>(seen.position), false);
#pragma unroll
        for (u32 i = 0; i < 2; ++i) by[i] = mine.of_lane((last - (kFp8RowChannels - p.dims)) / 2 + i);
    }
    ptx::cp_async_wait<0>();
    ptx::sync_warp();
    if (begin < seen.total) {
        if constexpr (S.raw) turn_queries<S>(params.eps, turns, by, smem);
        if (lane < kWarpRows)
            ptx::st_shared_u32(smem + plan_smem(S).present + (warp * kWarpRows + lane) * 4,
                               found.present >> lane & 1);
        rows.decode();
        ptx::sync_threads();
        score_rows<S>(smem, p.scale);
        ptx::sync_threads();
        Merged alone;
        weigh<S>(alone, smem);
        ptx::sync_threads();
        leave_sums<S>(smem);
    }
    ptx::cluster_sync();

    const u32 chunks = ceil_div(seen.total, kLatentChunk);
    if (at >= end) ptx::cluster_arrive();  // nobody leaves while a peer reads
    for (; at < end; at += step) {
        const u32 head = first_head + at / kHeadQuads, channel = at % kHeadQuads * 4;
        tile::Float4 o = merge_quad<S>(head - first_head, channel, chunks, sink, smem);
        if (at + step < end)
            sink = sink_of<S>(p, first_head + (at + step) / kHeadQuads);
        else
            ptx::cluster_arrive();
        if (S.rotate && turns && channel == last && seen.total > 0) {
            tile::rotate(o.x, o.y, {by[0].cos, -by[0].sin});
            tile::rotate(o.z, o.w, {by[1].cos, -by[1].sin});
        }
        tile::store4<Format::bf16>(p.out.data, token * p.out.stride + head * p.out.inner_stride + channel, o);
    }
    ptx::cluster_wait();
}

}  // namespace deep_gemm
