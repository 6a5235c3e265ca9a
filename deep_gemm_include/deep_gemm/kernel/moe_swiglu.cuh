// SwiGLU of the gate and up halves of h, then E4M3 with a scale for 128 channels or for a slot, bf16, or two
// terms of that: what the down product multiplies. A thread has eight channels; sixteen lanes share a scale, or a CTA does, which has one
// slot then. Called by op/moe.cpp.
#pragma once

#include <deep_gemm/spec/moe.h>
#include <deep_gemm/tile/activation.h>
#include <deep_gemm/tile/quantize.h>
#include <deep_gemm/tile/two_terms.h>

namespace deep_gemm {

namespace moe_swiglu_detail {

/// Pair of the slot, or -1 where there is nothing to do.
DG_DEVICE i32 pair_of(const MoeSwigluParams& p, u32 slot) {
    if (slot >= p.slots || static_cast<i32>(slot) >= ptx::ld_global_s32(p.num_slots)) return -1;
    return ptx::ld_global_s32(p.slot_pairs + slot);
}

template <MoeSwigluSpec S>
DG_DEVICE void activate(const MoeSwigluParams& p, u32 slot, u32 column, float weight, tile::Chunk& v) {
    tile::Chunk gate, up;
    const u64 row = static_cast<u64>(slot) * 2 * p.n;
    tile::load_chunk<Format::bf16>(p.h, row + column, gate);
    tile::load_chunk<Format::bf16>(p.h, row + p.n + column, up);
#pragma unroll
    for (u32 i = 0; i < kQuantizeChunk; ++i) {
        if constexpr (S.limited) {
            gate[i] = ptx::min_nan_f32(gate[i], p.limit);
            up[i] = ptx::min_nan_f32(ptx::max_nan_f32(up[i], -p.limit), p.limit);
        }
        v[i] = tile::swiglu(gate[i], up[i]);
        if constexpr (S.weighted) v[i] = ptx::mul_rn_f32(v[i], weight);
    }
#pragma unroll
    for (u32 i = 0; i < kQuantizeChunk; i += 2) {
        const u32 rounded = ptx::cvt_bf16x2(v[i], v[i + 1]);
        v[i] = ptx::bf16_low(rounded);
        v[i + 1] = ptx::bf16_high(rounded);
    }
}

template <MoeSwigluSpec S>
DG_DEVICE void store_codes(const MoeSwigluParams& p, u32 slot, u32 column, const tile::Fp8Chunk& out) {
    ptx::st_global_v2_u32(p.codes + static_cast<u64>(slot) * p.n + column, out.words[0], out.words[1]);
}

/// Under the scale of `amax`, a slot's largest.
template <MoeSwigluSpec S>
DG_DEVICE void store_under(const MoeSwigluParams& p, u32 slot, u32 column, const tile::Chunk& v, float amax) {
    if constexpr (S.token_terms == 2) {
        const u32 padded_n = align_up(p.n, kFp4PadK);
        if (column >= padded_n) return;
        const float inverse = tile::term_scale_of(amax).inverse;
        const tile::TermWords a = tile::terms_of(v[0], v[1], v[2], v[3], inverse),
                              b = tile::terms_of(v[4], v[5], v[6], v[7], inverse);
        u8* const to = p.codes + static_cast<u64>(slot) * 2 * padded_n + column;
        ptx::st_global_v2_u32(to, a.high, b.high);
        ptx::st_global_v2_u32(to + padded_n, a.low, b.low);
    } else {
        if (column < p.n) store_codes<S>(p, slot, column, tile::to_fp8<S.rule>(v, amax));
    }
}

/// A chunk of a slot's activations; zeros beyond them.
template <MoeSwigluSpec S>
DG_DEVICE void activate_present(const MoeSwigluParams& p, u32 slot, u32 column, float weight,
                                tile::Chunk& v) {
    if (column < p.n) return activate<S>(p, slot, column, weight, v);
#pragma unroll
    for (u32 i = 0; i < kQuantizeChunk; ++i) v[i] = 0;
}

/// per_token. Channels beyond the threads' first are computed twice: for the largest, and to be written.
template <MoeSwigluSpec S>
DG_DEVICE void activate_slot(const MoeSwigluParams& p, u32 slot) {
    constexpr u32 kStep = kMoeThreads * kQuantizeChunk;
    const i32 pair = pair_of(p, slot);
    if (pair < 0) return;
    const float weight = S.weighted ? ptx::ld_global_f32(p.weights + pair) : 0;
    const u32 first = ptx::thread_index() * kQuantizeChunk;
    tile::Chunk held, v;
    activate_present<S>(p, slot, first, weight, held);
    float amax = tile::amax_of(held);
    for (u32 column = first + kStep; column < p.n; column += kStep) {
        activate<S>(p, slot, column, weight, v);
        amax = ptx::max_nan_f32(amax, tile::amax_of(v));
    }
    amax = tile::amax_over_cta<kMoeThreads>(ptx::dynamic_smem() + plan_smem(S).amax, amax);
    if (first == 0)
        ptx::st_global_f32(p.scales + slot, S.token_terms == 2 ? tile::term_scale_of(amax).value
                                                               : tile::fp8_scale_of<S.rule>(amax));
    store_under<S>(p, slot, first, held, amax);
    for (u32 column = first + kStep; column < align_up(p.n, kFp4PadK); column += kStep) {
        activate_present<S>(p, slot, column, weight, v);
        store_under<S>(p, slot, column, v, amax);
    }
}

}  // namespace moe_swiglu_detail

template <MoeSwigluSpec S>
DG_DEVICE void moe_swiglu_block(const MoeSwigluParams& p, u32 block) {
    if constexpr (S.per_token) return moe_swiglu_detail::activate_slot<S>(p, block);
    const u32 chunks = align_up(p.n, kQuantizeRow) / kQuantizeChunk;
    const u64 index = static_cast<u64>(block) * kMoeThreads + ptx::thread_index();
    const u32 slot = static_cast<u32>(index / chunks),
              column = static_cast<u32>(index % chunks) * kQuantizeChunk;
    const i32 pair = moe_swiglu_detail::pair_of(p, slot);
    const bool writes = pair >= 0 && column < p.n;
    tile::Chunk v;
#pragma unroll
    for (u32 i = 0; i < kQuantizeChunk; ++i) v[i] = 0;
    if (writes) {
        const float weight = S.weighted ? ptx::ld_global_f32(p.weights + pair) : 0;
        moe_swiglu_detail::activate<S>(p, slot, column, weight, v);
    }
    if constexpr (S.d == Format::bf16) {
        if (!writes) return;
        u8* const to = p.codes + (static_cast<u64>(slot) * p.n + column) * 2;
        u32 words[kQuantizeChunk / 2];
#pragma unroll
        for (u32 i = 0; i < kQuantizeChunk / 2; ++i) words[i] = ptx::cvt_bf16x2(v[2 * i], v[2 * i + 1]);
        ptx::st_global_v4_u32(to, words[0], words[1], words[2], words[3]);
        return;
    }
    const tile::Fp8Chunk out = tile::to_fp8<S.rule>(v);
    if (!writes) return;
    moe_swiglu_detail::store_codes<S>(p, slot, column, out);
    if (column % kQuantizeRow == 0)
        ptx::st_global_f32(
            p.scales + static_cast<u64>(slot) * ceil_div(p.n, kQuantizeRow) + column / kQuantizeRow,
            out.scale);
}

template <MoeSwigluSpec S>
DG_KERNEL(kMoeThreads, 4)
moe_swiglu(DG_GRID_CONSTANT const MoeSwigluParams p) {
    static_assert(why_illegal(S) == nullptr);
    // Who reads terms may start when all before this has ended: kernel/two_terms.cuh.
    if constexpr (S.token_terms == 1) ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    if constexpr (S.token_terms == 2) ptx::grid_dependency_launch();
    moe_swiglu_block<S>(p, ptx::block_index());
}

}  // namespace deep_gemm
