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

/// The rows of all tokens of the CTA, chunk by chunk; zeros where there is none. What comes next is looked up
/// meanwhile, and the readers fence: a fence here would wait for that.
template <LatentMmaSpec S>
DG_DEVICE void load_tokens_rows(const AttentionParams& p, ptx::SharedAddress smem) {
    constexpr LatentWideSmem kPlan = plan_latent_wide();
    const u32 groups = ceil_div(p.heads, kLatentWideHeads), warp = ptx::warp_index() % 4;
    pipe::Cursor<kLatentWideStages> at;
    for (u32 unit = ptx::block_index(); unit < p.tokens * groups; unit += ptx::grid_size()) {
        const Seen<S> seen(p, unit / groups);
        WarpRows found = find_rows<S, kWideWarpRows>(p, seen, 0);
        for (u32 base = 0; base < seen.total; base += kLatentChunk) {
            const ptx::SharedAddress rows = smem + kPlan.rows + at.stage * (kLatentSlabs * kLatentSlabBytes),
                                     full = smem + kPlan.barriers + at.stage * 16;
            const u32 present = found.present;
#pragma unroll 1
            for (u32 first = 0; first < kWideWarpRows; first += kWideAtOnce) {
                const RowBatch<kWideAtOnce> batch(found, first);
                if (first == 0) ptx::mbarrier_wait(full + 8, at.phase ^ 1);
                if (first + kWideAtOnce == kWideWarpRows)  // while the last ones arrive
                    found = find_rows<S, kWideWarpRows>(p, seen, base + kLatentChunk);
                batch.store(warp * kWideWarpRows + first,
                            [rows](u32 row, u32 unit) { return slab_unit(rows, row, unit); });
            }
            if (ptx::lane_index() == 0)
                ptx::st_shared_u16(smem + kPlan.present + at.stage * 8 + warp * 2, present);
            ptx::sync_warp();
            if (ptx::lane_index() == 0) ptx::mbarrier_arrive(full);
            at.advance();
        }
    }
}

}  // namespace deep_gemm::latent_detail
