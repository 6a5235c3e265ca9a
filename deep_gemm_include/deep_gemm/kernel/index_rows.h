// What the indexer's kernels on tensor cores share (spec/indexer.h): rows and heads as mma.sync takes them, and
// what the heads of a token give for sixteen rows of a warp.
#pragma once

#include <deep_gemm/spec/indexer.h>
#include <deep_gemm/tile/latent_row.h>
#include <deep_gemm/tile/order.h>
#include <deep_gemm/tile/visible_rows.h>
#include <deep_gemm/ptx/bytes.h>
#include <deep_gemm/ptx/convert.h>
#include <deep_gemm/ptx/mma_sync.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm::index_detail {

/// Eight channels of a head as they meet a row's: pairs of neighbours, or of every fourth, as FP4 rows give
/// them.
template <Format Rows>
DG_DEVICE ptx::UInt4 in_pairs(const ptx::UInt4& v) {
    if constexpr (Rows != Format::fp4_e2m1) return v;
    constexpr u32 kLow = 0x5410, kHigh = 0x7632;
    return {ptx::permute_bytes_or_signs(v.x, v.z, kLow), ptx::permute_bytes_or_signs(v.x, v.z, kHigh),
            ptx::permute_bytes_or_signs(v.y, v.w, kLow), ptx::permute_bytes_or_signs(v.y, v.w, kHigh)};
}

/// Where piece `piece` of a head lies. The four lanes of a row have 16 bytes each of every 64; of FP4 rows a
/// lane has 32 neighbouring channels, which are four of its pieces.
template <Format Rows>
DG_DEVICE u32 place_of(u32 piece) {
    return Rows == Format::fp4_e2m1 ? piece % 4 * 64 + piece / 4 * 16 : piece * 16;
}

/// Eight codes times a scale's first factor: pair i is codes i and i + 4. A product puts a code twice, so that
/// one has its magnitude and the other one its sign where a bf16 has them, 2^126 too small.
DG_DEVICE ptx::UInt4 decode_word(u32 word, u32 factor) {
    constexpr u32 kEven = 0x000f000fu, kOdd = 0x00f000f0u, kKept = 0x81c081c0u;
    constexpr u32 kMagnitude = 1 << 6, kSign = 1 << 12;  // how far an even code moves
    const auto pair = [&](u32 codes, u32 places) {
        return ptx::mul_bf16x2((codes * places) & kKept, factor);
    };
    const u32 upper = word >> 8;
    return {pair(word & kEven, kMagnitude + kSign), pair(word & kOdd, (kMagnitude + kSign) >> 4),
            pair(upper & kEven, kMagnitude + kSign), pair(upper & kOdd, (kMagnitude + kSign) >> 4)};
}

/// A UE8M0 scale times 2^126, as two factors, each a pair of bf16: the second is 1 but for large scales.
/// Products with the first are exact unless they are the last.
struct Fp4Factors {
    static constexpr u32 kMost = 128;  // exponents up to this need the first alone
    u32 first, second;

    DG_DEVICE explicit Fp4Factors(u32 exponent)
        : first(((exponent < kMost ? exponent : kMost) + 126) * 0x00800080u),
          second(exponent == codec::kUe8m0Nan ? 0x7fff7fffu : (exponent - kMost + 127) * 0x00800080u) {}
};

constexpr u32 kLoads = kIndexMmaChannels / 32;

/// A lane's channels of a row as they lie in memory, and as the mma takes them. bf16: 16 bytes of each 64.
template <Format Rows>
struct StoredRow {
    ptx::UInt4 parts[kLoads] = {};

    DG_DEVICE void fetch(const LatentView& view, u32 sequence, u32 row) {
        const u8* at = static_cast<const u8*>(view.data) + tile::row_offset(view, sequence, row) * 2 +
                       ptx::lane_index() % 4 * 16;
#pragma unroll
        for (u32 load = 0; load < kLoads; ++load) parts[load] = ptx::ld_global_v4_u32(at + load * 64);
    }
    DG_DEVICE void decode(ptx::UInt4 (&into)[kLoads]) const {
#pragma unroll
        for (u32 load = 0; load < kLoads; ++load) into[load] = parts[load];
    }
};
/// Where a lane's channels of an FP4 row lie, and their scale.
struct Fp4Place {
    const u8 *codes, *exponent;

    DG_DEVICE Fp4Place(const LatentView& view, u64 page_offset, u32 in_page) {
        const u32 part = ptx::lane_index() % 4;
        const u8* page = static_cast<const u8*>(view.data) + page_offset;
        codes = page + in_page * kFp4RowBytes + part * 16;
        exponent = page + view.page_rows * kFp4RowBytes + in_page * kFp4RowScaleBytes + part;
    }
};
/// FP4: 32 neighbours, which share a scale.
template <>
struct StoredRow<Format::fp4_e2m1> {
    ptx::UInt4 codes = {};
    u32 exponent = 0;

    DG_DEVICE void fetch(const LatentView& view, u32 sequence, u32 row) {
        fetch(Fp4Place(view, tile::page_offset(view, sequence, row), row % view.page_rows));
    }
    /// `further`: rows of the same page.
    DG_DEVICE void fetch(const Fp4Place& at, u32 further = 0) {
        codes = ptx::ld_global_v4_u32(at.codes + further * kFp4RowBytes);
        exponent = ptx::ld_global_u8(at.exponent + further * kFp4RowScaleBytes);
    }
    DG_DEVICE void decode(ptx::UInt4 (&into)[kLoads]) const { decode<0>(into); }
    /// Words from `First` on.
    template <u32 First, u32 Count>
    DG_DEVICE void decode(ptx::UInt4 (&into)[Count]) const {
        const u32 words[] = {codes.x, codes.y, codes.z, codes.w};
        const Fp4Factors factors(exponent);
#pragma unroll
        for (u32 i = 0; i < Count; ++i) into[i] = decode_word(words[First + i], factors.first);
        if (exponent <= Fp4Factors::kMost) return;
#pragma unroll
        for (u32 i = 0; i < Count; ++i)
            into[i] = {ptx::mul_bf16x2(into[i].x, factors.second), ptx::mul_bf16x2(into[i].y, factors.second),
                       ptx::mul_bf16x2(into[i].z, factors.second),
                       ptx::mul_bf16x2(into[i].w, factors.second)};
    }
};

/// The weights of 64 heads of a token, to `weights`; zeros beyond the last.
DG_DEVICE void load_weights(const IndexScoreParams& p, u32 token, u32 first, ptx::SharedAddress weights) {
    const u32 head = ptx::thread_index();
    if (head < kIndexMmaHeads)
        ptx::st_shared_f32(weights + head * 4,
                           first + head < p.heads
                               ? ptx::ld_global_f32(p.weights + token * p.weights_stride + first + head)
                               : 0.0f);
}

/// Adds to the scores of a lane's rows what eight heads give: two of them a lane.
DG_DEVICE void add_dots(float (&score)[2], const float* dots, const ptx::Float2& weight) {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        score[half] = ptx::fma_rn_f32(weight.x, ptx::max_nan_f32(dots[2 * half], 0.0f), score[half]);
        score[half] = ptx::fma_rn_f32(weight.y, ptx::max_nan_f32(dots[2 * half + 1], 0.0f), score[half]);
    }
}

/// Adds what the heads in shared memory give to the scores of a lane's rows: of its heads, in order.
DG_DEVICE void add_heads(float (&score)[2], const ptx::UInt4 (&rows)[2][kLoads], ptx::SharedAddress smem) {
    constexpr u32 kTiles = kIndexMmaHeads / 8;
    const u32 lane = ptx::lane_index();
#pragma unroll 4  // with all eight, registers do not suffice for the next rows
    for (u32 t = 0; t < kTiles; ++t) {
        float dots[4] = {};
#pragma unroll
        for (u32 load = 0; load < kLoads; ++load) {
            const ptx::UInt4 q =
                ptx::ld_shared_v4_u32(smem + (t * 8 + lane / 4) * kIndexPitch + load * 64 + lane % 4 * 16);
            const ptx::UInt4 &a = rows[0][load], &b = rows[1][load];
            const u32 low[] = {a.x, b.x, a.y, b.y}, high[] = {a.z, b.z, a.w, b.w};
            ptx::mma_m16n8k16_bf16(dots, low, q.x, q.y);
            ptx::mma_m16n8k16_bf16(dots, high, q.z, q.w);
        }
        add_dots(score, dots, ptx::ld_shared_v2_f32(smem + kIndexWeights + (t * 8 + lane % 4 * 2) * 4));
    }
}

/// The scores of the warp's sixteen rows, the first of which is `first`, and the largest of them. Of the four
/// lanes of two rows, which have part of the sums of both, two have all of one in the end.
DG_DEVICE void store_scores(const IndexScoreParams& p, u32 token, u32 first, u32 visible,
                            const float (&score)[2]) {
    const u32 lane = ptx::lane_index();
    const bool upper = lane % 4 >= 2;
    float sum =
        ptx::add_rn_f32(upper ? score[1] : score[0], ptx::shfl_bfly_f32(upper ? score[0] : score[1], 2));
    sum = ptx::add_rn_f32(sum, ptx::shfl_bfly_f32(sum, 1)) * p.scale;
    const u32 row = first + lane / 4 + (upper ? 8 : 0);
    if (lane % 2 == 0 && row < visible) ptx::st_global_f32(p.scores + token * p.scores_stride + row, sum);
    if (!p.peaks) return;
    const u32 peak = ptx::warp_max_u32(row < visible ? tile::order_of(sum) : 0);
    if (lane == 0 && first < visible)
        ptx::st_global_u32(p.peaks + token * p.peaks_stride + first / kScoresOfPeak, peak);
}

}  // namespace deep_gemm::index_detail
