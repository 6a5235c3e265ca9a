// What the two kernels of latent attention on tensor cores share: which rows a token sees, how chunks are
// merged, how a token's output is finished.
#pragma once

#include <deep_gemm/spec/latent_mma.h>
#include <deep_gemm/tile/latent_row.h>

namespace deep_gemm::latent_detail {

constexpr float kNothing = codec::float_of_bits(codec::kSignBit | codec::kInfinityBits);

/// The rows of a token; total is 0 for an idle one.
template <LatentMmaSpec S>
struct Seen {
    u32 token, sequence, first = 0, in_window = 0, total = 0, visible = 0;
    i32 position;

    DG_DEVICE Seen(const AttentionParams& p, u32 row)
        : token(row),
          sequence(tile::sequence_of(p.sequences, row)),
          position(ptx::ld_global_s32(p.positions + row)) {
        if (position < 0 || sequence >= p.rows.sequences) return;
        const u32 end = static_cast<u32>(position) + 1;
        first = end > p.window ? end - p.window : 0;
        in_window = total = end - first;
        if constexpr (S.compressed) {
            visible = end / p.ratio < p.compressed.rows ? end / p.ratio : p.compressed.rows;
            total += S.picks ? p.num_picks : visible;
        }
    }
};

/// What sums so far and a chunk's are scaled by.
struct Factors {
    float before, chunk;

    [[nodiscard]] DG_DEVICE float apply(float sum, float of_chunk) const {
        return ptx::fma_rn_f32(sum, before, ptx::mul_rn_f32(of_chunk, chunk));
    }
};

struct Merged {
    float max = kNothing, sum = 0;

    DG_DEVICE Factors add(float m, float weights) {
        const float largest = ptx::max_nan_f32(max, m);
        if (largest == kNothing) return {1.0f, 0.0f};
        const Factors factors{ptx::exp_f32(max - largest), ptx::exp_f32(m - largest)};
        max = largest;
        sum = factors.apply(sum, weights);
        return factors;
    }
};

template <LatentMmaSpec S>
DG_DEVICE float sink_of(const AttentionParams& p, u32 head) {
    if constexpr (S.sinks) return ptx::ld_global_f32(p.sinks + head);
    return kNothing;
}
/// 1 / (sum + e^(sink - max)).
DG_DEVICE float normalizer(const Merged& merged, float sink) {
    if (merged.max == kNothing) return 0;
    const float largest = ptx::max_nan_f32(merged.max, sink);
    if (largest == -kNothing) return 0;
    const float mine = ptx::exp_f32(merged.max - largest);
    return mine / ptx::fma_rn_f32(merged.sum, mine, ptx::exp_f32(sink - largest));
}
template <LatentMmaSpec S>
DG_DEVICE float normalizer(const Merged& merged, const AttentionParams& p, u32 head) {
    return merged.max == kNothing ? 0.0f : normalizer(merged, sink_of<S>(p, head));
}

/// Whether the output's channels `channel` and the next are turned back, and how.
template <LatentMmaSpec S>
DG_DEVICE bool is_rotated(const AttentionParams& p, const Seen<S>& seen, u32 channel) {
    return S.rotate && channel >= kFp8RowChannels - p.dims && seen.total > 0;
}
template <LatentMmaSpec S>
DG_DEVICE tile::Rotation rotation_of(const AttentionParams& p, const Seen<S>& seen, u32 channel) {
    const u32 pair = (channel - (kFp8RowChannels - p.dims)) / 2;
    return tile::rotation_at(p.frequencies, pair, static_cast<float>(seen.position), true);
}
DG_DEVICE void store_bf16(const AttentionParams& p, u32 token, u32 head, u32 channel, float first,
                          float second) {
    u8* at = static_cast<u8*>(p.out.data) + (token * p.out.stride + head * p.out.inner_stride + channel) * 2;
    ptx::st_global_u32(at, ptx::cvt_bf16x2(first, second));
}

/// Channels `channel` and the next of a head's output.
template <LatentMmaSpec S>
DG_DEVICE void store_pair(const AttentionParams& p, const Seen<S>& seen, u32 head, u32 channel, float first,
                          float second, float factor) {
    first = ptx::mul_rn_f32(first, factor);
    second = ptx::mul_rn_f32(second, factor);
    if (is_rotated(p, seen, channel)) tile::rotate(first, second, rotation_of(p, seen, channel));
    store_bf16(p, seen.token, head, channel, first, second);
}

}  // namespace deep_gemm::latent_detail
