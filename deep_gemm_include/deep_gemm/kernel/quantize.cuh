// Quantises rows of x (spec/quantize.h). A thread has eight elements. With `row_amax` a CTA has a row and
// reads it twice; otherwise threads go through rows and chunks in order, and a block knows nothing of its
// neighbours. Called by op/quantize.cpp.
#pragma once

#include <deep_gemm/tile/quantize.h>

namespace deep_gemm {

namespace quantize_detail {

/// Row of x that row `row` of the output comes from, or false where there is none.
template <QuantizeSpec S>
DG_DEVICE bool find_source(const QuantizeParams& p, u32 row, u32& source) {
    source = row;
    if (row >= p.rows) return false;
    if constexpr (S.gather) {
        if (static_cast<i32>(row) >= ptx::ld_global_s32(p.num_rows)) return false;
        const i32 index = ptx::ld_global_s32(p.source_rows + row);
        if (index < 0) return false;
        source = static_cast<u32>(index) / p.divisor;
    }
    return true;
}

template <QuantizeSpec S>
DG_DEVICE void load(const QuantizeParams& p, bool present, u32 source, u32 column, tile::Chunk& v) {
    if (present && column < p.k) return tile::load_chunk<S.x>(p.x, source * p.x_stride + column, v);
#pragma unroll
    for (u32 i = 0; i < kQuantizeChunk; ++i) v[i] = 0;
}

/// All lanes of a group of equal scale call together; those of absent rows and columns write nothing. `shared`:
/// fp8_row: the largest of the row; nvfp4: the global scale.
template <QuantizeSpec S>
DG_DEVICE void write(const QuantizeParams& p, bool present, u32 row, u32 column, const tile::Chunk& v,
                     float shared) {
    if constexpr (S.recipe == Recipe::fp8_row) {
        const tile::Fp8Chunk out = tile::to_fp8<S.rule>(v, shared);
        if (column >= p.k) return;
        ptx::st_global_v2_u32(p.codes + row * p.codes_stride + column, out.words[0], out.words[1]);
        if (column == 0)
            ptx::st_global_f32(static_cast<float*>(p.scales) + row * p.scales_stride_row, out.scale);
        return;
    }
    constexpr u32 kBlock = block_of(S.recipe);
    const u64 scale_index = row * p.scales_stride_row + column / kBlock * p.scales_stride_block;
    const bool writes = present && column < p.k, first = column % kBlock == 0;
    if constexpr (S.recipe == Recipe::fp8_128) {
        const tile::Fp8Chunk out = tile::to_fp8<S.rule>(v);
        if (!writes) return;
        ptx::st_global_v2_u32(p.codes + row * p.codes_stride + column, out.words[0], out.words[1]);
        if (first) ptx::st_global_f32(static_cast<float*>(p.scales) + scale_index, out.scale);
    } else {
        tile::Fp4Chunk out;
        if constexpr (S.recipe == Recipe::mxfp4)
            out = tile::to_mxfp4<S.rule>(v);
        else
            out = tile::to_nvfp4(v, shared);
        if (!writes) return;
        ptx::st_global_u32(p.codes + row * p.codes_stride + column / 2, out.word);
        if (first) ptx::st_global_b8(static_cast<u8*>(p.scales) + scale_index, out.scale);
    }
}

template <QuantizeSpec S>
DG_DEVICE void quantize_row(const QuantizeParams& p) {
    constexpr u32 kStep = kQuantizeThreads * kQuantizeChunk;
    const u32 row = ptx::block_index(), first = ptx::thread_index() * kQuantizeChunk;
    u32 source;
    if (!find_source<S>(p, row, source)) return;
    tile::Chunk v;
    float amax = 0;
    for (u32 column = first; column < p.k; column += kStep) {
        load<S>(p, true, source, column, v);
        amax = ptx::max_nan_f32(amax, tile::amax_of(v));
    }
    float shared = tile::amax_over_cta<kQuantizeThreads>(ptx::dynamic_smem() + plan_smem(S).amax, amax);
    if constexpr (S.recipe == Recipe::nvfp4) {
        shared = tile::nvfp4_global(shared);
        if (ptx::thread_index() == 0) ptx::st_global_f32(p.global_scale + row, shared);
    }
    // Whole warps go round: lanes that share a scale stay together.
    for (u32 column = first; column - first < p.k; column += kStep) {
        load<S>(p, true, source, column, v);
        write<S>(p, true, row, column, v, shared);
    }
}

template <QuantizeSpec S>
DG_DEVICE void quantize_chunks(const QuantizeParams& p) {
    const u32 chunks = align_up(p.k, kQuantizeRow) / kQuantizeChunk;
    const u64 index = static_cast<u64>(ptx::block_index()) * kQuantizeThreads + ptx::thread_index();
    const u32 row = static_cast<u32>(index / chunks),
              column = static_cast<u32>(index % chunks) * kQuantizeChunk;
    u32 source;
    const bool present = find_source<S>(p, row, source);
    tile::Chunk v;
    load<S>(p, present, source, column, v);
    const float global = S.recipe == Recipe::nvfp4 ? ptx::ld_global_f32(p.global_scale) : 0;
    write<S>(p, present, row, column, v, global);
}

}  // namespace quantize_detail

template <QuantizeSpec S>
DG_KERNEL(kQuantizeThreads, 4)
quantize(DG_GRID_CONSTANT const QuantizeParams p) {
    static_assert(why_illegal(S) == nullptr);
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    if constexpr (S.row_amax)
        quantize_detail::quantize_row<S>(p);
    else
        quantize_detail::quantize_chunks<S>(p);
}

}  // namespace deep_gemm
