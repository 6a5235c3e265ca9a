// Real elements (fp32 or bf16) and stored codes of a row, one or four neighbours at a time, as fp32.
#pragma once

#include <deep_gemm/spec/codec.h>
#include <deep_gemm/spec/view.h>
#include <deep_gemm/ptx/element.h>
#include <deep_gemm/ptx/shared.h>

namespace deep_gemm::tile {

using ptx::Float4;

template <Format F>
DG_DEVICE float load(const void* base, u64 index) {
    static_assert(F == Format::fp32 || F == Format::bf16);
    const u8* at = static_cast<const u8*>(base) + index * bytes_of(F);
    return F == Format::fp32 ? ptx::ld_global_f32(at) : ptx::ld_global_bf16(at);
}
template <Format F>
DG_DEVICE void store(void* base, u64 index, float value) {
    static_assert(F == Format::fp32 || F == Format::bf16);
    u8* at = static_cast<u8*>(base) + index * bytes_of(F);
    if constexpr (F == Format::fp32)
        ptx::st_global_f32(at, value);
    else
        ptx::st_global_u16(at, static_cast<u16>(ptx::cvt_bf16x2(value, 0)));
}

/// Four E2M1 codes, the first in the lowest nibble: as exponent and mantissa of a tiny fp32, scaled up.
DG_DEVICE float e2m1_f32(u32 code) {
    return codec::float_of_bits((code & 7) << 22 | (code & 8) << 28) * 0x1p126f;
}

/// Elements index to index + 3; index is a multiple of 4.
template <Format F>
DG_DEVICE Float4 load4(const void* base, u64 index) {
    const u8* at = static_cast<const u8*>(base) + index * bits_of(F) / 8;
    if constexpr (F == Format::fp32) {
        return ptx::ld_global_v4_f32(at);
    } else if constexpr (F == Format::bf16) {
        const ptx::Word2 w = ptx::ld_global_v2_u32(at);
        return {ptx::bf16_low(w.x), ptx::bf16_high(w.x), ptx::bf16_low(w.y), ptx::bf16_high(w.y)};
    } else if constexpr (F == Format::fp8_e4m3) {
        const u32 w = ptx::ld_global_u32(at);
        const ptx::Float2 low = ptx::cvt_e4m3x2_f32(w), high = ptx::cvt_e4m3x2_f32(w >> 16);
        return {low.x, low.y, high.x, high.y};
    } else {
        static_assert(F == Format::fp4_e2m1);
        const u32 w = ptx::ld_global_u16(at);
        return {e2m1_f32(w), e2m1_f32(w >> 4), e2m1_f32(w >> 8), e2m1_f32(w >> 12)};
    }
}
/// Four elements in shared memory, aligned to their size.
template <Format F>
DG_DEVICE Float4 load4_shared(ptx::SharedAddress at) {
    if constexpr (F == Format::fp32) return ptx::ld_shared_v4_f32(at);
    static_assert(F == Format::fp32 || F == Format::bf16);
    const ptx::UInt2 w = ptx::ld_shared_v2_u32(at);
    return {ptx::bf16_low(w.x), ptx::bf16_high(w.x), ptx::bf16_low(w.y), ptx::bf16_high(w.y)};
}
template <Format F>
DG_DEVICE void store4(void* base, u64 index, const Float4& v) {
    u8* at = static_cast<u8*>(base) + index * bytes_of(F);
    if constexpr (F == Format::fp32)
        ptx::st_global_v4_f32(at, v.x, v.y, v.z, v.w);
    else
        ptx::st_global_v2_u32(at, ptx::cvt_bf16x2(v.x, v.y), ptx::cvt_bf16x2(v.z, v.w));
}

/// The value after a trip through bf16.
DG_DEVICE float through_bf16(float value) {
    return ptx::bf16_low(ptx::cvt_bf16x2(value, 0));
}
DG_DEVICE Float4 through_bf16(const Float4& v) {
    return {through_bf16(v.x), through_bf16(v.y), through_bf16(v.z), through_bf16(v.w)};
}

/// Which sequence a row belongs to; outside [0, count) if it is idle or belongs to none.
DG_DEVICE u32 sequence_of(const i32* sequences, u32 row) {
    return sequences ? static_cast<u32>(ptx::ld_global_s32(sequences + row)) : 0;
}

}  // namespace deep_gemm::tile
