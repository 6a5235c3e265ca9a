// The stream of Q8_0 weights of one warp: as gemv_ring.h, of visits that are four blocks of each row.
//
// Four blocks of 34 bytes start at any even address. They are copied as the 16-byte vectors around them, and
// where they begin in the stage's row is a property of (row, warp): a visit of the eight warps is 1088 bytes,
// a multiple of 16. With bytes and scales apart, four blocks are 128 aligned bytes.
#pragma once

#include <deep_gemm/kernel/gemv_ring.h>

namespace deep_gemm::kernel {

template <GemvSpec S>
struct Q8Layout {
    static constexpr bool kSplit = S.w == Quant::q8_0_split;
    static constexpr u32 kBlockBytes = kSplit ? kQ8Block : kQ8BlockBytes;
    static constexpr u32 kVisitBytes = kQ8VisitBlocks * kBlockBytes;  // of a row, of a warp
    static constexpr u32 kRowBytes = kGemvWarps * kVisitBytes;        // of all warps
    static constexpr u32 kPitch = q8_pitch_of(S);                     // of a row in a stage
    static constexpr u32 kVectors = kSplit ? 8 : 10;                  // that can hold a visit of a row
    static constexpr u32 kLanes = kSplit ? 8 : 16;                    // that copy a row
    static constexpr u32 kCopyRows = 32 / kLanes;                     // rows copied at once
    static constexpr u32 kRuns =
        S.epilogue == GemvEpilogue::swiglu ? S.row_tiles : 1;                       // of rows in one matrix
    static constexpr u32 kCopies = kMmaTileRows * S.row_tiles / kRuns / kCopyRows;  // of a lane, of each run
};

template <GemvSpec S>
struct Q8Ring {
    using Layout = Q8Layout<S>;

    const u8*
        source[Layout::kRuns];  // of the first of the next copies, up to 15 bytes into this lane's vector
    u64 step[Layout::kRuns];    // bytes from a copy's row to the next one's
    u32 reach;                  // bytes from a row's first block to the end of its last vector
    bool inside;                // all rows of the tile exist
    u32 tile, stride, tiles;
    u32 offset, row_bytes;  // of the next visit in its rows, and where these end
    u32 writes, reads;
    ptx::SharedAddress first;

    static DG_DEVICE u32 copied_row() { return ptx::lane_index() / Layout::kLanes; }
    static DG_DEVICE u32 vector() { return ptx::lane_index() % Layout::kLanes; }

    DG_DEVICE void enter(const GemvParams& p) {
        const GemvBlock at = find_block<S>(p, tile);
        offset = group_warp() * Layout::kVisitBytes;
        inside = true;
        reach = 0;
#pragma unroll
        for (u32 run = 0; run < Layout::kRuns; ++run) {
            u32 row = copied_row();
            const GemvMatrix& w = row_of_block<S>(p, at, run, row);
            const u8* start = w.data + row * w.row_stride + offset;
            source[run] = start + vector() * 16;
            step[run] = Layout::kCopyRows * w.row_stride;
            inside = inside && at.first_row + Layout::kCopies * Layout::kCopyRows <= w.n;
#pragma unroll
            for (u32 i = 0; i < Layout::kCopies; ++i) {
                const u32 before = static_cast<u32>(reinterpret_cast<u64>(start + i * step[run]) % 16);
                const u32 end = (before + Layout::kVisitBytes + 15) / 16 * 16 - before;
                reach = end > reach ? end : reach;
            }
        }
    }

    /// The group's next tile. Where all its rows exist in the one matrix, every pointer moves alike, by a
    /// multiple of 16.
    DG_DEVICE void next_tile(const GemvParams& p) {
        tile += stride;
        if (tile >= tiles) return;
        const bool alike = S.epilogue == GemvEpilogue::none && p.num_matrices == 1;
        if (!alike || (tile + 1) * block_rows_of(S) > p.w[0].n) {
            prefetch_scales<S>(p, find_block<S>(p, tile), group_thread());
            return enter(p);
        }
        prefetch_scales<S>(p, find_block<S>(p, tile), group_thread());
        const u32 begin = group_warp() * Layout::kVisitBytes;
        source[0] += u64{stride} * block_rows_of(S) * p.w[0].row_stride - (offset - begin);
        offset = begin;
    }

    /// The end of the rows or of the matrix is near: no byte beyond is read; zeros stand for it.
    DG_DEVICE void copy_end(const GemvParams& p, ptx::SharedAddress stage) {
        const GemvBlock at = find_block<S>(p, tile);
        if (vector() >= Layout::kVectors) return;
#pragma unroll 1
        for (u32 i = 0; i < Layout::kRuns * Layout::kCopies; ++i) {
            const u32 copied = i * Layout::kCopyRows + copied_row();
            u32 row_index = copied % kMmaTileRows;
            const GemvMatrix& w = row_of_block<S>(p, at, copied / kMmaTileRows, row_index);
            const u8* row = w.data + row_index * w.row_stride;
            const u8* from = row + offset - reinterpret_cast<u64>(row + offset) % 16 + vector() * 16;
            const i64 left = row + row_bytes - from;
            const u32 bytes = left <= 0 ? 0 : left < 16 ? static_cast<u32>(left) : 16;
            const ptx::SharedAddress to = stage + copied * Layout::kPitch + vector() * 16;
            if (bytes == 16 || from + 16 <= w.data + (w.n - 1) * w.row_stride + row_bytes)
                ptx::cp_async_16(to, bytes ? from : p.w[0].data, bytes);
            else
                ptx::cp_async_part<16>(to, bytes ? from : p.w[0].data, bytes);
        }
    }

    /// Vectors of rows that lie in W: those that have bytes of the visit.
    DG_DEVICE void copy_inside(ptx::SharedAddress stage) {
        const ptx::SharedAddress mine = stage + copied_row() * Layout::kPitch + vector() * 16;
#pragma unroll
        for (u32 run = 0; run < Layout::kRuns; ++run) {
            u64 at = reinterpret_cast<u64>(source[run]);
            u32 before = static_cast<u32>(at) % 16;  // in all rows, where they are aligned
#pragma unroll
            for (u32 i = 0; i < Layout::kCopies; ++i) {
                if constexpr (S.row_alignment != 16) before = static_cast<u32>(at) % 16;
                if (vector() * 16 < before + Layout::kVisitBytes)
                    ptx::cp_async_16(mine + (run * Layout::kCopies + i) * Layout::kCopyRows * Layout::kPitch,
                                     reinterpret_cast<const u8*>(at - before), 16);
                at += step[run];
            }
        }
    }

    DG_DEVICE void copy(const GemvParams& p) {
        if (tile < tiles) {
            const ptx::SharedAddress stage = first + writes * stage_bytes_of(S);
            if (inside && row_bytes - offset >= reach)
                copy_inside(stage);
            else
                copy_end(p, stage);
            offset += Layout::kRowBytes;
#pragma unroll
            for (auto& address : source) address += Layout::kRowBytes;
            if (offset >= row_bytes) next_tile(p);
        }
        ptx::cp_async_commit();
        writes = writes + 1 == S.stages ? 0 : writes + 1;
    }

    DG_DEVICE void start(const GemvParams& p, u32 first_tile, u32 tile_stride, u32 num_tiles) {
        first = ptx::dynamic_smem() + ptx::warp_index() * S.stages * stage_bytes_of(S);
        writes = reads = 0;
        row_bytes = static_cast<u32>(row_bytes_of(S.w, p.k));
        tiles = num_tiles;
        stride = tile_stride;
        tile = group_warp() * Layout::kVisitBytes < row_bytes ? first_tile : tiles;
        if (tile < tiles) enter(p);
#pragma unroll 1
        for (u32 i = 0; i + 1 < S.stages; ++i) copy(p);
    }

    DG_DEVICE ptx::SharedAddress next(const GemvParams& p) {
        ptx::cp_async_wait<S.stages - 2>();  // of Q8_0
        ptx::sync_warp();  // every lane's part has landed, and every lane has used the stage before
        copy(p);
        const ptx::SharedAddress stage = first + reads * stage_bytes_of(S);
        reads = reads + 1 == S.stages ? 0 : reads + 1;
        return stage;
    }
};

}  // namespace deep_gemm::kernel
