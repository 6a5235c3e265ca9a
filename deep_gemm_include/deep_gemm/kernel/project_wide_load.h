// What the loading warps of project_wide do (kernel/project_wide.cuh): both operands come from memory by way
// of registers, where FP8 becomes what the mma takes, and go to a ring of stages as wgmma reads them. A stage
// has 64 columns of 128 rows of each operand, 128 bytes a row in swizzle atoms of eight.
//
// The order of K: project_mma lets a lane of four have 16 bytes of a row of w, so that step s of its mma.sync
// has four columns of every 16 (FP8 weights) or every 8 (bf16). Here lane q of four reads the same bytes and
// puts its four columns of step s where wgmma has elements 4 q to 4 q + 3 of the sixteen of step s.
#pragma once

#include <deep_gemm/kernel/project_mma.cuh>
#include <deep_gemm/pipe/ring.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm::project_wide_detail {

using project_detail::Lane;

/// The block of threads' block `index` of the launch.
struct Block {
    const ProjectPart* part;
    u32 first_row, first_token;

    DG_DEVICE Block(const ProjectMmaParams& p, u32 index) {
        const u32 row_block = index / p.token_blocks;
        u32 of = 0, before = 0;
        while (row_block >= p.parts[of].end) before = p.parts[of++].end;
        part = &p.parts[of];
        first_row = (row_block - before) * kWideRows;
        first_token = index % p.token_blocks * kWideRows;
    }
};
DG_DEVICE u32 blocks_of(const ProjectMmaParams& p) {
    return p.parts[p.num_parts - 1].end * p.token_blocks;
}

/// Chunks 0, 8, 16, .., then 1, 9, ..: those of one warp of project_mma after the other.
DG_DEVICE u32 chunk_after(u32 chunk, u32 chunks) {
    return chunk + kProjectWarps < chunks ? chunk + kProjectWarps : chunk % kProjectWarps + 1;
}

/// The barriers and stages.
template <ProjectMmaSpec S>
struct Ring {
    static constexpr ProjectWideSmem kPlan = plan_wide(S);
    ptx::SharedAddress base;

    DG_DEVICE ptx::SharedAddress x(u32 stage) const { return base + stage * kWideStageBytes; }
    DG_DEVICE ptx::SharedAddress w(u32 stage) const { return x(stage) + kWideTileBytes; }
    DG_DEVICE ptx::SharedAddress scale(u32 stage, u32 row) const {
        return base + kPlan.scales + (stage * kWideRows + row) * 4;
    }
    DG_DEVICE ptx::SharedAddress full(u32 stage) const { return base + kPlan.barriers + stage * 16; }
    DG_DEVICE ptx::SharedAddress empty(u32 stage) const { return full(stage) + 8; }
};

/// Rows of an operand, of type F: a thread has a row of each eight of its warp's 32, and of it what lane q
/// of four reads.
template <ProjectMmaSpec S, Format F>
struct Rows {
    static constexpr u32 kSpan = Lane<S>::kNarrow ? 16 : 8;  // columns that a lane reads at once
    static constexpr u32 kLoads = 16 / kSpan;                // of a row and stage
    static constexpr u32 kWords = kSpan * bytes_of(F) / 4;
    static constexpr u32 kGroups = 4;
    static constexpr u32 kAll = kGroups * kLoads * kWords;

    const u8* base;
    u32 offset[kGroups];  // of the rows, in units of 16 bytes

    /// The row of eight; half a warp has rows whose swizzles differ.
    static DG_DEVICE u32 row_of_eight() {
        const u32 lane = ptx::lane_index();
        return lane / 4 % 4 * 2 + lane / 16;
    }
    /// Rows from `last` on are row `last`: their sums are dropped.
    DG_DEVICE void place(const void* data, u64 stride, u64 column, u32 first, u32 last) {
        base = static_cast<const u8*>(data) + (column + ptx::lane_index() % 4 * kSpan) * bytes_of(F);
#pragma unroll
        for (u32 g = 0; g < kGroups; ++g) {
            const u32 row = first + ptx::warp_index() % 4 * 32 + g * 8 + row_of_eight();
            offset[g] = static_cast<u32>((row < last ? row : last) * stride * bytes_of(F) / 16);
        }
    }
    template <u32 N>
    DG_DEVICE void load(u32 (&word)[N], u32 column) const {
        static_assert(N >= kAll);
#pragma unroll
        for (u32 g = 0; g < kGroups; ++g)
#pragma unroll
            for (u32 load = 0; load < kLoads; ++load)
#pragma unroll
                for (u32 piece = 0; piece < kWords / 4; ++piece) {
                    const ptx::UInt4 v = ptx::ld_global_v4_u32(
                        base + u64{offset[g]} * 16 + (column + load * 32) * bytes_of(F) + piece * 16);
                    const u32 at = (g * kLoads + load) * kWords + piece * 4;
                    word[at] = v.x, word[at + 1] = v.y, word[at + 2] = v.z, word[at + 3] = v.w;
                }
    }
    template <u32 N>
    static DG_DEVICE void store(const u32 (&word)[N], ptx::SharedAddress tile) {
        const u32 q = ptx::lane_index() % 4, row = row_of_eight();
#pragma unroll
        for (u32 g = 0; g < kGroups; ++g)
#pragma unroll
            for (u32 step = 0; step < 4; ++step) {
                constexpr u32 kOfStep = bytes_of(F);  // words of four columns
                u32 mine[kOfStep], low, high;
#pragma unroll
                for (u32 i = 0; i < kOfStep; ++i) mine[i] = word[g * kLoads * kWords + step * kOfStep + i];
                project_detail::pairs_of<Lane<S>::kF16, F>(mine, 0, low, high);
                const u32 unit = (step * 2 + q / 2) ^ row;
                ptx::st_shared_u64(
                    tile + ((ptx::warp_index() % 4 * 4 + g) * 8 + row) * 128 + unit * 16 + q % 2 * 8,
                    u64{low} | u64{high} << 32);
            }
    }
};

/// What the sum of a chunk is multiplied by for a row of x: a thread has one of the block's rows.
template <ProjectMmaSpec S>
struct RowScale {
    const void* w;
    const float* x;
    u64 first_w;
    float of_w, of_x;

    DG_DEVICE RowScale(const ProjectMmaParams& p, const Block& block) : w(block.part->scale) {
        const u32 row = block.first_token + row_of_block(), last = p.rows - 1;
        first_w = block.first_row / kProjectColumns * block.part->scale_stride_row;
        x = p.x_scale + (row < last ? row : last) * p.x_scale_stride + block.part->x_scale_offset;
    }
    static DG_DEVICE u32 row_of_block() { return ptx::thread_index() % kWideRows; }

    DG_DEVICE void load(u32 chunk) {
        if constexpr (S.w_scale != Format::none) of_w = tile::load_scale<S.w_scale>(w, first_w + chunk);
        if constexpr (S.x == Format::fp8_e4m3) of_x = ptx::ld_global_f32(x + chunk);
    }
    DG_DEVICE void store(Ring<S> ring, u32 stage) const {
        if constexpr (S.w_scale != Format::none)
            ptx::st_shared_f32(ring.scale(stage, row_of_block()),
                               S.x == Format::fp8_e4m3 ? ptx::mul_rn_f32(of_w, of_x) : of_w);
    }
};

constexpr u32 kTilesOfChunk = 4;  // x and w of two stages

/// All blocks of the CTA, tile by tile: x of a stage, then w. Some tiles are on their way to registers while
/// the one before is stored. What is written here is for wgmma, but the fence between the proxies is the
/// readers': it waits for all that a thread has asked memory for, here for the tiles to come.
template <ProjectMmaSpec S>
DG_DEVICE void load_blocks(const ProjectMmaParams& p, Ring<S> ring) {
    constexpr u32 kAhead = wide_tiles_ahead_of(S), kUnroll = kAhead % 2 == 0 ? kAhead : 2 * kAhead;
    using X = Rows<S, S.x>;
    using W = Rows<S, S.w>;
    constexpr u32 kWords = X::kAll > W::kAll ? X::kAll : W::kAll;
    pipe::Cursor<plan_wide(S).stages> at;
    const u32 chunks = p.k / kProjectColumns, tiles = chunks * kTilesOfChunk;
    for (u32 index = ptx::block_index(); index < blocks_of(p); index += ptx::grid_size()) {
        const Block block(p, index);
        X x;
        W w;
        x.place(p.x, p.x_stride, block.part->x_offset, block.first_token, p.rows - 1);
        w.place(block.part->w, block.part->stride_row, 0, block.first_row, block.part->n - 1);
        RowScale<S> scale(p, block);
        static_assert(kAhead < kTilesOfChunk);  // so that those of one chunk are on their way at a time
        u32 word[kAhead][kWords], chunk = 0, half = 0;  // half: of the chunk, of the tile loaded next
        const auto load = [&](u32 tile) {  // `tile` is a constant: which registers, and whether of x
            const u32 column = chunk * kProjectColumns + half * 64;
            if (tile % 2 == 0) {
                if (half == 0) scale.load(chunk);
                return x.load(word[tile % kAhead], column);
            }
            w.load(word[tile % kAhead], column);
            half ^= 1;
            if (half == 0) chunk = chunk_after(chunk, chunks);
        };
#pragma unroll
        for (u32 i = 0; i < kAhead; ++i) load(i);
#pragma unroll 1
        for (u32 base = 0; base < tiles; base += kUnroll)
#pragma unroll
            for (u32 i = 0; i < kUnroll; ++i) {
                if (base + i >= tiles) break;
                if (i % 2 == 0) {
                    ptx::mbarrier_wait(ring.empty(at.stage), at.phase ^ 1);
                    X::store(word[i % kAhead], ring.x(at.stage));
                    if ((base + i) % kTilesOfChunk == 0) scale.store(ring, at.stage);
                } else {
                    W::store(word[i % kAhead], ring.w(at.stage));
                    ptx::sync_warp();
                    if (ptx::lane_index() == 0) ptx::mbarrier_arrive(ring.full(at.stage));
                    at.advance();
                }
                if (base + i + kAhead < tiles) load(i + kAhead);
            }
    }
}

}  // namespace deep_gemm::project_wide_detail
