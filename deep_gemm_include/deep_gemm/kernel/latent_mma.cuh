// Latent attention on tensor cores (spec/latent_mma.h). Called by op/latent_mma.cpp.
#pragma once

#include <deep_gemm/kernel/latent_merge.h>
#include <deep_gemm/tile/decode.h>
#include <deep_gemm/ptx/ldmatrix.h>
#include <deep_gemm/ptx/mma_sync.h>
#include <deep_gemm/ptx/stream.h>

namespace deep_gemm {

namespace latent_detail {

constexpr LatentMmaSmem kPlan = plan_smem(LatentMmaSpec{});
constexpr u32 kPitchBytes = kLatentPitch * 2, kWeightPitchBytes = kLatentWeightPitch * 2;
constexpr u32 kWarps = kLatentMmaThreads / 32;
constexpr u32 kWarpChannels = kFp8RowChannels / kWarps;  // of the weighted sum
constexpr u32 kTiles = kWarpChannels / 8;

/// An FP8 row where it lies; values null: there is none.
struct RowPlace {
    const u8* values;
    const u8* scales;
};
DG_DEVICE RowPlace place_of(const LatentView& view, u32 sequence, u32 row) {
    const u8* page = static_cast<const u8*>(view.data) + tile::page_offset(view, sequence, row);
    return {page + row % view.page_rows * kFp8RowBytes,
            page + view.page_rows * kFp8RowBytes + row % view.page_rows * kFp8RowScaleBytes};
}

template <LatentMmaSpec S>
DG_DEVICE RowPlace find_row(const AttentionParams& p, const Seen<S>& seen, u32 index) {
    if (index >= seen.total) return {nullptr, nullptr};
    if (index < seen.in_window) return place_of(p.rows, seen.sequence, (seen.first + index) % p.rows.rows);
    u32 row = index - seen.in_window;
    if constexpr (S.picks)
        row =
            static_cast<u32>(ptx::ld_global_s32(p.picks + static_cast<u64>(seen.token) * p.num_picks + row));
    if (row >= seen.visible) return {nullptr, nullptr};
    return place_of(p.compressed, seen.sequence, row);
}

DG_DEVICE const u8* from_lane(const u8* pointer, u32 lane) {
    const u64 bits = reinterpret_cast<u64>(pointer);
    const u64 low = ptx::shfl_idx(static_cast<u32>(bits), lane),
              high = ptx::shfl_idx(static_cast<u32>(bits >> 32), lane);
    return reinterpret_cast<const u8*>(low | high << 32);
}

/// A UE8M0 scale as a pair of bf16.
DG_DEVICE u32 pair_of_scale(u32 scale) {
    return (scale == 255 ? tile::kBf16Nan : scale == 0 ? 0x40u : scale << 7) * 0x10001u;
}

/// Rows base to base + 63 as bf16 into shared memory; a warp brings eight, four at a time.
template <LatentMmaSpec S>
DG_DEVICE void load_rows(const AttentionParams& p, const Seen<S>& seen, u32 base, ptx::SharedAddress smem) {
    constexpr u32 kRows = kLatentChunk / kWarps, kAtOnce = 4;
    constexpr u32 kPlain = kFp8RowChannels - kFp8RowRotated;
    const u32 lane = ptx::lane_index(), first = ptx::warp_index() * kRows;
    // Each of the first lanes finds a row; all load from there.
    RowPlace found{nullptr, nullptr};
    if (lane < kRows) {
        found = find_row<S>(p, seen, base + first + lane);
        ptx::st_shared_u32(smem + kPlan.present + (first + lane) * 4, found.values ? 1 : 0);
    }
#pragma unroll
    for (u32 batch = 0; batch < kRows; batch += kAtOnce) {
        ptx::UInt4 codes[kAtOnce] = {}, rotated[kAtOnce] = {};
        u32 scale[kAtOnce];
#pragma unroll
        for (u32 i = 0; i < kAtOnce; ++i) {
            const RowPlace row{from_lane(found.values, batch + i), from_lane(found.scales, batch + i)};
            scale[i] = 127;
            if (row.values && lane < kPlain / 16) {
                codes[i] = ptx::ld_global_v4_u32(row.values + lane * 16);
                scale[i] = ptx::ld_global_u8(row.scales + lane * 16 / kFp8RowGroup);
            }
            if (row.values && lane < kFp8RowRotated / 8)
                rotated[i] = ptx::ld_global_v4_u32(row.values + kPlain + lane * 16);
        }
#pragma unroll
        for (u32 i = 0; i < kAtOnce; ++i) {
            const ptx::SharedAddress at = smem + kPlan.rows + (first + batch + i) * kPitchBytes;
            if (lane < kPlain / 16) {
                const u32 word[4] = {codes[i].x, codes[i].y, codes[i].z, codes[i].w};
                const u32 factor = pair_of_scale(scale[i]);
                u32 pair[8];
#pragma unroll
                for (u32 w = 0; w < 4; ++w) {
                    tile::decode_e4m3<false, true>(word[w], pair[2 * w], pair[2 * w + 1]);
                    pair[2 * w] = ptx::mul_bf16x2(pair[2 * w], factor);
                    pair[2 * w + 1] = ptx::mul_bf16x2(pair[2 * w + 1], factor);
                }
                ptx::st_shared_v4_u32(at + lane * 32, {pair[0], pair[1], pair[2], pair[3]});
                ptx::st_shared_v4_u32(at + lane * 32 + 16, {pair[4], pair[5], pair[6], pair[7]});
            }
            if (lane < kFp8RowRotated / 8) ptx::st_shared_v4_u32(at + kPlain * 2 + lane * 16, rotated[i]);
        }
    }
}

DG_DEVICE void load_queries(const AttentionParams& p, u32 token, u32 first_head, ptx::SharedAddress smem) {
    constexpr u32 kPieces = kFp8RowChannels / 8;  // of 16 bytes
    for (u32 i = ptx::thread_index(); i < kLatentMmaHeads * kPieces; i += kLatentMmaThreads) {
        const u32 head = i / kPieces, piece = i % kPieces;
        ptx::UInt4 v{};
        if (first_head + head < p.heads)
            v = ptx::ld_global_v4_u32(static_cast<const u8*>(p.q.data) +
                                      (token * p.q.stride + (first_head + head) * p.q.inner_stride) * 2 +
                                      piece * 16);
        ptx::st_shared_v4_u32(smem + kPlan.queries + head * kPitchBytes + piece * 16, v);
    }
}

/// Scores of 16 heads with the warp's eight rows, into shared memory.
DG_DEVICE void score_rows(ptx::SharedAddress smem, float scale) {
    const u32 lane = ptx::lane_index(), first = ptx::warp_index() * 8;
    const ptx::SharedAddress queries = smem + kPlan.queries + lane % 16 * kPitchBytes + lane / 16 * 16;
    const ptx::SharedAddress rows = smem + kPlan.rows + (first + lane % 8) * kPitchBytes + lane / 8 * 16;
    float sums[4] = {};
#pragma unroll 4
    for (u32 k = 0; k < kFp8RowChannels; k += 32) {
        u32 b[4], a[2][4];
        ptx::ldmatrix_x4(b, rows + k * 2);
        ptx::ldmatrix_x4(a[0], queries + k * 2);
        ptx::ldmatrix_x4(a[1], queries + k * 2 + 32);
        ptx::mma_m16n8k16_bf16(sums, a[0], b[0], b[1]);
        ptx::mma_m16n8k16_bf16(sums, a[1], b[2], b[3]);
    }
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        const u32 row = first + lane % 4 * 2 + i % 2, head = lane / 4 + i / 2 * 8;
        const bool present = ptx::ld_shared_u32(smem + kPlan.present + row * 4) != 0;
        ptx::st_shared_f32(smem + kPlan.scores + (head * kLatentWeightPitch + row) * 4,
                           present ? ptx::mul_rn_f32(sums[i], scale) : kNothing);
    }
}

/// A warp turns the scores of two heads into weights.
DG_DEVICE void weigh(ptx::SharedAddress smem) {
    const u32 lane = ptx::lane_index();
#pragma unroll
    for (u32 i = 0; i < kLatentMmaHeads / kWarps; ++i) {
        const u32 head = ptx::warp_index() * (kLatentMmaHeads / kWarps) + i;
        const ptx::SharedAddress at = smem + kPlan.scores + (head * kLatentWeightPitch + lane * 2) * 4;
        const ptx::Float2 score = ptx::ld_shared_v2_f32(at);
        const float m = tile::warp_max<32>(ptx::max_nan_f32(score.x, score.y));
        const bool empty = m == kNothing;
        const float first = empty ? 0.0f : ptx::exp_f32(score.x - m),
                    second = empty ? 0.0f : ptx::exp_f32(score.y - m);
        const float sum = tile::warp_sum(ptx::add_rn_f32(first, second));
        ptx::st_shared_u32(smem + kPlan.weights + head * kWeightPitchBytes + lane * 4,
                           ptx::cvt_bf16x2(first, second));
        if (lane == 0) ptx::st_shared_v2_f32(smem + kPlan.stats + head * 8, m, sum);
    }
}

/// The weighted sums of the chunk's rows: 16 heads, the warp's 64 channels.
DG_DEVICE void add_rows(float (&sums)[kTiles][4], ptx::SharedAddress smem) {
    const u32 lane = ptx::lane_index();
    const ptx::SharedAddress weights = smem + kPlan.weights + lane % 16 * kWeightPitchBytes + lane / 16 * 16;
    const ptx::SharedAddress rows =
        smem + kPlan.rows + lane % 16 * kPitchBytes + (ptx::warp_index() * kWarpChannels + lane / 16 * 8) * 2;
#pragma unroll
    for (u32 k = 0; k < kLatentChunk; k += 16) {
        u32 a[4];
        ptx::ldmatrix_x4(a, weights + k * 2);
#pragma unroll
        for (u32 t = 0; t < kTiles; t += 2) {
            u32 b[4];
            ptx::ldmatrix_x4_trans(b, rows + k * kPitchBytes + t * 16);
            ptx::mma_m16n8k16_bf16(sums[t], a, b[0], b[1]);
            ptx::mma_m16n8k16_bf16(sums[t + 1], a, b[2], b[3]);
        }
    }
}

}  // namespace latent_detail

template <LatentMmaSpec S>
DG_KERNEL(kLatentMmaThreads, 2)
latent_mma(DG_GRID_CONSTANT const LatentMmaParams params) {
    using namespace latent_detail;
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const AttentionParams& p = params.attention;
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 groups = ceil_div(p.heads, kLatentMmaHeads), chunks = S.split ? params.chunks : 1;
    const u32 unit = ptx::block_index() / chunks, token = unit / groups,
              first_head = unit % groups * kLatentMmaHeads;
    const Seen<S> seen(p, token);
    const u32 lane = ptx::lane_index(), warp = ptx::warp_index();
    const u32 begin = S.split ? ptx::block_index() % chunks * kLatentChunk : 0;
    const u32 end = S.split ? begin + kLatentChunk : seen.total;
    if (S.split && begin >= seen.total) return;

    float sums[kTiles][4] = {};
    Merged merged[2];  // heads lane / 4 and that plus 8
    if (seen.total > 0) load_queries(p, token, first_head, smem);
    for (u32 base = begin; base < end; base += kLatentChunk) {
        load_rows<S>(p, seen, base, smem);
        ptx::sync_threads();
        score_rows(smem, p.scale);
        ptx::sync_threads();
        weigh(smem);
        ptx::sync_threads();
        float chunk[kTiles][4] = {};
        add_rows(chunk, smem);
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 head = lane / 4 + half * 8;
            const ptx::Float2 stats = ptx::ld_shared_v2_f32(smem + kPlan.stats + head * 8);
            if constexpr (S.split) {
                float* record =
                    params.records +
                    (static_cast<u64>(ptx::block_index()) * kLatentMmaHeads + head) * kLatentRecord;
#pragma unroll
                for (u32 t = 0; t < kTiles; ++t)
                    ptx::st_global_v2_f32(record + warp * kWarpChannels + t * 8 + lane % 4 * 2,
                                          chunk[t][2 * half], chunk[t][2 * half + 1]);
                if (warp == 0 && lane % 4 == 0)
                    ptx::st_global_v2_f32(record + kFp8RowChannels, stats.x, stats.y);
            } else {
                const Factors factors = merged[half].add(stats.x, stats.y);
#pragma unroll
                for (u32 t = 0; t < kTiles; ++t)
#pragma unroll
                    for (u32 i = 2 * half; i < 2 * half + 2; ++i)
                        sums[t][i] = factors.apply(sums[t][i], chunk[t][i]);
            }
        }
        if (!S.split) ptx::sync_threads();
    }
    if constexpr (!S.split) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 head = first_head + lane / 4 + half * 8;
            if (head >= p.heads) continue;
            const float factor = seen.total == 0 ? 0.0f : normalizer<S>(merged[half], p, head);
#pragma unroll
            for (u32 t = 0; t < kTiles; ++t)
                store_pair<S>(p, seen, head, warp * kWarpChannels + t * 8 + lane % 4 * 2, sums[t][2 * half],
                              sums[t][2 * half + 1], factor);
        }
    }
}

/// A CTA a (token, head): its chunks' records in order.
template <LatentMergeSpec M>
DG_KERNEL(kLatentMmaThreads, 4)
latent_merge(DG_GRID_CONSTANT const LatentMmaParams params) {
    using namespace latent_detail;
    constexpr LatentMmaSpec S{
        .compressed = M.compressed, .picks = M.picks, .sinks = M.sinks, .rotate = M.rotate, .split = true};
    static_assert(kLatentMmaThreads * 2 == kFp8RowChannels);
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const AttentionParams& p = params.attention;
    const u32 token = ptx::block_index() / p.heads, head = ptx::block_index() % p.heads;
    const u32 groups = ceil_div(p.heads, kLatentMmaHeads), channel = ptx::thread_index() * 2;
    const Seen<S> seen(p, token);
    Merged merged;
    float first = 0, second = 0;
    const u32 chunks = ceil_div(seen.total, kLatentChunk);
#pragma unroll 4
    for (u32 chunk = 0; chunk < chunks; ++chunk) {
        const u64 unit = (static_cast<u64>(token) * groups + head / kLatentMmaHeads) * params.chunks + chunk;
        const float* record =
            params.records + (unit * kLatentMmaHeads + head % kLatentMmaHeads) * kLatentRecord;
        const ptx::Float2 stats = ptx::ld_global_v2_f32(record + kFp8RowChannels),
                          sums = ptx::ld_global_v2_f32(record + channel);
        const Factors factors = merged.add(stats.x, stats.y);
        first = factors.apply(first, sums.x);
        second = factors.apply(second, sums.y);
    }
    const float factor = seen.total == 0 ? 0.0f : normalizer<S>(merged, p, head);
    store_pair<S>(p, seen, head, channel, first, second, factor);
}

}  // namespace deep_gemm
