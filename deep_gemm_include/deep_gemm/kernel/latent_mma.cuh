// Latent attention on tensor cores (spec/latent_mma.h). Called by op/attention.cpp.
#pragma once

#include <deep_gemm/kernel/latent_chunk.h>

namespace deep_gemm {

namespace latent_detail {

/// Rows of a chunk as bf16 into shared memory, some at a time: all of the warp's where it has no other chunk;
/// zeros where there is none.
template <LatentMmaSpec S>
DG_DEVICE void load_rows(const WarpRows& found, ptx::SharedAddress smem) {
    constexpr LatentMmaSmem kPlan = plan_smem(S);
    constexpr u32 kAtOnce = S.split ? kWarpRows : kWarpRows / 2;
    const u32 lane = ptx::lane_index(), first = ptx::warp_index() * kWarpRows;
    if (lane < kWarpRows)
        ptx::st_shared_u32(smem + kPlan.present + (first + lane) * 4, found.present >> lane & 1);
#pragma unroll 1
    for (u32 row = 0; row < kWarpRows; row += kAtOnce)
        RowBatch<kAtOnce>(found, row).store(first + row, [&](u32 of, u32 unit) {
            return smem + kPlan.rows + of * kPitchBytes + unit * 16;
        });
}

/// The heads' queries on their way to shared memory, until cp_async_wait(); zeros beyond the last head.
template <LatentMmaSpec S>
DG_DEVICE void load_queries(const AttentionParams& p, u32 token, u32 first_head, ptx::SharedAddress smem) {
    constexpr LatentMmaSmem kPlan = plan_smem(S);
    constexpr u32 kPieces = kFp8RowChannels / 8;  // of 16 bytes
    for (u32 i = ptx::thread_index(); i < latent_heads_of(S) * kPieces; i += kLatentMmaThreads) {
        const u32 head = i / kPieces, piece = i % kPieces;
        const bool there = first_head + head < p.heads;
        const u8* from = static_cast<const u8*>(p.q.data) +
                         (token * p.q.stride + (there ? first_head + head : 0) * p.q.inner_stride) * 2 +
                         piece * 16;
        ptx::cp_async_16(smem + kPlan.queries + head * kPitchBytes + piece * 16, from, there ? 16 : 0);
    }
    ptx::cp_async_commit();
}

/// The weighted sums of the chunk's rows: all heads, channels t * 8 to t * 8 + 15 of the warp's 64. A lane
/// has channels lane % 4 * 2 and the next of each eight, of heads lane / 4 and that plus 8.
template <LatentMmaSpec S>
DG_DEVICE void add_rows(float (&sums)[S.tiles][2][4], u32 t, ptx::SharedAddress smem) {
    constexpr LatentMmaSmem kPlan = plan_smem(S);
    const u32 lane = ptx::lane_index();
    const ptx::SharedAddress weights = smem + kPlan.weights + lane % 16 * kWeightPitchBytes + lane / 16 * 16;
    const ptx::SharedAddress rows =
        smem + kPlan.rows + lane % 16 * kPitchBytes + (ptx::warp_index() * kWarpChannels + lane / 16 * 8) * 2;
#pragma unroll 1  // else what is equal for all channels fills the registers
    for (u32 k = 0; k < kLatentChunk; k += 16) {
        u32 b[4];
        ptx::ldmatrix_x4_trans(b, rows + k * kPitchBytes + t * 16);
#pragma unroll
        for (u32 tile = 0; tile < S.tiles; ++tile) {
            u32 a[4];
            ptx::ldmatrix_x4(a, weights + tile * kLatentMmaHeads * kWeightPitchBytes + k * 2);
            ptx::mma_m16n8k16_bf16(sums[tile][0], a, b[0], b[1]);
            ptx::mma_m16n8k16_bf16(sums[tile][1], a, b[2], b[3]);
        }
    }
}

}  // namespace latent_detail

template <LatentMmaSpec S>
DG_KERNEL(kLatentMmaThreads, 2)
latent_mma(DG_GRID_CONSTANT const LatentMmaParams params) {
    using namespace latent_detail;
    static_assert(S.tiles == 1 || !S.split);
    constexpr LatentMmaSmem kPlan = plan_smem(S);
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const AttentionParams& p = params.attention;
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 groups = ceil_div(p.heads, latent_heads_of(S)), chunks = S.split ? params.chunks : 1;
    const u32 unit = ptx::block_index() / chunks, token = unit / groups,
              first_head = unit % groups * latent_heads_of(S);
    const Seen<S> seen(p, token);
    const u32 lane = ptx::lane_index(), warp = ptx::warp_index();
    const u32 begin = S.split ? ptx::block_index() % chunks * kLatentChunk : 0;
    const u32 end = S.split ? begin + kLatentChunk : seen.total;
    if (S.split && begin >= seen.total) return;

    float sums[S.tiles][kTiles][4] = {};
    Merged merged;
    if (seen.total > 0) load_queries<S>(p, token, first_head, smem);
    WarpRows found = find_rows<S, kWarpRows>(p, seen, begin);
    for (u32 base = begin; base < end; base += kLatentChunk) {
        load_rows<S>(found, smem);
        if constexpr (!S.split)
            found = find_rows<S, kWarpRows>(p, seen, base + kLatentChunk);  // arrives meanwhile
        ptx::cp_async_wait<0>();
        ptx::sync_threads();
        score_rows<S>(smem, p.scale);
        ptx::sync_threads();
        weigh<S>(merged, smem);
        ptx::sync_threads();
        ptx::Float2 stats[S.tiles][2];  // of heads lane / 4 and that plus 8 of a tile
        float* records[2];
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 head = lane / 4 + half * 8;
#pragma unroll
            for (u32 tile = 0; tile < S.tiles; ++tile)
                stats[tile][half] =
                    ptx::ld_shared_v2_f32(smem + kPlan.stats + (tile * kLatentMmaHeads + head) * 8);
            if constexpr (S.split) {
                records[half] =
                    params.records +
                    (static_cast<u64>(ptx::block_index()) * kLatentMmaHeads + head) * kLatentRecord;
                if (warp == 0 && lane % 4 == 0)
                    ptx::st_global_v2_f32(records[half] + kFp8RowChannels, stats[0][half].x,
                                          stats[0][half].y);
            }
        }
#pragma unroll
        for (u32 t = 0; t < kTiles; t += 2) {
            float chunk[S.tiles][2][4] = {};
            add_rows<S>(chunk, t, smem);
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {  // of two tiles of channels, and pairs of them
                const u32 of = i / 4, half = i / 2 % 2, at = i % 4;
                if constexpr (S.split) {
                    if (at % 2 == 0)
                        ptx::st_global_v2_f32(
                            records[half] + warp * kWarpChannels + (t + of) * 8 + lane % 4 * 2,
                            chunk[0][of][at], chunk[0][of][at + 1]);
                } else {
#pragma unroll
                    for (u32 tile = 0; tile < S.tiles; ++tile)
                        sums[tile][t + of][at] = Factors{stats[tile][half].x, stats[tile][half].y}.apply(
                            sums[tile][t + of][at], chunk[tile][of][at]);
                }
            }
        }
        if (!S.split) ptx::sync_threads();
    }
    if constexpr (!S.split) {
        const ptx::SharedAddress stats = stats_of_lane<S>(smem);
        const u32 of_lane = first_head + warp * kHeadsOfWarp<S> + lane;
        if (lane < kHeadsOfWarp<S> && of_lane < p.heads)
            ptx::st_shared_f32(stats, normalizer<S>(merged, p, of_lane));
        ptx::sync_threads();
        const Seen<S> again(p, token);  // what the loop need not keep in registers
#pragma unroll
        for (u32 i = 0; i < 2 * S.tiles; ++i) {
            const u32 tile = i / 2, half = i % 2, of_cta = tile * kLatentMmaHeads + lane / 4 + half * 8;
            if (first_head + of_cta >= p.heads) continue;
            const float factor = ptx::ld_shared_f32(smem + kPlan.stats + of_cta * 8);
#pragma unroll
            for (u32 t = 0; t < kTiles; ++t)
                store_pair<S>(p, again, first_head + of_cta, warp * kWarpChannels + t * 8 + lane % 4 * 2,
                              sums[tile][t][2 * half], sums[tile][t][2 * half + 1], factor);
        }
    }
}

constexpr u32 kMergedAtOnce = 11;  // records on their way: all of a window of 128 rows and 512 chosen ones

/// A CTA a (token, head): its chunks' records in order.
template <LatentMergeSpec M>
DG_KERNEL(kLatentMmaThreads, 2)
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
    const u64 unit = (static_cast<u64>(token) * groups + head / kLatentMmaHeads) * params.chunks;
    const float* record = params.records + (unit * kLatentMmaHeads + head % kLatentMmaHeads) * kLatentRecord;
#pragma unroll 1
    for (u32 base = 0; base < chunks; base += kMergedAtOnce) {
        ptx::Float2 stats[kMergedAtOnce], sums[kMergedAtOnce];
#pragma unroll
        for (u32 i = 0; i < kMergedAtOnce; ++i) {
            if (base + i >= chunks) break;
            const float* of = record + u64{base + i} * kLatentMmaHeads * kLatentRecord;
            stats[i] = ptx::ld_global_v2_f32(of + kFp8RowChannels);
            sums[i] = ptx::ld_global_v2_f32(of + channel);
        }
#pragma unroll
        for (u32 i = 0; i < kMergedAtOnce; ++i) {
            if (base + i >= chunks) break;
            const Factors factors = merged.add(stats[i].x, stats[i].y);
            first = factors.apply(first, sums[i].x);
            second = factors.apply(second, sums[i].y);
        }
    }
    const float factor = seen.total == 0 ? 0.0f : normalizer<S>(merged, p, head);
    store_pair<S>(p, seen, head, channel, first, second, factor);
}

}  // namespace deep_gemm
