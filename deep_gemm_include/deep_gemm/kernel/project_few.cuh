// Projections of up to 8 rows on tensor cores (spec/project_mma.h), with the sums of project_mma. A block of
// threads has 16 rows of w after the other, in strides of the grid. What its warps multiply next is on its way
// to shared memory, most of it before the preceding kernel has finished: these kernels wait for memory, and
// for each other. A lane reads only what it has asked for itself, so that nobody waits for other lanes until
// sums are added. Called by op/project.cpp.
#pragma once

#include <deep_gemm/kernel/project_tile.h>
#include <deep_gemm/ptx/shared.h>

namespace deep_gemm {

namespace project_detail {

/// The part that a block of rows of w belongs to, and its first row there.
struct RowBlock {
    u32 part, first_row;

    DG_DEVICE RowBlock(const ProjectMmaParams& p, u32 block) : part(0) {
        u32 before = 0;
        while (block >= p.parts[part].end) before = p.parts[part++].end;
        first_row = (block - before) * kProjectTileRows;
    }
};

/// The weights of the chunks that come next, block of rows after block of rows.
template <ProjectMmaSpec S>
class FewWeights {
    using L = Lane<S>;

  public:
    DG_DEVICE FewWeights(const ProjectMmaParams& p, u32 block, u32 blocks, u32 stride)
        : p_(p),
          mine_(ptx::dynamic_smem() + ptx::warp_index() * kProjectFewSlotBytes<S> / kProjectWarps +
                ptx::lane_index() * 16),
          chunks_(p.k / kProjectColumns),
          block_(block),
          blocks_(blocks),
          stride_(stride) {
        find_rows();
#pragma unroll
        for (u32 i = 0; i < S.depth; ++i) fetch(i % S.few);
    }
    /// Asks for chunk `of_warp` of the warp, of the block of rows that is next.
    DG_DEVICE void fetch(u32 of_warp) {
        const u32 chunk = ptx::warp_index() + of_warp * kProjectWarps;
        if (block_ < blocks_ && chunk < chunks_) {
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
#pragma unroll
                for (u32 load = 0; load < L::kLoads; ++load)
                    ptx::cp_async_16(at(fetched_, half, load),
                                     row_[half] + u64{chunk * kProjectColumns +
                                                      load * (kProjectColumns / L::kLoads)} *
                                                      bytes_of(S.w),
                                     16);
        }
        ptx::cp_async_commit();
        fetched_ = next(fetched_);
        if (of_warp + 1 < S.few) return;
        block_ += stride_;
        find_rows();
    }
    /// Until what was asked for first is there.
    static DG_DEVICE void wait() {
        ptx::cp_async_wait<S.depth - 1>();
    }
    DG_DEVICE void read(Weights<S>& weights) const {
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
#pragma unroll
            for (u32 load = 0; load < L::kLoads; ++load) {
                const ptx::UInt4 v = ptx::ld_shared_v4_u32(at(taken_, half, load));
                u32* to = weights.word[0][half] + load * 4;
                to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
            }
    }
    /// The values that were read have been used.
    DG_DEVICE void free() {
        taken_ = next(taken_);
    }

  private:
    DG_DEVICE void find_rows() {
        if (block_ >= blocks_) return;
        const RowBlock rows(p_, block_);
        const ProjectPart& part = p_.parts[rows.part];
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            // Rows beyond the last are the last, and their sums are dropped.
            const u32 wanted = rows.first_row + half * 8 + ptx::lane_index() / 4;
            const u64 row = wanted < part.n ? wanted : part.n - 1;
            row_[half] =
                static_cast<const u8*>(part.w) + (row * part.stride_row + L::column(0)) * bytes_of(S.w);
        }
    }
    static DG_DEVICE u32 next(u32 slot) {
        return slot + 1 < S.depth ? slot + 1 : 0;
    }
    [[nodiscard]] DG_DEVICE ptx::SharedAddress at(u32 slot, u32 half, u32 load) const {
        return mine_ + slot * kProjectFewSlotBytes<S> + (half * L::kLoads + load) * 512;
    }

    const ProjectMmaParams& p_;
    ptx::SharedAddress mine_;
    u32 chunks_, block_, blocks_, stride_;
    u32 fetched_ = 0, taken_ = 0;
    const u8* row_[2] = {};
};

/// Scales of the warp's chunks of a block of rows: lane i has that of chunk i of the warp.
template <ProjectMmaSpec S>
DG_DEVICE float few_scales(const ProjectMmaParams& p, u32 block, u32 blocks) {
    static_assert(S.few <= ptx::kWarpThreads);
    const u32 chunk = ptx::warp_index() + ptx::lane_index() * kProjectWarps;
    if (S.w_scale == Format::none || block >= blocks || chunk >= p.k / kProjectColumns) return 1;
    const RowBlock rows(p, block);
    const ProjectPart& part = p.parts[rows.part];
    return tile::load_scale<S.w_scale>(
        part.scale, u64{rows.first_row / kProjectColumns} * part.scale_stride_row + chunk);
}

/// The lane's part of the rows of x and a chunk, as it is multiplied.
template <ProjectMmaSpec S>
struct FewTokens {
    TokenTile<S> tile;

    DG_DEVICE void round() {
        if constexpr (S.rounds) {
            u32 codes[Lane<S>::kMmaWords];
            round_tokens<S>(codes, tile.scale, tile.word);
#pragma unroll
            for (u32 i = 0; i < Lane<S>::kMmaWords; ++i) tile.word[i] = codes[i];
        }
    }
    DG_DEVICE void multiply_with(const Weights<S>& weights, float (&sums)[1][1][4]) const {
        u32 words[Lane<S>::kMmaWords];
#pragma unroll
        for (u32 i = 0; i < Lane<S>::kMmaWords; ++i) words[i] = tile.word[i];
        multiply<S>(sums, 0, weights, words, tile.scale);
    }
};

/// Blocks of rows `block`, `block` + `stride`, ..
template <ProjectMmaSpec S>
DG_DEVICE void run_few(const ProjectMmaParams& p, u32 block, u32 stride) {
    constexpr u32 kHeld = project_few_held(S);  // chunks of x of a warp that registers have room for
    constexpr bool kStays = kHeld == S.few;     // for all blocks of rows that meet the same columns
    const u32 blocks = p.parts[p.num_parts - 1].end, chunks = p.k / kProjectColumns;
    const u32 warp = ptx::warp_index();
    FewWeights<S> weights(p, block, blocks, stride);
    float scales = few_scales<S>(p, block, blocks);
    ptx::grid_dependency_wait();

    FewTokens<S> x[kHeld];
    u64 columns = ~u64{0};  // of x, that are in registers
    ptx::SharedAddress sums_at = ptx::dynamic_smem() + S.depth * kProjectFewSlotBytes<S>;
    u32 flip = project_sums_bytes(S);
    for (; block < blocks; block += stride) {
        const RowBlock rows(p, block);
        const ProjectPart& part = p.parts[rows.part];
        const bool fresh = !kStays || part.x_offset != columns;
        columns = part.x_offset;
        const Tokens<S> tokens(p, part, 0);
        const float next_scales = few_scales<S>(p, block + stride, blocks);
        float sums[1][1][4] = {};
        const auto load = [&](u32 i) {
            const u32 chunk = warp + i * kProjectWarps;
            if (i < S.few && chunk < chunks) x[i % kHeld].tile.load(tokens, 0, chunk);
        };
        if (fresh) {
#pragma unroll
            for (u32 i = 0; i < kHeld; ++i) load(i);
        }
#pragma unroll
        for (u32 i = 0; i < S.few; ++i) {
            const float scale = codec::float_of_bits(ptx::shfl_idx(codec::bits_of_float(scales), i));
            weights.wait();
            if (warp + i * kProjectWarps < chunks) {
                if (fresh) x[i % kHeld].round();
                Weights<S> w;
                weights.read(w);
                w.scale[0] = scale;
                x[i % kHeld].multiply_with(w, sums);
            }
            if constexpr (!kStays) load(i + kHeld);
            weights.free();
            weights.fetch((i + S.depth) % S.few);
        }
        // The other half of the sums may still be read.
        store<S>(p, part, rows.first_row, 0, sums, sums_at);
        sums_at += flip, flip = 0 - flip;
        scales = next_scales;
    }
}

}  // namespace project_detail

template <ProjectMmaSpec S>
DG_KERNEL(kProjectThreads, kProjectFewCtas)
project_few(DG_GRID_CONSTANT const ProjectMmaParams p) {
    ptx::grid_dependency_launch();
    project_detail::run_few<S>(p, ptx::block_index(), ptx::grid_size());
}

template <ProjectPairSpec S>
DG_KERNEL(kProjectThreads, kProjectFewCtas)
project_few_pair(DG_GRID_CONSTANT const ProjectPairParams p) {
    ptx::grid_dependency_launch();
    const u32 block = ptx::block_index();
    if (block < p.first_blocks)
        project_detail::run_few<S.first>(p.first, block, p.first_blocks);
    else
        project_detail::run_few<S.second>(p.second, block - p.first_blocks,
                                          ptx::grid_size() - p.first_blocks);
}

}  // namespace deep_gemm
