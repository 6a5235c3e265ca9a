// What the loading warps of project_wide do (kernel/project_wide.cuh): both operands come as they are to
// shared memory, by copies that each thread waits for and reads itself; what it reads, FP8 as what the mma
// takes, goes to a ring of stages as wgmma reads them. A stage has 64 columns of 128 rows of each operand,
// 128 bytes a row in swizzle atoms of eight.
//
// The order of K: project_mma lets a lane of four have 16 bytes of a row of w, so that step s of its mma.sync
// has four columns of every 16 (FP8 weights) or every 8 (bf16). Here lane q of four reads the same bytes and
// puts its four columns of step s where wgmma has elements 4 q to 4 q + 3 of the sixteen of step s.
#pragma once

#include <deep_gemm/kernel/project_mma.cuh>
#include <deep_gemm/pipe/ring.h>
#include <deep_gemm/ptx/shared_words.h>
#include <deep_gemm/ptx/stream.h>

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
    /// A stage's columns on their way to this thread's places of `raw`.
    DG_DEVICE void copy(ptx::SharedAddress raw, u32 column) const {
#pragma unroll
        for (u32 g = 0; g < kGroups; ++g)
#pragma unroll
            for (u32 load = 0; load < kLoads; ++load)
#pragma unroll
                for (u32 piece = 0; piece < kWords / 4; ++piece)
                    ptx::cp_async_16(
                        place_of(raw, (g * kLoads + load) * kWords / 4 + piece),
                        base + u64{offset[g]} * 16 + (column + load * 32) * bytes_of(F) + piece * 16, 16);
    }
    /// Those that have come, to a stage: all are read before the first is written, so that neither waits.
    static DG_DEVICE void store(ptx::SharedAddress raw, ptx::SharedAddress tile) {
        constexpr u32 kOfStep = bytes_of(F);  // words of four columns
        const u32 q = ptx::lane_index() % 4, row = row_of_eight();
        u32 word[kGroups * kLoads * kWords];
#pragma unroll
        for (u32 i = 0; i < kGroups * kLoads * kWords; i += 4) {
            const ptx::UInt4 v = ptx::ld_shared_v4_u32(place_of(raw, i / 4));
            word[i] = v.x, word[i + 1] = v.y, word[i + 2] = v.z, word[i + 3] = v.w;
        }
#pragma unroll
        for (u32 step = 0; step < 4; ++step) {
            const ptx::SharedAddress to =
                tile + (ptx::warp_index() % 4 * 32 + row) * 128 + ((step * 2 + q / 2) ^ row) * 16 + q % 2 * 8;
#pragma unroll
            for (u32 g = 0; g < kGroups; ++g) {
                u32 mine[kOfStep], low, high;
#pragma unroll
                for (u32 i = 0; i < kOfStep; ++i) mine[i] = word[(g * 4 + step) * kOfStep + i];
                project_detail::pairs_of<Lane<S>::kF16, F>(mine, 0, low, high);
                ptx::st_shared_v2_u32(to + g * 8 * 128, low, high);
            }
        }
    }
    /// Where piece `piece` of 16 bytes of this thread comes to.
    static DG_DEVICE ptx::SharedAddress place_of(ptx::SharedAddress raw, u32 piece) {
        return raw + (piece * kWideLoadThreads + ptx::thread_index() % kWideLoadThreads) * 16;
    }
};

/// What the sum of a chunk is multiplied by for a row of x: a thread has one of the block's rows. Scales of w
/// are the same for all of them: the lanes of a warp keep those of as many chunks.
template <ProjectMmaSpec S>
class RowScale {
  public:
    DG_DEVICE RowScale(const ProjectMmaParams& p, const Block& block, u32 chunks)
        : w_(block.part->scale),
          first_w_(block.first_row / kProjectColumns * block.part->scale_stride_row),
          chunks_(chunks) {
        const u32 row = block.first_token + row_of_block(), last = p.rows - 1;
        x_ = p.x_scale + (row < last ? row : last) * p.x_scale_stride + block.part->x_scale_offset;
#pragma unroll
        for (u32 i = 0; i < kHeld; ++i) {
            const u32 chunk = i * 32 + ptx::lane_index();
            held_[i] = of_w(chunk < chunks ? chunk : chunks - 1);
        }
        fetch(0);
    }
    /// x's scale of the chunk that comes next.
    DG_DEVICE void fetch(u32 chunk) {
        if constexpr (S.x == Format::fp8_e4m3) of_x_ = ptx::ld_global_f32(x_ + chunk);
    }
    DG_DEVICE void store(Ring<S> ring, u32 stage, u32 chunk) const {
        if constexpr (S.w_scale == Format::none) return;
        const float of_lane = chunk < 32 ? held_[0] : held_[1];
        const float w = chunk < kHeld * 32
                            ? codec::float_of_bits(ptx::shfl_idx(codec::bits_of_float(of_lane), chunk % 32))
                            : of_w(chunk);
        ptx::st_shared_f32(ring.scale(stage, row_of_block()),
                           S.x == Format::fp8_e4m3 ? ptx::mul_rn_f32(w, of_x_) : w);
    }

  private:
    static constexpr u32 kHeld = 2;

    static DG_DEVICE u32 row_of_block() {
        return ptx::thread_index() % kWideRows;
    }
    [[nodiscard]] DG_DEVICE float of_w(u32 chunk) const {
        if constexpr (S.w_scale == Format::none) return 1;
        return tile::load_scale<S.w_scale>(w_, first_w_ + chunk);
    }

    const void* w_;
    const float* x_;
    u64 first_w_;
    u32 chunks_;
    float held_[kHeld], of_x_ = 0;
};

/// All blocks of the CTA, stage by stage, while copies for the stages after it are on their way. What is
/// written here is for wgmma, but the fence between the proxies is the readers': it waits for all that a
/// thread has asked memory for, here for the stages to come.
template <ProjectMmaSpec S>
DG_DEVICE void load_blocks(const ProjectMmaParams& p, Ring<S> ring) {
    constexpr ProjectWideSmem kPlan = plan_wide(S);
    using X = Rows<S, S.x>;
    using W = Rows<S, S.w>;
    pipe::Cursor<kPlan.stages> at;
    const u32 chunks = p.k / kProjectColumns, stages = chunks * 2;
    for (u32 index = ptx::block_index(); index < blocks_of(p); index += ptx::grid_size()) {
        const Block block(p, index);
        X x;
        W w;
        x.place(p.x, p.x_stride, block.part->x_offset, block.first_token, p.rows - 1);
        w.place(block.part->w, block.part->stride_row, 0, block.first_row, block.part->n - 1);
        RowScale<S> scale(p, block, chunks);
        u32 copied = 0, to_copy = 0, chunk = 0;  // stages, the chunk of the next, the chunk at hand
        const auto raw_of = [&](u32 stage) {
            return ring.base + kPlan.raw + stage % kPlan.raws * kPlan.raw_bytes;
        };
        const auto copy = [&] {
            if (copied < stages) {
                const u32 column = to_copy * kProjectColumns + copied % 2 * 64;
                x.copy(raw_of(copied), column);
                w.copy(raw_of(copied) + kPlan.raw_w, column);
                if (copied % 2 == 1) to_copy = chunk_after(to_copy, chunks);
            }
            ++copied;
            ptx::cp_async_commit();
        };
#pragma unroll 1
        for (u32 i = 0; i + 1 < kPlan.raws; ++i) copy();
#pragma unroll 1
        for (u32 stage = 0; stage < stages; ++stage) {
            ptx::cp_async_wait<kPlan.raws - 2>();  // what this thread has copied for the stage is there
            copy();
            ptx::mbarrier_wait(ring.empty(at.stage), at.phase ^ 1);
            X::store(raw_of(stage), ring.x(at.stage));
            W::store(raw_of(stage) + kPlan.raw_w, ring.w(at.stage));
            if (stage % 2 == 0) {
                scale.store(ring, at.stage, chunk);
                chunk = chunk_after(chunk, chunks);
                if (stage + 2 < stages) scale.fetch(chunk);
            }
            ptx::sync_warp();
            if (ptx::lane_index() == 0) ptx::mbarrier_arrive(ring.full(at.stage));
            at.advance();
        }
    }
}

}  // namespace deep_gemm::project_wide_detail
