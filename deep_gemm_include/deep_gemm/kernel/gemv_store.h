// From the sums of a block's warps to y: added in warp order, scaled, biased, rounded once.
#pragma once

#include <deep_gemm/ptx/convert.h>
#include <deep_gemm/ptx/global.h>
#include <deep_gemm/ptx/stream.h>
#include <deep_gemm/spec/gemv.h>

namespace deep_gemm::kernel {

template <Format Y>
DG_DEVICE float load_value(const void* base, u64 index) {
    const u8* address = static_cast<const u8*>(base) + index * bytes_of(Y);
    if constexpr (Y == Format::fp32) return ptx::ld_global_f32(address);
    if constexpr (Y == Format::bf16) return ptx::ld_global_bf16(address);
    return ptx::cvt_f32_f16(ptx::ld_global_u16(address));
}

template <Format Y>
DG_DEVICE void store_value(void* base, u64 index, float value) {
    u8* address = static_cast<u8*>(base) + index * bytes_of(Y);
    if constexpr (Y == Format::fp32)
        ptx::st_global_f32(address, value);
    else
        ptx::st_global_u16(address, Y == Format::bf16 ? ptx::cvt_bf16_f32(value) : ptx::cvt_f16_f32(value));
}

/// v / (1 + e^-v), and 0 at minus infinity.
DG_DEVICE float silu(float v) {
    constexpr float kMinusLog2E = -1.4426950408889634f;
    return ptx::div_rn(v, ptx::add_rn(1.0f, ptx::exp2_approx(ptx::mul_rn(v, kMinusLog2E))));
}

DG_DEVICE float swiglu(float gate, float up, float limit) {
    if (limit > 0) {
        gate = gate > limit ? limit : gate;  // NaN stays
        up = up > limit ? limit : up < -limit ? -limit : up;
    }
    return ptx::mul_rn(silu(gate), up);
}

/// The row's one scale; 1 where it has none or several.
template <GemvSpec S>
DG_DEVICE float row_scale(const GemvMatrix& w, u32 row) {
    constexpr QuantRow kRow = row_of(S.w);
    if constexpr (kRow.scale == ScaleType::none || kRow.block_k != 0) return 1.0f;
    return ptx::ld_cached_f32(static_cast<const u8*>(w.scales) + row * 4ull);
}

/// What stands before bias and residual: the row's one scale and the matrix's.
template <GemvSpec S>
DG_DEVICE float scaled(const GemvMatrix& w, float row_scale, float sum) {
    constexpr QuantRow kRow = row_of(S.w);
    if constexpr (kRow.scale != ScaleType::none && kRow.block_k == 0) sum = ptx::mul_rn(sum, row_scale);
    if constexpr (kRow.has_global) sum = ptx::mul_rn(sum, w.global_scale);
    return sum;
}

/// y[token][row] = value + bias[row] + residual[token][row], in this order.
template <GemvSpec S>
DG_DEVICE void finish(const GemvMatrix& w, u32 token, u32 row, float value) {
    if (w.bias) value = ptx::add_rn(value, load_value<S.y>(w.bias, row));
    if (w.residual) value = ptx::add_rn(value, load_value<S.y>(w.residual, token * w.residual_stride + row));
    store_value<S.y>(w.y, token * w.y_stride + row, value);
}

/// Which matrix and which of its rows a block computes.
struct GemvBlock {
    u32 matrix, first_row, end_row;
};

template <GemvSpec S>
DG_DEVICE GemvDeal deal_of(const GemvParams& p) {
    if constexpr (may_deal_evenly(S)) return p.deal;
    return {0, block_rows_of(S)};
}
/// Tiles of a matrix of n rows.
template <GemvSpec S>
DG_DEVICE u32 num_tiles(const GemvParams& p, u32 n) {
    const GemvDeal deal = deal_of<S>(p);
    return deal.whole_tiles + ceil_div(n - deal.whole_tiles * block_rows_of(S), deal.rest_rows);
}

/// Blocks of rows of all matrices.
template <GemvSpec S>
DG_DEVICE u32 num_blocks(const GemvParams& p) {
    u32 blocks = num_tiles<S>(p, p.w[0].n);
    if constexpr (S.epilogue == GemvEpilogue::none)
        for (u32 matrix = 1; matrix < p.num_matrices; ++matrix) blocks += num_tiles<S>(p, p.w[matrix].n);
    return blocks;
}

template <GemvSpec S>
DG_DEVICE GemvBlock find_block(const GemvParams& p, u32 block) {
    u32 matrix = 0;
    if constexpr (S.epilogue == GemvEpilogue::none) {
        for (; matrix + 1 < p.num_matrices; ++matrix) {
            const u32 blocks = num_tiles<S>(p, p.w[matrix].n);
            if (block < blocks) break;
            block -= blocks;
        }
    }
    const GemvDeal deal = deal_of<S>(p);
    const u32 whole = block < deal.whole_tiles ? block : deal.whole_tiles;
    const u32 first = whole * block_rows_of(S) + (block - whole) * deal.rest_rows, n = p.w[matrix].n;
    const u32 end = first + (block < deal.whole_tiles ? block_rows_of(S) : deal.rest_rows);
    return {matrix, first, end < n ? end : n};
}

}  // namespace deep_gemm::kernel
