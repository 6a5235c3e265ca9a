// Queries and rows on their way to shared memory in latent attention of few tokens, and what becomes of them
// there: norm and rotation of queries, bf16 of FP8 rows. Loops stay short: straight-line code of a kernel that
// runs for microseconds costs more to fetch than to run.
#pragma once

#include <deep_gemm/kernel/latent_chunk.h>

namespace deep_gemm::latent_detail {

constexpr u32 kHeadQuads = kFp8RowChannels / 4;  // a lane has one of each 32
constexpr u32 kQuadsOfLane = kHeadQuads / 32;

/// The queries of the warp's heads on their way to shared memory; zeros beyond the last head.
template <LatentMmaSpec S>
DG_DEVICE void fetch_queries(const AttentionParams& p, u32 token, u32 first_head, ptx::SharedAddress smem) {
    constexpr u32 kPieces = kFp8RowChannels / 8;  // of 16 bytes
#pragma unroll 2
    for (u32 i = ptx::lane_index(); i < kHeadsOfWarp<S> * kPieces; i += 32) {
        const u32 head = ptx::warp_index() * kHeadsOfWarp<S> + i / kPieces, piece = i % kPieces;
        const bool there = first_head + head < p.heads;
        const u8* from = static_cast<const u8*>(p.q.data) +
                         (token * p.q.stride + (there ? first_head + head : 0) * p.q.inner_stride) * 2 +
                         piece * 16;
        ptx::cp_async_16(smem + plan_smem(S).queries + head * kPitchBytes + piece * 16, from, there ? 16 : 0);
    }
}

/// Norm and rotation of the warp's queries where they are, as what rope() does to them. Whole warps call.
template <LatentMmaSpec S>
DG_DEVICE void turn_queries(float eps, bool turns, const tile::Rotation (&by)[2], ptx::SharedAddress smem) {
#pragma unroll 1  // less code to fetch
    for (u32 i = 0; i < kHeadsOfWarp<S>; ++i) {
        const ptx::SharedAddress head = smem + plan_smem(S).queries +
                                        (ptx::warp_index() * kHeadsOfWarp<S> + i) * kPitchBytes +
                                        ptx::lane_index() * 8;
        tile::Float4 v[kQuadsOfLane];
        float squares[kQuadsOfLane];
#pragma unroll
        for (u32 quad = 0; quad < kQuadsOfLane; ++quad) {
            const ptx::UInt2 w = ptx::ld_shared_v2_u32(head + quad * 256);
            v[quad] = {ptx::bf16_low(w.x), ptx::bf16_high(w.x), ptx::bf16_low(w.y), ptx::bf16_high(w.y)};
            squares[quad] = tile::warp_sum(tile::add_squares(v[quad], 0));
        }
        float sum = squares[0];
#pragma unroll
        for (u32 quad = 1; quad < kQuadsOfLane; ++quad) sum = ptx::add_rn_f32(sum, squares[quad]);
        const float factor = tile::norm_factor(sum, kFp8RowChannels, eps);
#pragma unroll
        for (u32 quad = 0; quad < kQuadsOfLane; ++quad) {
            tile::Float4 of = tile::times(v[quad], factor);
            if (quad + 1 == kQuadsOfLane && turns)
                tile::rotate(of.x, of.y, by[0]), tile::rotate(of.z, of.w, by[1]);
            ptx::st_shared_v2_u32(head + quad * 256, ptx::cvt_bf16x2(of.x, of.y),
                                  ptx::cvt_bf16x2(of.z, of.w));
        }
    }
}

/// A warp's rows on their way, as they lie in the cache, to where their bf16 will be. What unrolled loops over
/// rows in registers would need of code takes longer to fetch than to run.
struct RawRows {
    static constexpr u32 kPlainPieces = (kFp8RowChannels - kFp8RowRotated) / 16;  // of 16 bytes
    static constexpr u32 kPieces = kPlainPieces + kFp8RowRotated / 8;
    static_assert(kWarpRows * kPieces % 32 == 0 && 2 * (32 - kPlainPieces) == kPieces - kPlainPieces);
    ptx::SharedAddress at;
    ptx::Word2 scales{0x7f7f7f7fu, 0x7f7f7f7fu};  // of row `lane`

    DG_DEVICE RawRows(const WarpRows& found, ptx::SharedAddress first) : at(first) {
        const u32 lane = ptx::lane_index();
#pragma unroll 3
        for (u32 i = 0; i < kWarpRows * kPieces / 32; ++i) {
            const u32 row = (i * 32 + lane) / kPieces, piece = (i * 32 + lane) % kPieces;
            ptx::cp_async_16(at + row * kPitchBytes + piece * 16,
                             from_lane(found.place.values, row) + piece * 16,
                             (found.present >> row & 1) != 0 ? 16 : 0);
        }
        if (lane < kWarpRows && (found.present >> lane & 1) != 0)
            scales = ptx::ld_global_v2_u32(found.place.values + found.place.scales);
    }
    /// As bf16, when they have come. A lane has 16 codes, the last ones the rotated channels.
    DG_DEVICE void decode() const {
        const u32 lane = ptx::lane_index();
        const bool plain = lane < kPlainPieces;
        const u32 rotated = (kFp8RowChannels - kFp8RowRotated) * 2 + (lane - kPlainPieces) * 16;
        const u32 low = plain ? lane * 32 : rotated,
                  high = plain ? lane * 32 + 16 : rotated + (32 - kPlainPieces) * 16;
#pragma unroll 2
        for (u32 row = 0; row < kWarpRows; ++row) {
            const ptx::SharedAddress of = at + row * kPitchBytes;
            const ptx::UInt4 first = ptx::ld_shared_v4_u32(of + lane * 16);
            ptx::UInt4 second{};
            if (!plain) second = ptx::ld_shared_v4_u32(of + (lane + 32 - kPlainPieces) * 16);
            const u32 x = ptx::shfl_idx(scales.x, row), y = ptx::shfl_idx(scales.y, row);
            const u32 group = lane * 16 / kFp8RowGroup;
            u32 pair[8];
            decode_codes(pair, first, (group < 4 ? x : y) >> group % 4 * 8 & 0xff);
            ptx::sync_warp();  // all have read what others overwrite
            ptx::st_shared_v4_u32(of + low, plain ? ptx::UInt4{pair[0], pair[1], pair[2], pair[3]} : first);
            ptx::st_shared_v4_u32(of + high, plain ? ptx::UInt4{pair[4], pair[5], pair[6], pair[7]} : second);
        }
    }
};

}  // namespace deep_gemm::latent_detail
