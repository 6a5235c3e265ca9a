// Grouped-query attention (spec/gqa.h): gqa_pieces attends, gqa_join joins. Called by op/gqa.cpp.
#pragma once

#include <deep_gemm/spec/gqa.h>
#include <deep_gemm/tile/narrow_copy.h>
#include <deep_gemm/tile/real.h>
#include <deep_gemm/tile/reduce.h>
#include <deep_gemm/ptx/math.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm {

namespace gqa_detail {

constexpr float kNothing = codec::float_of_bits(codec::kSignBit | codec::kInfinityBits);

/// The lane's channels of a row: d / 32 neighbours.
template <Format F, u32 Channels>
DG_DEVICE void load_channels(const void* data, u64 index, float (&out)[Channels]) {
    if constexpr (Channels == 4) {
        const tile::Float4 v = tile::load4<F>(data, index);
        out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
    } else {
#pragma unroll
        for (u32 c = 0; c < Channels; ++c) out[c] = tile::load<F>(data, index + c);
    }
}

/// Sums of eight values over the warp, a head's in its four lanes: lane l gets the sum of value l / 4. Halves
/// of the values change places with the partner's, so that 9 exchanges do the work of 40.
DG_DEVICE float sum_of_head(float (&v)[kGqaHeads]) {
    const u32 lane = ptx::lane_index();
#pragma unroll
    for (u32 mask = 16, count = kGqaHeads / 2; count > 0; mask /= 2, count /= 2) {
        const bool upper = (lane & mask) != 0;
#pragma unroll
        for (u32 i = 0; i < count; ++i) {
            const float kept = upper ? v[i + count] : v[i], given = upper ? v[i] : v[i + count];
            v[i] = ptx::add_rn_f32(kept, ptx::shfl_bfly_f32(given, mask));
        }
    }
    return tile::warp_sum<4>(v[0]);
}

/// The factor of a part with largest score `part` among parts whose largest is `all`.
DG_DEVICE float share(float part, float all) {
    return part == kNothing ? 0.0f : ptx::exp_f32(part - all);
}

/// What a warp has of its rows: the lane's head's softmax, and all heads' sums of the lane's channels.
template <GqaSpec S>
struct Part {
    static constexpr u32 kChannels = S.d / 32;
    float largest = kNothing, weights = 0;
    float sums[kGqaHeads][kChannels] = {};

    /// Rows [first, first + kGqaRows) of a kv head, as far as they are below `end`.
    DG_DEVICE void add(const GqaParams& p, u64 keys, u64 values, u32 first, u32 end,
                       const float (&q)[kGqaHeads][kChannels]) {
        float scores[kGqaRows], value[kGqaRows][kChannels] = {};
        // On their way while the scores are found.
#pragma unroll
        for (u32 r = 0; r < kGqaRows; ++r)
            if (first + r < end)
                load_channels<S.rows>(p.values.data, values + (first + r) * p.values.stride_row, value[r]);
#pragma unroll
        for (u32 r = 0; r < kGqaRows; ++r) {
            float key[kChannels] = {}, dots[kGqaHeads];
            if (first + r < end)
                load_channels<S.rows>(p.keys.data, keys + (first + r) * p.keys.stride_row, key);
#pragma unroll
            for (u32 h = 0; h < kGqaHeads; ++h) {
                dots[h] = ptx::mul_rn_f32(q[h][0], key[0]);
#pragma unroll
                for (u32 c = 1; c < kChannels; ++c) dots[h] = ptx::fma_rn_f32(q[h][c], key[c], dots[h]);
            }
            const float score = ptx::mul_rn_f32(sum_of_head(dots), p.scale);
            scores[r] = first + r < end ? score : kNothing;
        }
        float top = largest;
#pragma unroll
        for (u32 r = 0; r < kGqaRows; ++r) top = ptx::max_nan_f32(top, scores[r]);
        const float factor = share(largest, top);
        weights = ptx::mul_rn_f32(weights, factor);
#pragma unroll
        for (u32 r = 0; r < kGqaRows; ++r) {
            scores[r] = share(scores[r], top);
            weights = ptx::add_rn_f32(weights, scores[r]);
        }
        largest = top;
#pragma unroll
        for (u32 h = 0; h < kGqaHeads; ++h) {
            const float mine = ptx::shfl_idx_f32(factor, h * 4);
#pragma unroll
            for (u32 c = 0; c < kChannels; ++c) sums[h][c] = ptx::mul_rn_f32(sums[h][c], mine);
        }
#pragma unroll
        for (u32 r = 0; r < kGqaRows; ++r) {
#pragma unroll
            for (u32 h = 0; h < kGqaHeads; ++h) {
                const float weight = ptx::shfl_idx_f32(scores[r], h * 4);
#pragma unroll
                for (u32 c = 0; c < kChannels; ++c)
                    sums[h][c] = ptx::fma_rn_f32(weight, value[r][c], sums[h][c]);
            }
        }
    }

    /// As records of the warp's heads.
    DG_DEVICE void store(ptx::SharedAddress records) const {
        const u32 lane = ptx::lane_index();
#pragma unroll
        for (u32 h = 0; h < kGqaHeads; ++h)
#pragma unroll
            for (u32 c = 0; c < kChannels; ++c)
                ptx::st_shared_f32(records + (h * gqa_record(S.d) + lane * kChannels + c) * 4, sums[h][c]);
        if (lane % 4 != 0) return;
        const ptx::SharedAddress softmax = records + (lane / 4 * gqa_record(S.d) + S.d) * 4;
        ptx::st_shared_f32(softmax, largest);
        ptx::st_shared_f32(softmax + 4, weights);
    }
};

}  // namespace gqa_detail

/// A CTA a (token, kv head, group of its heads, piece). Pieces beyond the position are left as they are.
template <GqaSpec S>
DG_KERNEL(kGqaThreads, 3)
gqa_pieces(DG_GRID_CONSTANT const GqaParams p) {
    constexpr u32 kChannels = S.d / 32, kRecord = gqa_record(S.d);
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 kv_heads = p.heads / p.heads_per_kv, groups = ceil_div(p.heads_per_kv, kGqaHeads);
    u32 index = ptx::block_index();
    const u32 piece = index % p.pieces;
    index /= p.pieces;
    const u32 group = index % groups;
    index /= groups;
    const u32 kv_head = index % kv_heads, token = index / kv_heads;
    const i32 position = ptx::ld_global_s32(p.positions + token);
    const u32 sequence = tile::sequence_of(p.sequences, token);
    if (position < 0 || sequence >= p.num_sequences) return;
    const u32 seen = static_cast<u32>(position) + 1, end = seen < p.num_rows ? seen : p.num_rows;
    if (piece * kGqaSplit >= end) return;

    const u32 lane = ptx::lane_index(), warp = ptx::warp_index(), channel = lane * kChannels;
    const u32 first_head = kv_head * p.heads_per_kv + group * kGqaHeads;
    const u32 left = p.heads_per_kv - group * kGqaHeads, num_heads = left < kGqaHeads ? left : kGqaHeads;
    float q[kGqaHeads][kChannels] = {};
#pragma unroll
    for (u32 h = 0; h < kGqaHeads; ++h)
        if (h < num_heads)
            gqa_detail::load_channels<S.q>(
                p.q.data, token * p.q.stride + (first_head + h) * p.q.inner_stride + channel, q[h]);
    // Rows count from the sequence's first one; the offset of a page makes up for those of the pages before.
    u32 entry = sequence, first_row = 0;
    if (p.table != nullptr) {
        const u32 page = piece * kGqaSplit / p.page_rows;
        first_row = page * p.page_rows;
        entry = static_cast<u32>(
            ptx::ld_global_s32(p.table + static_cast<u64>(sequence) * p.table_stride + page));
    }
    const auto offset = [&](const GqaRows& rows) {
        return entry * rows.stride_sequence - first_row * rows.stride_row + kv_head * rows.stride_head +
               channel;
    };
    const u64 keys = offset(p.keys), values = offset(p.values);
    gqa_detail::Part<S> part;
    const u32 begin = piece * kGqaSplit + warp * kGqaWarpRows;
    const u32 stop = begin + kGqaWarpRows < end ? begin + kGqaWarpRows : end;
    for (u32 row = begin; row < stop; row += kGqaRows) part.add(p, keys, values, row, stop, q);
    const ptx::SharedAddress records = ptx::dynamic_smem() + plan_smem(S).records;
    part.store(records + warp * kGqaHeads * kRecord * 4);
    ptx::sync_threads();

    // The warps' records become one: a thread a (head, channel).
    for (u32 unit = ptx::thread_index(); unit < num_heads * S.d; unit += kGqaThreads) {
        const u32 head = unit / S.d, at = unit % S.d;
        float top = gqa_detail::kNothing, weights = 0, sum = 0;
#pragma unroll
        for (u32 w = 0; w < kGqaWarps; ++w)
            top = ptx::max_nan_f32(
                top, ptx::ld_shared_f32(records + ((w * kGqaHeads + head) * kRecord + S.d) * 4));
#pragma unroll
        for (u32 w = 0; w < kGqaWarps; ++w) {
            const ptx::SharedAddress record = records + (w * kGqaHeads + head) * kRecord * 4;
            const float factor = gqa_detail::share(ptx::ld_shared_f32(record + S.d * 4), top);
            weights = ptx::fma_rn_f32(factor, ptx::ld_shared_f32(record + (S.d + 1) * 4), weights);
            sum = ptx::fma_rn_f32(factor, ptx::ld_shared_f32(record + at * 4), sum);
        }
        float* record =
            p.records +
            ((static_cast<u64>(token) * p.heads + first_head + head) * p.pieces + piece) * kRecord;
        ptx::st_global_f32(record + at, sum);
        if (at == 0) ptx::st_global_v2_f32(record + S.d, top, weights);
    }
}

/// A warp a (token, head): the pieces' records in order. Idle rows: zeros.
template <GqaSpec S>
DG_KERNEL(32, 16)
gqa_join(DG_GRID_CONSTANT const GqaParams p) {
    constexpr u32 kChannels = S.d / 32, kRecord = gqa_record(S.d);
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 token = ptx::block_index() / p.heads, head = ptx::block_index() % p.heads;
    const i32 position = ptx::ld_global_s32(p.positions + token);
    const bool idle = position < 0 || tile::sequence_of(p.sequences, token) >= p.num_sequences;
    u32 pieces = 0;
    if (!idle) {
        const u32 seen = static_cast<u32>(position) / kGqaSplit + 1;
        pieces = seen < p.pieces ? seen : p.pieces;
    }
    const float* records = p.records + static_cast<u64>(ptx::block_index()) * p.pieces * kRecord;
    float top = gqa_detail::kNothing;
    for (u32 i = ptx::lane_index(); i < pieces; i += 32)
        top = ptx::max_nan_f32(top, ptx::ld_global_f32(records + i * kRecord + S.d));
    top = tile::warp_max(top);
    const u32 channel = ptx::lane_index() * kChannels;
    float weights = 0, sums[kChannels] = {};
#pragma unroll 4
    for (u32 i = 0; i < pieces; ++i) {
        const ptx::Float2 softmax = ptx::ld_global_v2_f32(records + i * kRecord + S.d);
        const float factor = gqa_detail::share(softmax.x, top);
        weights = ptx::fma_rn_f32(factor, softmax.y, weights);
        float part[kChannels];
        gqa_detail::load_channels<Format::fp32>(records, i * kRecord + channel, part);
#pragma unroll
        for (u32 c = 0; c < kChannels; ++c) sums[c] = ptx::fma_rn_f32(factor, part[c], sums[c]);
    }
    const u64 at = token * p.out.stride + head * p.out.inner_stride + channel;
#pragma unroll
    for (u32 c = 0; c < kChannels; ++c) {
        sums[c] = idle ? 0.0f : ptx::div_rn_f32(sums[c], weights);
        tile::store<S.out>(p.out.data, at + c, sums[c]);
    }
    static_assert(!S.fp8 || S.d == kGqaFp8Channels);
    if constexpr (S.fp8)
        tile::store_fp8_copy<ScaleRule::exact>(p.codes + static_cast<u64>(ptx::block_index()) * S.d,
                                               p.scales + ptx::block_index(), channel,
                                               tile::through_bf16({sums[0], sums[1], sums[2], sums[3]}));
}

}  // namespace deep_gemm
