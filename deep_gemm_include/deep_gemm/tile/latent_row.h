// A row whose channels are spread over threads, four neighbours each: rotation, norm, Hadamard transform,
// narrow round trips, and the write to a cache row. Whole warps call together.
#pragma once

#include <deep_gemm/spec/latent.h>
#include <deep_gemm/tile/norm.h>
#include <deep_gemm/tile/real.h>
#include <deep_gemm/tile/reduce.h>
#include <deep_gemm/ptx/math.h>

namespace deep_gemm::tile {

struct Rotation {
    float cos, sin;

    /// That of lane `lane` % 32. Whole warps call.
    [[nodiscard]] DG_DEVICE Rotation of_lane(u32 lane) const {
        return {ptx::shfl_idx_f32(cos, lane % 32), ptx::shfl_idx_f32(sin, lane % 32)};
    }
};

/// Turns a position, as the sum of two floats.
struct Frequency {
    float high = 0, low = 0;
};
DG_DEVICE Frequency load_frequency(const float* frequencies, u32 pair) {
    return {ptx::ld_global_f32(frequencies + 2 * pair), ptx::ld_global_f32(frequencies + 2 * pair + 1)};
}
/// The angle at `position`: position * frequency in turns, less whole turns. The product of the frequency's
/// leading part is split exactly in two, so nothing is lost at large positions.
DG_DEVICE Rotation rotation_at(const Frequency& frequency, float position, bool inverse) {
    const float product = ptx::mul_rn_f32(position, frequency.high);
    const float rest = ptx::fma_rn_f32(position, frequency.high, -product);
    const float turns = ptx::add_rn_f32(product, -ptx::rint_f32(product));
    const float angle = 2 * ptx::add_rn_f32(turns, ptx::fma_rn_f32(position, frequency.low, rest));
    const float sin = ptx::sin_pi_f32(angle);
    return {ptx::cos_pi_f32(angle), inverse ? -sin : sin};
}
DG_DEVICE Rotation rotation_at(const float* frequencies, u32 pair, float position, bool inverse) {
    return rotation_at(load_frequency(frequencies, pair), position, inverse);
}

/// Which product is rounded first is written out: kernels that share this give the same bits.
DG_DEVICE void rotate(float& a, float& b, const Rotation& r) {
    const float first = ptx::fma_rn_f32(a, r.cos, -ptx::mul_rn_f32(b, r.sin));
    b = ptx::fma_rn_f32(a, r.sin, ptx::mul_rn_f32(b, r.cos));
    a = first;
}

/// Channels `channel` to `channel + 3` of d, of which the last `dims` are rotated. halves: d = dims <= 128.
template <RopePairs Pairs>
DG_DEVICE void rotate4(Float4& v, u32 channel, u32 d, u32 dims, const float* frequencies, i32 position,
                       bool inverse) {
    const float at = static_cast<float>(position);
    if constexpr (Pairs == RopePairs::interleaved) {
        if (channel >= d || channel < d - dims) return;
        const u32 pair = (channel - (d - dims)) / 2;
        rotate(v.x, v.y, rotation_at(frequencies, pair, at, inverse));
        rotate(v.z, v.w, rotation_at(frequencies, pair + 1, at, inverse));
    } else {
        const u32 mask = dims / 8;  // lanes between partners
        Float4 other{ptx::shfl_bfly_f32(v.x, mask), ptx::shfl_bfly_f32(v.y, mask),
                     ptx::shfl_bfly_f32(v.z, mask), ptx::shfl_bfly_f32(v.w, mask)};
        if (channel >= d) return;
        const bool second = channel >= dims / 2;
        const u32 pair = channel % (dims / 2);
        float* mine[] = {&v.x, &v.y, &v.z, &v.w};
        float* theirs[] = {&other.x, &other.y, &other.z, &other.w};
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const Rotation r = rotation_at(frequencies, pair + i, at, inverse);
            if (second)
                rotate(*theirs[i], *mine[i], r);
            else
                rotate(*mine[i], *theirs[i], r);
        }
    }
}

/// RMS norm of some rows over the CTA's channels; channels at and beyond d must be zero. `smem` holds a float
/// a warp for each row.
template <u32 Threads, Format Weight, u32 Rows>
DG_DEVICE void normalize(Float4 (&v)[Rows], ptx::SharedAddress smem, const void* weight, u32 channel, u32 d,
                         float eps) {
    float squares[Rows];
#pragma unroll
    for (u32 i = 0; i < Rows; ++i) squares[i] = add_squares(v[i], 0);
    cta_sums<Threads>(smem, squares);
    Float4 w{1, 1, 1, 1};
    if constexpr (Weight != Format::none)
        if (channel < d) w = load4<Weight>(weight, channel);
#pragma unroll
    for (u32 i = 0; i < Rows; ++i) {
        v[i] = times(v[i], norm_factor(squares[i], d, eps));
        if constexpr (Weight != Format::none) v[i] = times(v[i], w);
    }
}
template <u32 Threads, Format Weight>
DG_DEVICE void normalize(Float4& v, ptx::SharedAddress smem, const void* weight, u32 channel, u32 d,
                         float eps) {
    Float4 rows[1] = {v};
    normalize<Threads, Weight>(rows, smem, weight, channel, d, eps);
    v = rows[0];
}

DG_DEVICE float amax_of(const Float4& v) {
    return ptx::max_nan_f32(ptx::max_nan_f32(ptx::abs_f32(v.x), ptx::abs_f32(v.y)),
                            ptx::max_nan_f32(ptx::abs_f32(v.z), ptx::abs_f32(v.w)));
}

struct Fp8Quad {
    u32 codes;  // four E4M3
    u32 scale;  // UE8M0
};
/// E4M3 with one scale for the 64 channels of 16 lanes.
DG_DEVICE Fp8Quad to_fp8_row(const Float4& v) {
    const float amax = ptx::max_nan_f32(warp_max<16>(amax_of(v)), 1e-4f);
    const u32 scale = codec::f32_to_ue8m0_up(ptx::div_rn_f32(amax, codec::kE4m3Max));
    const float factor = ptx::div_rn_f32(1.0f, codec::ue8m0_to_f32(scale));  // a power of two: exact
    return {ptx::cvt_e4m3x2(v.x * factor, v.y * factor) | ptx::cvt_e4m3x2(v.z * factor, v.w * factor) << 16,
            scale};
}
DG_DEVICE Float4 fp8_round_trip(const Float4& v) {
    const Fp8Quad q = to_fp8_row(v);
    const float scale = codec::ue8m0_to_f32(q.scale);
    const ptx::Float2 low = ptx::cvt_e4m3x2_f32(q.codes & 0xffff), high = ptx::cvt_e4m3x2_f32(q.codes >> 16);
    return {low.x * scale, low.y * scale, high.x * scale, high.y * scale};
}
struct Fp4Quad {
    u32 codes;  // four E2M1
    u32 scale;  // UE8M0
};
/// E2M1 with one scale for the 32 channels of 8 lanes.
DG_DEVICE Fp4Quad to_fp4_row(const Float4& v) {
    const float amax = ptx::max_nan_f32(warp_max<8>(amax_of(v)), 6 * 0x1p-126f);
    const u32 scale = codec::f32_to_e2m1_scale_up(ptx::div_rn_f32(amax, codec::kE2m1Max));
    const float divisor = codec::ue8m0_to_f32(scale);
    const auto code = [divisor](float x) { return codec::f32_to_e2m1(ptx::div_rn_f32(x, divisor)); };
    return {code(v.x) | code(v.y) << 4 | code(v.z) << 8 | code(v.w) << 12, scale};
}
DG_DEVICE Float4 from_fp4_row(const Fp4Quad& q) {
    const float scale = codec::ue8m0_to_f32(q.scale);
    return {e2m1_f32(q.codes) * scale, e2m1_f32(q.codes >> 4) * scale, e2m1_f32(q.codes >> 8) * scale,
            e2m1_f32(q.codes >> 12) * scale};
}

/// Orthonormal Walsh-Hadamard transform, natural order, of d = 4 * (a power of two of lanes) <= 128 channels
/// of one warp.
DG_DEVICE Float4 hadamard(const Float4& v, u32 d) {
    const float a = v.x + v.y, b = v.x - v.y, c = v.z + v.w, e = v.z - v.w;
    float h[] = {a + c, b + e, a - c, b - e};
    for (u32 mask = 1; mask < d / 4; mask *= 2) {
        const bool second = (ptx::lane_index() & mask) != 0;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const float other = ptx::shfl_bfly_f32(h[i], mask);
            h[i] = second ? other - h[i] : h[i] + other;
        }
    }
    const float factor = 1.0f / ptx::sqrt_rn_f32(static_cast<float>(d));
    return {h[0] * factor, h[1] * factor, h[2] * factor, h[3] * factor};
}

/// The last step of a row (RowFinish). Whole warps. `Rows`: what it is written to; FP4 rows round by
/// themselves.
template <RowFinish Finish, Format Rows = Format::fp32>
DG_DEVICE void finish_row(Float4& v, u32 channel, u32 d, u32 dims) {
    if constexpr (Finish == RowFinish::fp8_round_trip) {
        v = through_bf16(v);
        const Float4 narrow = fp8_round_trip(v);
        if (channel < d - dims) v = narrow;
    } else if constexpr (Finish == RowFinish::hadamard) {
        v = hadamard(v, d);
    } else if constexpr (Finish == RowFinish::hadamard_fp4) {
        v = through_bf16(hadamard(through_bf16(v), d));
        if constexpr (Rows != Format::fp4_e2m1) v = from_fp4_row(to_fp4_row(v));
    }
}

/// Where page `page` of a sequence begins; pages of one row where there are none.
DG_DEVICE u64 page_begin(const LatentView& view, u32 sequence, u32 page) {
    if (view.table == nullptr) return sequence * view.stride_sequence + page * view.stride_row;
    const i32 at = ptx::ld_global_s32(view.table + static_cast<u64>(sequence) * view.table_stride + page);
    return static_cast<u64>(at) * view.stride_sequence;
}
/// Where the page begins that a row is in.
DG_DEVICE u64 page_offset(const LatentView& view, u32 sequence, u32 row) {
    return page_begin(view, sequence, row / view.page_rows);
}
/// Where a row of fp32 or bf16 begins.
DG_DEVICE u64 row_offset(const LatentView& view, u32 sequence, u32 row) {
    if (view.table == nullptr) return sequence * view.stride_sequence + row * view.stride_row;
    return page_offset(view, sequence, row) + row % view.page_rows * view.stride_row;
}

/// Writes the thread's channels of row `row` of `sequence`. Whole warps call; threads at and beyond d drop
/// out.
template <Format Rows>
DG_DEVICE void write_latent(const LatentView& view, u32 sequence, u32 row, u32 channel, u32 d,
                            const Float4& v) {
    if constexpr (Rows == Format::fp8_e4m3) {
        constexpr u32 kPlain = kFp8RowChannels - kFp8RowRotated;
        const Fp8Quad q = to_fp8_row(through_bf16(v));
        u8* page = static_cast<u8*>(view.data) + page_offset(view, sequence, row);
        u8* values = page + row % view.page_rows * kFp8RowBytes;
        u8* scales = page + view.page_rows * kFp8RowBytes + row % view.page_rows * kFp8RowScaleBytes;
        if (channel < kPlain)
            ptx::st_global_u32(values + channel, q.codes);
        else
            ptx::st_global_v2_u32(values + kPlain + (channel - kPlain) * 2, ptx::cvt_bf16x2(v.x, v.y),
                                  ptx::cvt_bf16x2(v.z, v.w));
        if (channel % kFp8RowGroup == 0)
            ptx::st_global_b8(scales + channel / kFp8RowGroup, channel < kPlain ? q.scale : 0);
    } else if constexpr (Rows == Format::fp4_e2m1) {
        const Fp4Quad q = to_fp4_row(v);
        if (channel >= kFp4RowChannels) return;
        u8* page = static_cast<u8*>(view.data) + page_offset(view, sequence, row);
        u8* scales = page + view.page_rows * kFp4RowBytes + row % view.page_rows * kFp4RowScaleBytes;
        ptx::st_global_u16(page + row % view.page_rows * kFp4RowBytes + channel / 2,
                           static_cast<u16>(q.codes));
        if (channel % kFp4RowGroup == 0) ptx::st_global_b8(scales + channel / kFp4RowGroup, q.scale);
    } else {
        if (channel < d) store4<Rows>(view.data, row_offset(view, sequence, row) + channel, v);
    }
}

/// Four channels of a cached row as fp32.
template <Format Rows>
DG_DEVICE Float4 read_latent(const LatentView& view, u32 sequence, u32 row, u32 channel) {
    if constexpr (Rows == Format::fp8_e4m3) {
        constexpr u32 kPlain = kFp8RowChannels - kFp8RowRotated;
        const u8* page = static_cast<const u8*>(view.data) + page_offset(view, sequence, row);
        const u8* values = page + row % view.page_rows * kFp8RowBytes;
        if (channel >= kPlain) return load4<Format::bf16>(values + kPlain, channel - kPlain);
        const float scale = codec::ue8m0_to_f32(ptx::ld_global_u8(page + view.page_rows * kFp8RowBytes +
                                                                  row % view.page_rows * kFp8RowScaleBytes +
                                                                  channel / kFp8RowGroup));
        const Float4 v = load4<Format::fp8_e4m3>(values, channel);
        return {v.x * scale, v.y * scale, v.z * scale, v.w * scale};
    } else if constexpr (Rows == Format::fp4_e2m1) {
        const u8* page = static_cast<const u8*>(view.data) + page_offset(view, sequence, row);
        const u8* values = page + row % view.page_rows * kFp4RowBytes;
        const u8* scales = page + view.page_rows * kFp4RowBytes + row % view.page_rows * kFp4RowScaleBytes;
        return from_fp4_row(
            {ptx::ld_global_u16(values + channel / 2), ptx::ld_global_u8(scales + channel / kFp4RowGroup)});
    } else {
        return load4<Rows>(view.data, row_offset(view, sequence, row) + channel);
    }
}

}  // namespace deep_gemm::tile
