// The end of a mixture of experts: each token's expert outputs, added in the order in which its router named
// them, plus a shared expert's. fp32, every operation rounded once. A thread has eight columns of a token.
// Called by op/moe.cpp.
#pragma once

#include <deep_gemm/spec/moe.h>
#include <deep_gemm/tile/quantize.h>

namespace deep_gemm {

namespace moe_combine_detail {

template <Format D>
DG_DEVICE void store_chunk(void* d, u64 index, const tile::Chunk& v) {
    u8* const at = static_cast<u8*>(d) + index * bytes_of(D);
    if constexpr (D == Format::bf16) {
        ptx::st_global_v4_u32(at, ptx::cvt_bf16x2(v[0], v[1]), ptx::cvt_bf16x2(v[2], v[3]),
                              ptx::cvt_bf16x2(v[4], v[5]), ptx::cvt_bf16x2(v[6], v[7]));
    } else {
        ptx::st_global_v4_f32(at, v[0], v[1], v[2], v[3]);
        ptx::st_global_v4_f32(at + 16, v[4], v[5], v[6], v[7]);
    }
}

}  // namespace moe_combine_detail

template <MoeCombineSpec S>
DG_KERNEL(kMoeThreads, 4)
moe_combine(DG_GRID_CONSTANT const MoeCombineParams p) {
    static_assert(why_illegal(S) == nullptr);
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 chunks = p.n / kQuantizeChunk;
    const u64 index = static_cast<u64>(ptx::block_index()) * kMoeThreads + ptx::thread_index();
    const u32 token = static_cast<u32>(index / chunks),
              column = static_cast<u32>(index % chunks) * kQuantizeChunk;
    if (token >= p.tokens) return;
    // All slots first: their loads, and then those of the rows, are in flight together.
    i32 slots[S.top_k];
#pragma unroll
    for (u32 j = 0; j < S.top_k; ++j) slots[j] = ptx::ld_global_s32(p.pair_slots + token * S.top_k + j);
    tile::Chunk sum;
#pragma unroll
    for (u32 i = 0; i < kQuantizeChunk; ++i) sum[i] = 0;
#pragma unroll
    for (u32 j = 0; j < S.top_k; ++j) {
        if (slots[j] < 0) continue;
        tile::Chunk y;
        tile::load_chunk<Format::bf16>(p.y, static_cast<u64>(slots[j]) * p.n + column, y);
        const float weight = S.combine_weighted ? ptx::ld_global_f32(p.weights + token * S.top_k + j) : 1.0f;
#pragma unroll
        for (u32 i = 0; i < kQuantizeChunk; ++i)
            sum[i] = ptx::add_rn_f32(sum[i], S.combine_weighted ? ptx::mul_rn_f32(y[i], weight) : y[i]);
    }
    if constexpr (S.shared) {
        tile::Chunk y;
        tile::load_chunk<Format::bf16>(p.shared, token * p.shared_stride + column, y);
#pragma unroll
        for (u32 i = 0; i < kQuantizeChunk; ++i) sum[i] = ptx::add_rn_f32(sum[i], y[i]);
    }
    moe_combine_detail::store_chunk<S.d>(p.d, token * p.d_stride + column, sum);
}

}  // namespace deep_gemm
