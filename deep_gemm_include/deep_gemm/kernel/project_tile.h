// What projections on tensor cores share (spec/project_mma.h): how a lane holds 16 rows of w and 8 rows of x,
// their products, and the sum over warps. A lane loads 16 contiguous bytes of a row of w, which are its
// fragments as they are, since the order of K inside an mma is free as long as both operands agree.
#pragma once

#include <deep_gemm/spec/project_mma.h>
#include <deep_gemm/tile/decode.h>
#include <deep_gemm/tile/dot.h>
#include <deep_gemm/tile/quantize.h>
#include <deep_gemm/ptx/mma_sync.h>
#include <deep_gemm/ptx/stream.h>

namespace deep_gemm {

namespace project_detail {

constexpr u32 kSteps = kProjectColumns / 16;  // of mma.sync in a chunk; a lane has four columns of each

template <ProjectMmaSpec S>
struct Lane {
    static constexpr bool kNarrow = S.w == Format::fp8_e4m3;
    static constexpr Format kX = S.rounds ? Format::fp8_e4m3 : S.x;  // what is multiplied
    static constexpr bool kF16 = kX == Format::fp8_e4m3;             // what both operands become; else bf16
    static constexpr u32 kMmaWords = kX == Format::fp8_e4m3 ? 8 : 16;
    static constexpr u32 kLoads = kNarrow ? 2 : 4;                    // of 16 bytes of a row of w and a chunk
    static constexpr u32 kXWords = S.x == Format::fp8_e4m3 ? 8 : 16;  // of a row of x and a chunk
    static constexpr u32 R = S.row_tiles, T = S.token_tiles;

    // First of the columns that load `load` brings to this lane.
    static DG_DEVICE u32 column(u32 load) {
        const u32 columns = kProjectColumns / kLoads;
        return load * columns + ptx::lane_index() % 4 * (columns / 4);
    }
};

template <ProjectMmaSpec S>
struct Weights {
    u32 word[Lane<S>::R][2][Lane<S>::kLoads * 4];
    float scale[Lane<S>::R];
};

template <ProjectMmaSpec S>
struct WeightRows {
    const u8* row[Lane<S>::R][2];  // at the lane's first column
    u64 scale[Lane<S>::R];         // index of the first scale
};

template <ProjectMmaSpec S>
DG_DEVICE void load_weights(Weights<S>& weights, const WeightRows<S>& rows, const void* scales, u32 chunk) {
    using L = Lane<S>;
    constexpr u32 kBytes = bytes_of(S.w);
#pragma unroll
    for (u32 r = 0; r < L::R; ++r) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
#pragma unroll
            for (u32 load = 0; load < L::kLoads; ++load) {
                const u32 column = chunk * kProjectColumns + load * (kProjectColumns / L::kLoads);
                const ptx::Words4 v = ptx::ld_stream_v4(rows.row[r][half] + u64{column} * kBytes);
#pragma unroll
                for (u32 i = 0; i < 4; ++i) weights.word[r][half][load * 4 + i] = v.word[i];
            }
        if constexpr (S.w_scale != Format::none)
            weights.scale[r] = tile::load_scale<S.w_scale>(scales, rows.scale[r] + chunk);
    }
}

/// The lane's columns of a row of x; zeros where there is no row.
template <ProjectMmaSpec S>
DG_DEVICE void load_tokens(u32 (&word)[Lane<S>::kXWords], const u8* row, u32 chunk) {
    using L = Lane<S>;
    constexpr u32 kLoadWords = L::kXWords / L::kLoads;  // beside one load of w
#pragma unroll
    for (u32 load = 0; load < L::kLoads; ++load) {
        const u32 column = chunk * kProjectColumns + load * (kProjectColumns / L::kLoads);
#pragma unroll
        for (u32 piece = 0; piece < kLoadWords / 4; ++piece) {
            ptx::UInt4 v{};
            if (row) v = ptx::ld_global_v4_u32(row + u64{column} * bytes_of(S.x) + piece * 16);
            const u32 at = load * kLoadWords + piece * 4;
            word[at] = v.x, word[at + 1] = v.y, word[at + 2] = v.z, word[at + 3] = v.w;
        }
    }
}

/// The lane's four columns of a step as two pairs.
template <bool F16, Format From, u32 Words>
DG_DEVICE void pairs_of(const u32 (&word)[Words], u32 step, u32& low, u32& high) {
    if constexpr (From == Format::fp8_e4m3) {
        tile::decode_e4m3<F16, true>(word[step], low, high);
    } else {
        low = word[2 * step];
        high = word[2 * step + 1];
    }
}

/// A chunk of a tile of rows of x as right operands of mma.sync.
template <ProjectMmaSpec S>
struct Fragments {
    u32 pair[kSteps][2];

    DG_DEVICE void set(const u32 (&x)[Lane<S>::kMmaWords]) {
#pragma unroll
        for (u32 step = 0; step < kSteps; ++step)
            pairs_of<Lane<S>::kF16, Lane<S>::kX>(x, step, pair[step][0], pair[step][1]);
    }
};

/// The products of a tile of 16 rows of w with one of rows of x; `word`: of both halves of those rows.
template <ProjectMmaSpec S>
DG_DEVICE void multiply_tile(float (&sums)[4], const u32 (&word)[2][Lane<S>::kLoads * 4], float w_scale,
                             const Fragments<S>& x, const float (&x_scale)[2]) {
    using L = Lane<S>;
    constexpr bool kScaled = S.w_scale != Format::none;
    float part[4] = {};
    float(&target)[4] = kScaled ? part : sums;
#pragma unroll
    for (u32 step = 0; step < kSteps; ++step) {
        u32 a[4];
        pairs_of<L::kF16, S.w>(word[0], step, a[0], a[2]);
        pairs_of<L::kF16, S.w>(word[1], step, a[1], a[3]);
        if constexpr (L::kF16)
            ptx::mma_m16n8k16_f16(target, a, x.pair[step][0], x.pair[step][1]);
        else
            ptx::mma_m16n8k16_bf16(target, a, x.pair[step][0], x.pair[step][1]);
    }
    if constexpr (!kScaled) return;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        const float scale = L::kX == Format::fp8_e4m3 ? ptx::mul_rn_f32(w_scale, x_scale[i % 2]) : w_scale;
        sums[i] = ptx::fma_rn_f32(part[i], scale, sums[i]);
    }
}

/// The products of one tile of rows of x with the chunk's weights.
template <ProjectMmaSpec S>
DG_DEVICE void multiply(float (&sums)[Lane<S>::R][Lane<S>::T][4], u32 t, const Weights<S>& weights,
                        const u32 (&x)[Lane<S>::kMmaWords], const float (&x_scale)[2]) {
    Fragments<S> fragments;
    fragments.set(x);
#pragma unroll
    for (u32 r = 0; r < Lane<S>::R; ++r)
        multiply_tile<S>(sums[r][t], weights.word[r], weights.scale[r], fragments, x_scale);
}

/// Rows of x that a block has: those of the lane's column of each tile, and the two whose sums it gets.
template <ProjectMmaSpec S>
struct Tokens {
    const u8* row;       // of the first tile
    const float* scale;  // of the first of the two
    u64 row_step, scale_step;
    u32 mine, column, count;  // which they are, and how many rows there are

    DG_DEVICE Tokens(const ProjectMmaParams& p, const ProjectPart& part, u32 first)
        : row_step(kProjectTileTokens * p.x_stride * bytes_of(S.x)),
          scale_step(p.x_scale_stride),
          mine(first + ptx::lane_index() / 4),
          column(first + ptx::lane_index() % 4 * 2),
          count(p.rows) {
        row = static_cast<const u8*>(p.x) +
              (mine * p.x_stride + part.x_offset + Lane<S>::column(0)) * bytes_of(S.x);
        scale = p.x_scale + column * p.x_scale_stride + part.x_scale_offset;
    }
    [[nodiscard]] DG_DEVICE const u8* row_of(u32 t) const {
        return mine + t * kProjectTileTokens < count ? row + t * row_step : nullptr;
    }
    [[nodiscard]] DG_DEVICE float scale_of(u32 t, u32 i, u32 chunk) const {
        if (S.x != Format::fp8_e4m3 || column + t * kProjectTileTokens + i >= count) return 0.0f;
        return ptx::ld_global_f32(scale + (t * kProjectTileTokens + i) * scale_step + chunk);
    }
};

/// The lane's bf16 columns of a row and chunk as E4M3, as tile::to_fp8() makes them; returns their scale. Whole
/// warps call: four lanes have a row.
template <ProjectMmaSpec S>
DG_DEVICE float round_chunk(u32 (&codes)[Lane<S>::kMmaWords], const u32 (&word)[Lane<S>::kXWords]) {
    float amax = 0;
#pragma unroll
    for (u32 i = 0; i < Lane<S>::kXWords; ++i)
        amax = ptx::max_nan_f32(amax, ptx::max_nan_f32(ptx::abs_f32(ptx::bf16_low(word[i])),
                                                       ptx::abs_f32(ptx::bf16_high(word[i]))));
    const float scale =
        tile::scale_of_amax<ScaleRule::up>(ptx::max_nan_f32(tile::amax_over<4>(amax), kFp8SmallestAmax));
    const float factor = ptx::div_rn_f32(1.0f, scale);
    const auto pair = [factor](u32 two) {
        return ptx::cvt_e4m3x2(ptx::mul_rn_f32(ptx::bf16_low(two), factor),
                               ptx::mul_rn_f32(ptx::bf16_high(two), factor));
    };
#pragma unroll
    for (u32 i = 0; i < Lane<S>::kMmaWords; ++i) codes[i] = pair(word[2 * i]) | pair(word[2 * i + 1]) << 16;
    return scale;
}
/// The same, with the scales of the two rows whose sums the lane gets.
template <ProjectMmaSpec S>
DG_DEVICE void round_tokens(u32 (&codes)[Lane<S>::kMmaWords], float (&scale)[2],
                            const u32 (&word)[Lane<S>::kXWords]) {
    const float mine = round_chunk<S>(codes, word);
#pragma unroll
    for (u32 i = 0; i < 2; ++i) scale[i] = ptx::shfl_idx_f32(mine, (ptx::lane_index() % 4 * 2 + i) * 4);
}

/// The lane's part of a tile of rows of x and a chunk.
template <ProjectMmaSpec S>
struct TokenTile {
    u32 word[Lane<S>::kXWords];
    float scale[2];

    DG_DEVICE void load(const Tokens<S>& tokens, u32 t, u32 chunk) {
        load_tokens<S>(word, tokens.row_of(t), chunk);
#pragma unroll
        for (u32 i = 0; i < 2; ++i) scale[i] = tokens.scale_of(t, i, chunk);
    }
    DG_DEVICE void multiply_with(const Weights<S>& weights, float (&sums)[Lane<S>::R][Lane<S>::T][4], u32 t) {
        if constexpr (S.rounds) {
            u32 codes[Lane<S>::kMmaWords];
            round_tokens<S>(codes, scale, word);
            multiply<S>(sums, t, weights, codes, scale);
        } else {
            multiply<S>(sums, t, weights, word, scale);
        }
    }
};

}  // namespace project_detail

}  // namespace deep_gemm
