// The stream of Q8_0 weights of a group of eight warps, brought by bulk copies of two warps that do
// nothing else, each for half of the rows: a visit is 32 blocks of each row, four of each warp. No sector of a
// row is read for two warps, and those that multiply spend no instructions on addresses. Of rows that do not start
// at multiples of 16 bytes, the 16-byte vectors around a visit are copied.
#pragma once

#include <deep_gemm/kernel/gemv_q8_ring.h>
#include <deep_gemm/pipe/ring.h>

namespace deep_gemm::kernel {

template <GemvSpec S>
struct Q8BulkRing {
    using Layout = Q8Layout<S>;
    static constexpr u32 kRows = kMmaTileRows * S.row_tiles, kStageBytes = kRows * kQ8BulkPitch;
    static_assert(kRows <= 32);

    ptx::SharedAddress first, barriers;
    pipe::Cursor<S.stages> cursor;

    DG_DEVICE explicit Q8BulkRing(u32 group)
        : first(ptx::dynamic_smem() + group * ring_bytes_of(S)),
          barriers(ptx::dynamic_smem() + plan_smem(S).barriers + group * barrier_bytes_of(S) + 32) {}

    DG_DEVICE ptx::SharedAddress full(u32 stage) const { return barriers + stage * 16; }
    DG_DEVICE ptx::SharedAddress empty(u32 stage) const { return barriers + stage * 16 + 8; }
    DG_DEVICE ptx::SharedAddress stage_at(u32 stage) const { return first + stage * kStageBytes; }
};

/// The side that copies. Scope: a warp of kQ8Writers.
template <GemvSpec S>
struct Q8BulkWriter : Q8BulkRing<S> {
    using Ring = Q8BulkRing<S>;
    using Layout = typename Ring::Layout;

    static constexpr u32 kShare = Ring::kRows / kQ8Writers;  // rows of a writer
    static constexpr bool kAligned = S.row_alignment == 16;  // all rows have the same number of bytes to copy

    u32 tile, stride, tiles;
    u32 offset = 0, row_bytes;  // of the next visit in its rows, and where these end
    u32 first_row;              // of this writer

    DG_DEVICE Q8BulkWriter(const GemvParams& p, u32 group, u32 writer)
        : Ring(group),
          tile(group * ptx::grid_size() + ptx::block_index()),
          stride(ptx::grid_size() * S.groups),
          tiles(num_blocks<S>(p)),
          row_bytes(static_cast<u32>(row_bytes_of(S.w, p.k))),
          first_row(writer * kShare) {
        if (writer == 0 && ptx::lane_index() == 0) {
            for (u32 stage = 0; stage < S.stages; ++stage) {
                ptx::mbarrier_init(this->full(stage), kAligned ? kQ8Writers : Ring::kRows);
                ptx::mbarrier_init(this->empty(stage), kGemvWarps);
            }
            ptx::fence_mbarrier_init();
        }
        ptx::named_barrier_sync(1 + S.groups + group, kQ8Writers * 32);
    }

    DG_DEVICE bool more() const { return tile < tiles; }

    /// Copies the next visit when its stage is free.
    DG_DEVICE void copy(const GemvParams& p) {
        const u32 lane = ptx::lane_index(), stage = this->cursor.stage;
        const u32 left = row_bytes - offset, bytes = left < Layout::kRowBytes ? left : Layout::kRowBytes;
        ptx::mbarrier_wait(this->empty(stage), this->cursor.phase ^ 1);
        if constexpr (kAligned) {
            if (lane == 0) ptx::mbarrier_arrive_expect_tx(this->full(stage), kShare * bytes);
            ptx::sync_warp();
        }
        if (lane < kShare) {
            const u32 of_tiles = first_row + lane;
            u32 row = of_tiles % kMmaTileRows;
            const GemvMatrix& w = row_of_block<S>(p, find_block<S>(p, tile), of_tiles / kMmaTileRows, row);
            const ptx::SharedAddress to = this->stage_at(stage) + of_tiles * kQ8BulkPitch;
            const u8* from = w.data + row * w.row_stride + offset;
            const u32 before = kAligned ? 0 : static_cast<u32>(reinterpret_cast<u64>(from) % 16);
            const u32 around = kAligned ? bytes : align_up(before + bytes, 16u);
            if constexpr (!kAligned) ptx::mbarrier_arrive_expect_tx(this->full(stage), around);
            ptx::bulk_load(to, from - before, around, this->full(stage), ptx::l2_evict_first());
        }
        this->cursor.advance();
        offset += Layout::kRowBytes;
        if (offset >= row_bytes) offset = 0, tile += stride;
    }
};

/// The side that multiplies. Scope: each of the group's warps.
template <GemvSpec S>
struct Q8BulkReader : Q8BulkRing<S> {
    u32 held = 0;  // stage that this warp has read and not given back
    bool holds = false;

    DG_DEVICE explicit Q8BulkReader(u32 group) : Q8BulkRing<S>(group) {}

    /// The stage of the next visit; gives the one before back. Its own is kept, because a load that has been
    /// issued is not one that has read.
    DG_DEVICE ptx::SharedAddress next() {
        const u32 stage = this->cursor.stage;
        ptx::mbarrier_wait(this->full(stage), this->cursor.phase);
        ptx::sync_warp();
        if (holds && ptx::lane_index() == 0) ptx::mbarrier_arrive(this->empty(held));
        held = stage;
        holds = true;
        this->cursor.advance();
        return this->stage_at(stage);
    }
};

}  // namespace deep_gemm::kernel
