// From accumulators to y in a weight-only GEMM: scales that come last, bias, residual, one rounding. A warp
// has 16 rows of W, which are neighbours in y, for every token: 16-bit results are transposed by stmatrix so
// that a lane writes 16 bytes of a token's row.
//
//   accumulator 4 j + 2 r + b of a lane: row lane / 4 + 8 r of the warp's 16, token 8 j + 2 (lane % 4) + b
#pragma once

#include <deep_gemm/kernel/gemv_store.h>
#include <deep_gemm/sched/weight_blocks.h>
#include <deep_gemm/tile/decode.h>
#include <deep_gemm/tile/weight_smem.h>
#include <deep_gemm/ptx/narrow.h>

namespace deep_gemm::kernel {

/// The place of a lane's results.
struct WeightPlace {
    u32 row, token;  // of accumulator 0
    u32 warp_row, block_token;
};

/// y[token][row] and what has its layout, visited token by token: a pointer, moved on, is one register pair
/// where products of indices would be many.
template <WeightGemmSpec S, typename Visit>
DG_DEVICE void each_token(u64 base, u64 stride, u32 row, u32 token, Visit visit) {
    ptx::pin(token);
    u64 at = base + (token * stride + row) * bytes_of(S.y);
    const u64 next = stride * bytes_of(S.y), next_eight = 7 * next;
#pragma unroll
    for (u32 i = 0; i < S.block_m / 8; ++i) {
        visit(4 * i, token + 8 * i, at);
        at += next;
        ptx::pin(at);
        visit(4 * i + 1, token + 8 * i + 1, at);
        at += next_eight;
        ptx::pin(at);
    }
}

template <WeightGemmSpec S, u32 Count>
DG_DEVICE void add_residual(const WeightGemmParams& p, const WeightPlace& place, float (&sum)[Count]) {
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        if (place.row + 8 * r >= p.n) continue;
        each_token<S>(reinterpret_cast<u64>(p.residual), p.residual_stride, place.row + 8 * r, place.token,
                      [&](u32 i, u32 token, u64 at) {
                          float& value = sum[i + 2 * r];
                          if (token < p.m)
                              value =
                                  ptx::add_rn(value, load_value<S.y>(reinterpret_cast<const void*>(at), 0));
                      });
    }
}

/// The one scale of each of a lane's rows of a matrix.
DG_DEVICE void load_row_scales(const WeightGemmParams& p, u32 matrix, const WeightPlace& place,
                               float (&scale)[2]) {
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        const u32 row = place.row + 8 * r;
        scale[r] = ptx::ld_cached_f32(static_cast<const float*>(p.matrix[matrix].scales) +
                                      (row < p.n ? row : p.n - 1));
    }
}

/// Bias, then residual.
template <WeightGemmSpec S, u32 Count>
DG_DEVICE void add_operands(const WeightGemmParams& p, const WeightPlace& place, float (&sum)[Count]) {
    if (p.bias != nullptr) {
        float bias[2];
#pragma unroll
        for (u32 r = 0; r < 2; ++r)
            bias[r] = load_value<S.y>(p.bias, place.row + 8 * r < p.n ? place.row + 8 * r : p.n - 1);
#pragma unroll
        for (u32 i = 0; i < Count; ++i) sum[i] = ptx::add_rn(sum[i], bias[i / 2 % 2]);
    }
    if (p.residual != nullptr) add_residual<S>(p, place, sum);
}

/// What the sums are multiplied by; `unit` is what they are kept in.
template <WeightGemmSpec S, u32 Count>
DG_DEVICE void scale_sums(const WeightGemmParams& p, u32 matrix, const WeightPlace& place,
                          const float (&unit)[2], float (&sum)[Count]) {
    constexpr QuantRow kRow = row_of(S.w);
    float scale[2] = {1, 1}, unit_of_sum[2] = {unit[0], unit[1]};
    if constexpr (kRow.element_bits == 4 && changes_units(S.w))
        for (float& u : unit_of_sum) u = ptx::mul_rn(u, tile::kInt4Remainder);
    if constexpr (kRow.scale != ScaleType::none && kRow.block_k == 0)
        load_row_scales(p, matrix, place, scale);
#pragma unroll
    for (u32 i = 0; i < Count; ++i) {
        float& value = sum[i];
        const u32 r = i / 2 % 2;
        if constexpr (changes_units(S.w)) value = ptx::mul_rn(value, unit_of_sum[r]);
        if constexpr (kRow.element == Format::int8 && kRow.element_bits == 8)
            value = ptx::mul_rn(value, tile::kInt8Remainder);
        if constexpr (kRow.element == Format::fp4_e2m1 && kRow.scale != ScaleType::ue8m0)
            value = ptx::mul_rn(value, tile::e2m1_remainder(kRow.scale));
        if constexpr (kRow.scale != ScaleType::none && kRow.block_k == 0)
            value = ptx::mul_rn(value, scale[r]);
        if constexpr (kRow.has_global) value = ptx::mul_rn(value, p.matrix[matrix].global_scale);
    }
}

/// The same for sums of integers: (scale of the row * scale of the token) * sum.
template <WeightGemmSpec S, u32 Count>
DG_DEVICE void scale_integers(const WeightGemmParams& p, u32 matrix, const WeightPlace& place,
                              const i32 (&integer)[Count], float (&sum)[Count]) {
    float scale[2];
    load_row_scales(p, matrix, place, scale);
    // A lane loads every 32nd token's scale and gets those of its own tokens from the others.
    u32 loaded[ceil_div(S.block_m, 32u)];
#pragma unroll
    for (u32 i = 0; i < ceil_div(S.block_m, 32u); ++i) {
        const u32 token = place.block_token + i * 32 + ptx::lane_index();
        loaded[i] = ptx::float_bits(
            ptx::ld_cached_f32(p.x_scale + (token < p.m ? token : p.m - 1) * p.x_scale_stride));
    }
#pragma unroll
    for (u32 i = 0; i < Count; i += 4) {
#pragma unroll
        for (u32 b = 0; b < 2; ++b) {
            const u32 lane = i * 2 % 32 + ptx::lane_index() % 4 * 2 + b;
            const float of_token = ptx::float_of_bits(ptx::shfl_idx(loaded[i / 16], lane));
#pragma unroll
            for (u32 r = 0; r < 2; ++r)
                sum[i + 2 * r + b] =
                    ptx::mul_rn(ptx::mul_rn(scale[r], of_token), static_cast<float>(integer[i + 2 * r + b]));
        }
    }
}

/// fp32: eight lanes write 32 bytes of a token's row.
template <WeightGemmSpec S, u32 Count>
DG_DEVICE void store_wide(const WeightGemmParams& p, const WeightPlace& place, const float (&sum)[Count]) {
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        if (place.row + 8 * r >= p.n) continue;
        each_token<S>(reinterpret_cast<u64>(p.y), p.y_stride, place.row + 8 * r, place.token,
                      [&](u32 i, u32 token, u64 at) {
                          if (token < p.m) store_value<S.y>(reinterpret_cast<void*>(at), 0, sum[i + 2 * r]);
                      });
    }
}

template <Format Y>
DG_DEVICE u32 pack_pair(float low, float high) {
    if constexpr (Y == Format::bf16) return ptx::cvt_bf16x2(low, high);
    return ptx::cvt_f16_f32(low) | static_cast<u32>(ptx::cvt_f16_f32(high)) << 16;
}

/// Sixteen bytes of a token's row, `rows` of whose eight elements exist.
DG_DEVICE void store_eight(u8* address, const ptx::UInt4& v, u32 rows, bool vector) {
    if (vector && rows >= 8) {
        ptx::st_global_v4_u32(address, v.x, v.y, v.z, v.w);
        return;
    }
    const u32 word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (u32 i = 0; i < 8; ++i)
        if (i < rows) ptx::st_global_u16(address + 2 * i, static_cast<u16>(word[i / 2] >> i % 2 * 16));
}

/// A warpgroup, whose 64 rows are 128 bytes of a token's row: whole lines of memory. Its warps put
/// the results of 16 tokens side by side in one half of their staging while those before go out of the other;
/// pieces of 16 bytes change places with the token's number, against bank conflicts. Scope: a warpgroup.
template <WeightGemmSpec S, u32 Count>
DG_DEVICE void store_lines(const WeightGemmParams& p, const WeightPlace& place, ptx::SharedAddress staging,
                           u32 warp, const float (&sum)[Count]) {
    constexpr u32 kTokens = 16, kRowBytes = kMmaRows * 2, kChunks = S.block_m / kTokens;
    constexpr u32 kFirstBarrier = 5;  // behind join_matrices()
    static_assert(2 * kTokens * kRowBytes <= 4 * kStagedBytes);
    const u32 lane = ptx::lane_index(), in_group = warp % 4;
    ptx::pin(staging);
    const auto at = [staging](u32 chunk, u32 token, u32 piece) {
        return staging + (chunk % 2 * kTokens + token) * kRowBytes + (piece ^ token % 8) * 16;
    };
    const auto put = [&](u32 chunk) {
        const u32 i = chunk * kTokens / 2;
        ptx::stmatrix_x4_trans(at(chunk, lane / 16 * 8 + lane % 8, in_group * 2 + lane / 8 % 2),
                               pack_pair<S.y>(sum[i], sum[i + 1]), pack_pair<S.y>(sum[i + 2], sum[i + 3]),
                               pack_pair<S.y>(sum[i + 4], sum[i + 5]),
                               pack_pair<S.y>(sum[i + 6], sum[i + 7]));
    };
    const u32 token = in_group * 4 + lane / 8, piece = lane % 8;
    const u32 row = place.warp_row - in_group * 16 + piece * 8;
    u32 index = place.block_token + token;
    ptx::pin(index);
    u8* y = static_cast<u8*>(p.y) + (index * p.y_stride + row) * 2;
    const auto meet = [warp] { ptx::named_barrier_sync(kFirstBarrier + warp / 4, kWarpgroup); };
    if constexpr (num_matrices_of(S) == 2) meet();  // join_matrices() has been through all of the staging
    put(0);
#pragma unroll
    for (u32 chunk = 0; chunk < kChunks; ++chunk, index += kTokens, y += 2 * kTokens * p.y_stride) {
        meet();
        const ptx::UInt4 v = ptx::ld_shared_v4_u32(at(chunk, token, piece));
        if (chunk + 1 < kChunks) put(chunk + 1);
        if (index < p.m && row < p.n) store_eight(y, v, p.n - row, p.vector_y != 0);
    }
    // The half that the next results are put in has been read before the last barrier, where halves took turns
    // evenly; join_matrices() needs both.
    if constexpr (kChunks % 2 != 0 || num_matrices_of(S) == 2) meet();
}

/// Which matrix a math warp multiplies, and where a lane's results of a block are.
template <WeightGemmSpec S>
DG_DEVICE u32 matrix_of_warp(u32 warp) {
    return num_matrices_of(S) == 1 ? 0 : warp / 4;
}
template <WeightGemmSpec S>
DG_DEVICE WeightPlace weight_place(const sched::WeightBlock& block, u32 warp) {
    const u32 lane = ptx::lane_index(), row = block.row + warp * 16 % matrix_rows_of(S);
    return {row + lane / 4, block.token + lane % 4 * 2, row, block.token};
}

/// SwiGLU: a warp of the second matrix hands its sums to the one of the first that has the same rows, lane by
/// lane, through both warps' staging. True for the warp that has the results.
template <WeightGemmSpec S, u32 Count>
DG_DEVICE bool join_matrices(const WeightGemmParams& p, tile::WeightSmem<S> smem, u32 warp,
                             float (&sum)[Count]) {
    constexpr u32 kHalf = kStagedBytes / 128, kChunk = Count < 2 * kHalf ? Count : 2 * kHalf;  // of a lane
    const u32 pair = warp % 4, lane = ptx::lane_index();
    const bool first = warp < 4;
    const auto at = [&](u32 i) { return smem.staging(pair + i / kHalf * 4) + (i % kHalf * 32 + lane) * 4; };
#pragma unroll
    for (u32 start = 0; start < Count; start += kChunk) {
        ptx::named_barrier_sync(1 + pair, 64);  // what was in staging is no longer needed
        if (!first)
#pragma unroll
            for (u32 i = 0; i < kChunk; ++i) ptx::st_shared_f32(at(i), sum[start + i]);
        ptx::named_barrier_sync(1 + pair, 64);
        if (first)
#pragma unroll
            for (u32 i = 0; i < kChunk; ++i)
                sum[start + i] = swiglu(sum[start + i], ptx::ld_shared_f32(at(i)), p.swiglu_limit);
    }
    ptx::sync_warp();  // every lane has read what the others' results may overwrite
    return first;
}

/// Scaled sums of a warp to y.
template <WeightGemmSpec S, u32 Count>
DG_DEVICE void store_sums(const WeightGemmParams& p, const WeightPlace& place, tile::WeightSmem<S> smem,
                          u32 warp, float (&sum)[Count]) {
    if constexpr (num_matrices_of(S) == 2)
        if (!join_matrices<S>(p, smem, warp, sum)) return;
    add_operands<S>(p, place, sum);
    if constexpr (S.y == Format::fp32)
        store_wide<S>(p, place, sum);
    else
        store_lines<S>(p, place, smem.staging(warp / 4 * 4), warp, sum);
}

}  // namespace deep_gemm::kernel
