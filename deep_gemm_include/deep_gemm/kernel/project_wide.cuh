// Projections of many rows on tensor cores, with the bits of project_mma (spec/project_mma.h): the same
// mma.sync of the same fragments. There eight warps take turns along K and their sums are added at the end;
// here the chunks of the first of those warps come first, then those of the second, and each warp's sum is
// added to the ones before. Called by op/project.cpp.
#pragma once

#include <deep_gemm/kernel/project_mma.cuh>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm {

namespace project_wide_detail {

using project_detail::kSteps;
using project_detail::Lane;
using project_detail::pairs_of;

/// Of 16 bytes of a row of a stage: where they lie. Rows that are read together lie in different banks.
template <Format F>
DG_DEVICE u32 unit_at(u32 row, u32 unit, u32 swap) {
    constexpr u32 kUnits = kProjectColumns * bytes_of(F) / 16;
    return (row * kUnits + (unit ^ row % 2 * swap)) * 16;
}
template <ProjectMmaSpec S>
struct Shape {
    static constexpr u32 kPieces =
        Lane<S>::kXWords / Lane<S>::kLoads / 4;  // of 16 bytes of x beside a load of w
    static constexpr u32 kSwapW = 4, kSwapX = kPieces == 1 ? 4 : 1;
};

/// What the block reads of both operands.
template <ProjectMmaSpec S>
struct Operands {
    const u8* w;
    const u8* x;
    u64 w_stride, x_stride;  // bytes
    u32 last_row, first_row, first_token, tokens;

    /// A chunk on its way to a stage; rows of w beyond the last are the last, rows of x zeros.
    DG_DEVICE void load(u32 chunk, ptx::SharedAddress stage) const {
        load_rows<S.w>(
            w + u64{chunk} * kProjectColumns * bytes_of(S.w), w_stride, stage, Shape<S>::kSwapW,
            [&](u32 row) { return first_row + row < last_row ? first_row + row : last_row; },
            [](u32) { return true; });
        load_rows<S.x>(
            x + u64{chunk} * kProjectColumns * bytes_of(S.x), x_stride, stage + plan_wide(S).x,
            Shape<S>::kSwapX, [&](u32 row) { return is_token(row) ? first_token + row : first_token; },
            [&](u32 row) { return is_token(row); });
    }
    [[nodiscard]] DG_DEVICE bool is_token(u32 row) const { return first_token + row < tokens; }

    template <Format F, typename Place, typename Present>
    static DG_DEVICE void load_rows(const u8* from, u64 stride, ptx::SharedAddress to, u32 swap,
                                    Place&& place, Present&& present) {
        constexpr u32 kUnits = kProjectColumns * bytes_of(F) / 16;
#pragma unroll
        for (u32 i = 0; i < kWideRows * kUnits / kProjectThreads; ++i) {
            const u32 at = i * kProjectThreads + ptx::thread_index(), row = at / kUnits, unit = at % kUnits;
            ptx::cp_async_16(to + unit_at<F>(row, unit, swap), from + place(row) * stride + unit * 16,
                             present(row) ? 16 : 0);
        }
    }
};

/// The lane's words of a row of a stage: `Words` from each of its loads.
template <Format F, u32 Loads, u32 Words>
DG_DEVICE void load_words(u32 (&word)[Loads * Words], ptx::SharedAddress rows, u32 row, u32 swap) {
    constexpr u32 kPieces = Words / 4;
    const u32 column = ptx::lane_index() % 4 * kPieces;
#pragma unroll
    for (u32 load = 0; load < Loads; ++load)
#pragma unroll
        for (u32 piece = 0; piece < kPieces; ++piece) {
            const ptx::UInt4 v =
                ptx::ld_shared_v4_u32(rows + unit_at<F>(row, load * 4 * kPieces + column + piece, swap));
            const u32 at = load * Words + piece * 4;
            word[at] = v.x, word[at + 1] = v.y, word[at + 2] = v.z, word[at + 3] = v.w;
        }
}

/// Scales of a chunk: of the block's rows of w, and of the lane's two rows of each tile of x.
template <ProjectMmaSpec S>
struct Scales {
    float w, x[S.token_tiles][2];
};
template <ProjectMmaSpec S>
DG_DEVICE Scales<S> load_scales(const project_detail::Tokens<S>& tokens, const void* scales, u64 first,
                                u32 chunk) {
    Scales<S> s{};
    if constexpr (S.w_scale != Format::none) {
        s.w = tile::load_scale<S.w_scale>(scales, first + chunk);
#pragma unroll
        for (u32 t = 0; t < S.token_tiles; ++t)
#pragma unroll
            for (u32 i = 0; i < 2; ++i) s.x[t][i] = tokens.scale_of(t, i, chunk);
    }
    return s;
}

/// The products of a chunk of the warp's tiles; `rows`, `tokens`: the warp's first of the stage.
template <ProjectMmaSpec S>
DG_DEVICE void multiply_chunk(float (&sums)[S.row_tiles][S.token_tiles][4], ptx::SharedAddress stage,
                              u32 rows, u32 tokens, const Scales<S>& scales) {
    using L = Lane<S>;
    const u32 mine = ptx::lane_index() / 4;
    u32 b[S.token_tiles][kSteps][2];
#pragma unroll
    for (u32 t = 0; t < S.token_tiles; ++t) {
        u32 word[L::kXWords];
        load_words<S.x, L::kLoads, L::kXWords / L::kLoads>(
            word, stage + plan_wide(S).x, tokens + t * kProjectTileTokens + mine, Shape<S>::kSwapX);
#pragma unroll
        for (u32 step = 0; step < kSteps; ++step)
            pairs_of<L::kF16, S.x>(word, step, b[t][step][0], b[t][step][1]);
    }
#pragma unroll
    for (u32 r = 0; r < S.row_tiles; ++r) {
        u32 word[2][L::kLoads * 4], a[kSteps][4];
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
            load_words<S.w, L::kLoads, 4>(word[half], stage, rows + r * kProjectTileRows + half * 8 + mine,
                                          Shape<S>::kSwapW);
#pragma unroll
        for (u32 step = 0; step < kSteps; ++step) {
            pairs_of<L::kF16, S.w>(word[0], step, a[step][0], a[step][2]);
            pairs_of<L::kF16, S.w>(word[1], step, a[step][1], a[step][3]);
        }
#pragma unroll
        for (u32 t = 0; t < S.token_tiles; ++t) {
            float part[4] = {};
            float(&target)[4] = S.w_scale != Format::none ? part : sums[r][t];
#pragma unroll
            for (u32 step = 0; step < kSteps; ++step)
                if constexpr (L::kF16)
                    ptx::mma_m16n8k16_f16(target, a[step], b[t][step][0], b[t][step][1]);
                else
                    ptx::mma_m16n8k16_bf16(target, a[step], b[t][step][0], b[t][step][1]);
            if constexpr (S.w_scale != Format::none) {
#pragma unroll
                for (u32 i = 0; i < 4; ++i) {
                    const float scale =
                        S.x == Format::fp8_e4m3 ? ptx::mul_rn_f32(scales.w, scales.x[t][i % 2]) : scales.w;
                    sums[r][t][i] = ptx::fma_rn_f32(part[i], scale, sums[r][t][i]);
                }
            }
        }
    }
}

/// Adds the sums of one of the eight warps to those before it, and clears them.
template <ProjectMmaSpec S>
DG_DEVICE void add_to_totals(float (&sums)[S.row_tiles][S.token_tiles][4], ptx::SharedAddress totals,
                             bool first) {
    const ptx::SharedAddress mine = totals + ptx::thread_index() * 16;
#pragma unroll
    for (u32 tile = 0; tile < S.row_tiles * S.token_tiles; ++tile) {
        float(&s)[4] = sums[tile / S.token_tiles][tile % S.token_tiles];
        const ptx::SharedAddress at = mine + tile * kProjectThreads * 16;
        if (!first) {
            const auto before = ptx::ld_shared_v4_f32(at);
            s[0] = ptx::add_rn_f32(before.x, s[0]), s[1] = ptx::add_rn_f32(before.y, s[1]);
            s[2] = ptx::add_rn_f32(before.z, s[2]), s[3] = ptx::add_rn_f32(before.w, s[3]);
        }
        ptx::st_shared_v4_f32(at, s[0], s[1], s[2], s[3]);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) s[i] = 0;
    }
}

/// The totals, neighbouring rows of w by neighbouring threads.
template <ProjectMmaSpec S>
DG_DEVICE void store(const ProjectMmaParams& p, const ProjectPart& part, u32 first_row, u32 first_token,
                     ptx::SharedAddress totals) {
    for (u32 element = ptx::thread_index(); element < kWideRows * kWideRows; element += kProjectThreads) {
        const u32 row_in = element % kWideRows, token_in = element / kWideRows;
        const u32 row = first_row + row_in, token = first_token + token_in;
        if (row >= part.n || token >= p.rows) continue;
        const u32 warp = row_in / (kWideRows / 2) * 4 + token_in / (kWideRows / 4);
        const u32 r = row_in / kProjectTileRows % S.row_tiles,
                  t = token_in / kProjectTileTokens % S.token_tiles;
        const u32 lane = row_in % 8 * 4 + token_in % kProjectTileTokens / 2;
        const u32 fragment = row_in % kProjectTileRows / 8 * 2 + token_in % 2;
        float y = ptx::ld_shared_f32(
            totals + (((r * S.token_tiles + t) * kProjectThreads + warp * 32 + lane) * 4 + fragment) * 4);
        if constexpr (S.add != Format::none)
            y = ptx::add_rn_f32(tile::load<S.add>(part.add, token * part.add_stride + row), y);
        tile::store<S.y>(part.y, token * part.y_stride + row, y);
    }
}

}  // namespace project_wide_detail

template <ProjectMmaSpec S>
DG_KERNEL(kProjectThreads, 1)
project_wide(DG_GRID_CONSTANT const ProjectMmaParams p) {
    using namespace project_wide_detail;
    constexpr ProjectWideSmem kPlan = plan_wide(S);
    constexpr u32 kAhead = kPlan.stages - 1;
    static_assert(S.row_tiles == kWideRowTiles && S.token_tiles == kWideTokenTiles && S.wide);
    ptx::grid_dependency_launch();
    const u32 row_block = ptx::block_index() / p.token_blocks;
    u32 index = 0, before = 0;
    while (row_block >= p.parts[index].end) before = p.parts[index++].end;
    const ProjectPart& part = p.parts[index];
    const u32 first_row = (row_block - before) * kWideRows,
              first_token = ptx::block_index() % p.token_blocks * kWideRows;
    const u32 chunks = p.k / kProjectColumns, warp = ptx::warp_index();
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    ptx::grid_dependency_wait();

    const Operands<S> operands{static_cast<const u8*>(part.w),
                               static_cast<const u8*>(p.x) + part.x_offset * bytes_of(S.x),
                               part.stride_row * bytes_of(S.w),
                               p.x_stride * bytes_of(S.x),
                               part.n - 1,
                               first_row,
                               first_token,
                               p.rows};
    const u32 warp_row = warp / 4 * (kWideRows / 2), warp_token = warp % 4 * (kWideRows / 4);
    const project_detail::Tokens<S> tokens(p, part, first_token + warp_token);
    const u64 scale_row = u64{first_row / kProjectColumns} * part.scale_stride_row;
    // Chunks 0, 8, 16, .., then 1, 9, .. .
    const auto after = [chunks](u32 chunk) {
        return chunk + kProjectWarps < chunks ? chunk + kProjectWarps : chunk % kProjectWarps + 1;
    };

    u32 loaded = 0, next = 0;  // how many chunks, and which one follows
    const auto load = [&] {
        if (loaded < chunks) {
            operands.load(next, smem + loaded % kPlan.stages * kPlan.stage_bytes);
            ++loaded, next = after(next);
        }
        ptx::cp_async_commit();
    };
#pragma unroll 1
    for (u32 i = 0; i < kAhead; ++i) load();
    float sums[S.row_tiles][S.token_tiles][4] = {};
    u32 chunk = 0;
    Scales<S> scales = load_scales<S>(tokens, part.scale, scale_row, 0);
#pragma unroll 1
    for (u32 i = 0; i < chunks; ++i) {
        ptx::cp_async_wait<kAhead - 1>();
        ptx::sync_threads();
        // The chunk is there, and the stage of the chunk before is free.
        load();
        const u32 following = after(chunk);
        const Scales<S> now = scales;
        if (i + 1 < chunks) scales = load_scales<S>(tokens, part.scale, scale_row, following);
        multiply_chunk<S>(sums, smem + i % kPlan.stages * kPlan.stage_bytes, warp_row, warp_token, now);
        if (following != chunk + kProjectWarps)
            add_to_totals<S>(sums, smem + kPlan.totals, chunk % kProjectWarps == 0);
        chunk = following;
    }
    for (u32 empty = chunks; empty < kProjectWarps; ++empty)  // adds zeros: those of two signs become one
        add_to_totals<S>(sums, smem + kPlan.totals, false);
    ptx::sync_threads();
    store<S>(p, part, first_row, first_token, smem + kPlan.totals);
}

}  // namespace deep_gemm
