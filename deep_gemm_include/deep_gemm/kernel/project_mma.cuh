// Projections on tensor cores (spec/project_mma.h): a block of threads has 16 rows of w, or 32, and up to 64
// rows of x; its eight warps take turns along K. Weights nobody writes are on their way before the preceding
// kernel has finished. Called by op/project.cpp.
#pragma once

#include <deep_gemm/kernel/project_tile.h>

namespace deep_gemm {

namespace project_detail {

/// All rows of x of the block; those of a tile are on their way while the tile before multiplies.
template <ProjectMmaSpec S>
DG_DEVICE void multiply_chunk(float (&sums)[Lane<S>::R][Lane<S>::T][4], const Weights<S>& weights,
                              const Tokens<S>& tokens, u32 chunk) {
    using L = Lane<S>;
    TokenTile<S> x[2];
    x[0].load(tokens, 0, chunk);
#pragma unroll
    for (u32 t = 0; t < L::T; ++t) {
        if (t + 1 < L::T) x[(t + 1) % 2].load(tokens, t + 1, chunk);
        x[t % 2].multiply_with(weights, sums, t);
    }
}

/// Adds the warps' sums in order and stores.
template <ProjectMmaSpec S>
DG_DEVICE void store(const ProjectMmaParams& p, const ProjectPart& part, u32 first_row, u32 first_token,
                     const float (&sums)[Lane<S>::R][Lane<S>::T][4]) {
    constexpr u32 kTile = kProjectTileRows * kProjectTileTokens, kElements = Lane<S>::R * Lane<S>::T * kTile;
    const ptx::SharedAddress smem = ptx::dynamic_smem();
    const u32 lane = ptx::lane_index();
#pragma unroll
    for (u32 r = 0; r < Lane<S>::R; ++r)
#pragma unroll
        for (u32 t = 0; t < Lane<S>::T; ++t)
#pragma unroll
            for (u32 i = 0; i < 4; ++i)
                ptx::st_shared_f32(
                    smem + (ptx::warp_index() * kElements + (r * Lane<S>::T + t) * kTile + i * 32 + lane) * 4,
                    sums[r][t][i]);
    ptx::sync_threads();
    for (u32 element = ptx::thread_index(); element < kElements; element += kProjectThreads) {
        // Neighbouring threads take neighbouring rows of w, which are neighbours in y.
        const u32 tile = element / kTile, inside = element % kTile;
        const u32 row_in = inside % kProjectTileRows, token_in = inside / kProjectTileRows;
        const u32 row = first_row + tile / Lane<S>::T * kProjectTileRows + row_in;
        const u32 token = first_token + tile % Lane<S>::T * kProjectTileTokens + token_in;
        if (row >= part.n || token >= p.rows) continue;
        const u32 fragment = row_in / 8 * 2 + token_in % 2, of = row_in % 8 * 4 + token_in / 2;
        const ptx::SharedAddress at = smem + (tile * kTile + fragment * 32 + of) * 4;
        float y = ptx::ld_shared_f32(at);
#pragma unroll
        for (u32 warp = 1; warp < kProjectWarps; ++warp)
            y = ptx::add_rn_f32(y, ptx::ld_shared_f32(at + warp * kElements * 4));
        if constexpr (S.add != Format::none)
            y = ptx::add_rn_f32(tile::load<S.add>(part.add, token * part.add_stride + row), y);
        tile::store<S.y>(part.y, token * part.y_stride + row, y);
    }
}

/// Block `block` of a launch.
template <ProjectMmaSpec S>
DG_DEVICE void run_block(const ProjectMmaParams& p, u32 block) {
    using L = Lane<S>;
    constexpr u32 kRows = S.row_tiles * kProjectTileRows, kDepth = chunks_in_flight_of(S);
    const u32 row_block = block / p.token_blocks;
    const u32 first_token = block % p.token_blocks * S.token_tiles * kProjectTileTokens;
    u32 index = 0, before = 0;
    while (row_block >= p.parts[index].end) before = p.parts[index++].end;
    const ProjectPart& part = p.parts[index];
    const u32 first_row = (row_block - before) * kRows;

    WeightRows<S> rows;
#pragma unroll
    for (u32 r = 0; r < L::R; ++r) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            // Rows beyond the last are the last, and their sums are dropped.
            const u32 wanted = first_row + r * kProjectTileRows + half * 8 + ptx::lane_index() / 4;
            const u64 row = wanted < part.n ? wanted : part.n - 1;
            rows.row[r][half] =
                static_cast<const u8*>(part.w) + (row * part.stride_row + L::column(0)) * bytes_of(S.w);
        }
        const u32 first = first_row + r * kProjectTileRows;
        rows.scale[r] = (first < part.n ? first : part.n - 1) / kProjectColumns * part.scale_stride_row;
    }

    const u32 chunks = p.k / kProjectColumns, warp = ptx::warp_index();
    Weights<S> weights[kDepth];
#pragma unroll
    for (u32 i = 0; i < kDepth; ++i)
        if (warp + i * kProjectWarps < chunks)
            load_weights<S>(weights[i], rows, part.scale, warp + i * kProjectWarps);
    ptx::grid_dependency_wait();
    const Tokens<S> tokens(p, part, first_token);
    // A single tile of rows of x comes beside the weights that it meets, and no later: registers have room.
    constexpr bool kBeside = L::T == 1 && L::R == 1;
    TokenTile<S> x[kBeside ? kDepth : 1];
    if constexpr (kBeside) {
#pragma unroll
        for (u32 i = 0; i < kDepth; ++i)
            if (warp + i * kProjectWarps < chunks) x[i].load(tokens, 0, warp + i * kProjectWarps);
    }
    float sums[L::R][L::T][4] = {};
    for (u32 base = warp; base < chunks; base += kDepth * kProjectWarps) {
#pragma unroll
        for (u32 i = 0; i < kDepth; ++i) {
            const u32 chunk = base + i * kProjectWarps;
            if (chunk >= chunks) break;
            if constexpr (kBeside)
                x[i].multiply_with(weights[i], sums, 0);
            else
                multiply_chunk<S>(sums, weights[i], tokens, chunk);
            const u32 next = chunk + kDepth * kProjectWarps;
            if (next >= chunks) continue;
            load_weights<S>(weights[i], rows, part.scale, next);
            if constexpr (kBeside) x[i].load(tokens, 0, next);
        }
    }
    store<S>(p, part, first_row, first_token, sums);
}

}  // namespace project_detail

template <ProjectMmaSpec S>
DG_KERNEL(kProjectThreads, ctas_per_sm_of(S))
project_mma(DG_GRID_CONSTANT const ProjectMmaParams p) {
    ptx::grid_dependency_launch();
    project_detail::run_block<S>(p, ptx::block_index());
}

template <ProjectPairSpec S>
DG_KERNEL(kProjectThreads, ctas_per_sm_of(S))
project_pair(DG_GRID_CONSTANT const ProjectPairParams p) {
    ptx::grid_dependency_launch();
    const u32 block = ptx::block_index();
    if (block < p.first_blocks)
        project_detail::run_block<S.first>(p.first, block);
    else
        project_detail::run_block<S.second>(p.second, block - p.first_blocks);
}

}  // namespace deep_gemm
