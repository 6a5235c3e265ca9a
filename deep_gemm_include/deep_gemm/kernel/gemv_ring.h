// The stream of weights of one warp of the small-batch kernel: a ring of visits in shared memory, filled by
// cp.async, that runs ahead of the sums through all tiles of rows of the warp's group, so that it never
// drains between two tiles.
//
// Eight lanes copy 128 bytes of a row, one line of the cache. Bytes lie in the stage so that the reads of
// fragments have no bank conflicts: rows are 128 bytes apart, and a bit (or two) of the row is added to the
// place in it.
#pragma once

#include <deep_gemm/kernel/gemv_prefetch.h>
#include <deep_gemm/ptx/copy.h>

namespace deep_gemm::kernel {

/// Rows a lane group of eight copies at once, and bytes between the copies of a lane in a stage.
constexpr u32 kCopyRows = 4, kCopyBytes = kCopyRows * kGemvVisitBytes;

/// Where the bytes at `place` of `row` lie in a row of a stage.
template <GemvSpec S>
DG_DEVICE u32 swizzled(u32 row, u32 place) {
    return lane_bytes_of(S) == 16 ? place ^ row % 2 * 64 : place ^ row % 4 * 32;
}

/// The words of one step of the visit in `stage`. `place`: of this lane in a stage.
template <GemvSpec S>
DG_DEVICE void read_stage(GemvWords<S>& to, ptx::SharedAddress stage, u32 place, u32 step) {
    const ptx::SharedAddress mine = stage + (place ^ step * 4 * lane_bytes_of(S));
#pragma unroll
    for (u32 i = 0; i < S.row_tiles * kLaneRows; ++i) {
        u32(&word)[GemvWords<S>::kWords] = to.word[i / kLaneRows][i % kLaneRows];
        const ptx::SharedAddress address = mine + i * (kMmaTileRows / kLaneRows) * kGemvVisitBytes;
        if constexpr (lane_bytes_of(S) == 8) {
            const ptx::UInt2 v = ptx::ld_shared_v2_u32(address);
            word[0] = v.x, word[1] = v.y;
        } else {
            const ptx::UInt4 v = ptx::ld_shared_v4_u32(address);
            word[0] = v.x, word[1] = v.y, word[2] = v.z, word[3] = v.w;
        }
    }
}

/// The place of this lane's bytes of step 0 in a stage.
template <GemvSpec S>
DG_DEVICE u32 read_place() {
    const u32 lane = ptx::lane_index();
    return lane / 4 * kGemvVisitBytes + swizzled<S>(lane / 4, lane % 4 * lane_bytes_of(S));
}

template <GemvSpec S>
struct GemvRing {
    static constexpr u32 kRuns =
        S.epilogue == GemvEpilogue::swiglu ? S.row_tiles : 1;                       // of rows in one matrix
    static constexpr u32 kCopies = kMmaTileRows / kCopyRows * S.row_tiles / kRuns;  // of a lane, of each run

    const u8* source[kRuns];        // of the first of the next copies
    u64 step[kRuns];                // bytes from a copy's row to the next one's
    u32 last[kRuns];                // copy behind whose row no row of the tile is; copies beyond read nothing
    u32 tile, stride, tiles;        // of rows: theirs, how far it is to the group's next, how many there are
    u32 visit, whole;               // of the tile: theirs, and how many are whole
    u32 writes, reads;              // stages of the next copy and of the next read
    ptx::SharedAddress first;       // of this warp's stages
    u32 write_offset, read_offset;  // of this lane in a stage

    DG_DEVICE void enter(const GemvParams& p) {
        const GemvBlock at = find_block<S>(p, tile);
        const u32 lane = ptx::lane_index();
#pragma unroll
        for (u32 i = 0; i < kRuns; ++i) {
            u32 row = lane / 8;
            const GemvMatrix& w = row_of_block<S>(p, at, i, row);
            source[i] = w.data + row * w.row_stride + visit * kGemvVisitBytes + lane % 8 * 16;
            step[i] = kCopyRows * w.row_stride;
            last[i] = (at.end_row - 1 - row) / kCopyRows;
        }
    }

    /// Starts the copies of the next visit, if there is one. An empty group keeps the count.
    DG_DEVICE void copy(const GemvParams& p) {
        if (tile < tiles) {
            const ptx::SharedAddress stage = first + writes * stage_bytes_of(S) + write_offset;
#pragma unroll
            for (u32 i = 0; i < kRuns; ++i) {
#pragma unroll
                for (u32 copy = 0; copy < kCopies; ++copy)
                    ptx::cp_async_16(stage + (i * kCopies + copy) * kCopyBytes, source[i] + copy * step[i],
                                     copy <= last[i] ? 16 : 0);
                source[i] += kGemvWarps * kGemvVisitBytes;
            }
            visit += kGemvWarps;
            if (visit >= whole) {
                visit = group_warp();
                tile += stride;
                if (tile < tiles) {
                    prefetch_scales<S>(p, find_block<S>(p, tile), group_thread());
                    enter(p);
                }
            }
        }
        ptx::cp_async_commit();
        writes = writes + 1 == S.stages ? 0 : writes + 1;
    }

    DG_DEVICE void start(const GemvParams& p, u32 first_tile, u32 tile_stride, u32 num_tiles, u32 num_whole) {
        const u32 lane = ptx::lane_index();
        first = ptx::dynamic_smem() + ptx::warp_index() * S.stages * stage_bytes_of(S);
        write_offset = lane / 8 * kGemvVisitBytes + swizzled<S>(lane / 8, lane % 8 * 16);
        read_offset = read_place<S>();
        writes = reads = 0;
        visit = group_warp();
        whole = num_whole;
        tiles = num_tiles;
        stride = tile_stride;
        tile = visit < whole ? first_tile : tiles;
        if (tile < tiles) enter(p);
        for (u32 i = 0; i + 1 < S.stages; ++i) copy(p);
    }

    /// The stage of the next visit: waits for it, and starts the copies of one more into the stage before it.
    DG_DEVICE ptx::SharedAddress next(const GemvParams& p) {
        ptx::cp_async_wait<S.stages - 2>();
        ptx::sync_warp();  // every lane's part has landed, and every lane has used the stage before
        copy(p);
        const ptx::SharedAddress stage = first + reads * stage_bytes_of(S);
        reads = reads + 1 == S.stages ? 0 : reads + 1;
        return stage;
    }
};

}  // namespace deep_gemm::kernel
