// The loading warps of latent_wide: rows of a token's chunks as bf16 into a ring of stages, in slabs of 64
// channels. A slab is what wgmma reads for scores, rows by channels, and for the weighted sum, transposed.
#pragma once

#include <deep_gemm/kernel/latent_rows.h>
#include <deep_gemm/pipe/ring.h>
#include <deep_gemm/ptx/mbarrier.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm::latent_detail {

/// Where 16 bytes of a row, or of a head's queries or weights, lie: unit `unit` of its channels.
DG_DEVICE ptx::SharedAddress slab_unit(ptx::SharedAddress slabs, u32 row, u32 unit) {
    return slabs + unit / 8 * kLatentSlabBytes + row * 128 + (unit % 8 ^ row % 8) * 16;
}

constexpr u32 kWideWarpRows = kLatentChunk / 4, kWideAtOnce = 8;

/// Codes of some rows on their way: a lane has 16 channels of each, and eight rotated channels of two of
/// them.
struct WideBatch {
    static constexpr u32 kPlain = kFp8RowChannels - kFp8RowRotated, kRotatedUnits = kFp8RowRotated / 8;
    static constexpr u32 kRotatedRows = 32 / kRotatedUnits, kRotatedLoads = kWideAtOnce / kRotatedRows;
    ptx::UInt4 codes[kWideAtOnce] = {}, rotated[kRotatedLoads] = {};
    u32 scale[kWideAtOnce];

    /// Whole warps call.
    DG_DEVICE WideBatch(const WarpRows& found, u32 first) {
        const u32 lane = ptx::lane_index();
#pragma unroll
        for (u32 i = 0; i < kWideAtOnce; ++i) {
            const u8* values = from_lane(found.place.values, first + i);
            const u32 scales = ptx::shfl_idx(found.place.scales, first + i);
            scale[i] = 127;
            if ((found.present >> (first + i) & 1) != 0 && lane < kPlain / 16) {
                codes[i] = ptx::ld_global_v4_u32(values + lane * 16);
                scale[i] = ptx::ld_global_u8(values + scales + lane * 16 / kFp8RowGroup);
            }
        }
#pragma unroll
        for (u32 load = 0; load < kRotatedLoads; ++load) {
            const u32 row = first + load * kRotatedRows + lane / kRotatedUnits;
            const u8* values = from_lane(found.place.values, row);
            if ((found.present >> row & 1) != 0)
                rotated[load] = ptx::ld_global_v4_u32(values + kPlain + lane % kRotatedUnits * 16);
        }
    }
    /// `first`: row of the stage.
    DG_DEVICE void store(ptx::SharedAddress rows, u32 first) const {
        const u32 lane = ptx::lane_index();
#pragma unroll
        for (u32 i = 0; i < kWideAtOnce; ++i) {
            if (lane >= kPlain / 16) continue;
            u32 pair[8];
            decode_codes(pair, codes[i], scale[i]);
            ptx::st_shared_v4_u32(slab_unit(rows, first + i, lane * 2), {pair[0], pair[1], pair[2], pair[3]});
            ptx::st_shared_v4_u32(slab_unit(rows, first + i, lane * 2 + 1),
                                  {pair[4], pair[5], pair[6], pair[7]});
        }
#pragma unroll
        for (u32 load = 0; load < kRotatedLoads; ++load)
            ptx::st_shared_v4_u32(slab_unit(rows, first + load * kRotatedRows + lane / kRotatedUnits,
                                            kPlain / 8 + lane % kRotatedUnits),
                                  rotated[load]);
    }
};

/// The rows of all tokens of the CTA, chunk by chunk; zeros where there is none.
template <LatentMmaSpec S>
DG_DEVICE void load_tokens_rows(const AttentionParams& p, ptx::SharedAddress smem) {
    constexpr LatentWideSmem kPlan = plan_latent_wide();
    const u32 groups = ceil_div(p.heads, kLatentWideHeads), warp = ptx::warp_index() % 4;
    pipe::Cursor<kLatentWideStages> at;
    for (u32 unit = ptx::block_index(); unit < p.tokens * groups; unit += ptx::grid_blocks()) {
        const Seen<S> seen(p, unit / groups);
        WarpRows found = find_rows<S, kWideWarpRows>(p, seen, 0);
        for (u32 base = 0; base < seen.total; base += kLatentChunk) {
            const ptx::SharedAddress rows = smem + kPlan.rows + at.stage * (kLatentSlabs * kLatentSlabBytes),
                                     full = smem + kPlan.barriers + at.stage * 16;
            const u32 present = found.present;
#pragma unroll 1
            for (u32 first = 0; first < kWideWarpRows; first += kWideAtOnce) {
                const WideBatch batch(found, first);
                if (first == 0) ptx::mbarrier_wait(full + 8, at.phase ^ 1);
                batch.store(rows, warp * kWideWarpRows + first);
            }
            found = find_rows<S, kWideWarpRows>(p, seen, base + kLatentChunk);  // arrives meanwhile
            if (ptx::lane_index() == 0)
                ptx::st_shared_u32(smem + kPlan.present + at.stage * 16 + warp * 4, present & 0xffff);
            ptx::fence_proxy_async();  // wgmma reads the rows
            ptx::sync_warp();
            if (ptx::lane_index() == 0) ptx::mbarrier_arrive(full);
            at.advance();
        }
    }
}

}  // namespace deep_gemm::latent_detail
