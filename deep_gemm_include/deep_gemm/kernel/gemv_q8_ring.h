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
    static constexpr u32 kVisitBytes = kQ8VisitBlocks * kBlockBytes;        // of a row, of a warp
    static constexpr u32 kRowBytes = kGemvWarps * kVisitBytes;              // of all warps
    static constexpr u32 kPitch = q8_pitch_of(S);                           // of a row in a stage
    static constexpr u32 kVectors = kSplit ? 8 : 10;                        // that can hold a visit of a row
    static constexpr u32 kLanes = kSplit ? 8 : 16;                          // that copy a row
    static constexpr u32 kCopyRows = 32 / kLanes;                           // rows copied at once
    static constexpr u32 kCopies = kMmaTileRows * S.row_tiles / kCopyRows;  // of a lane and visit
};

template <GemvSpec S>
struct Q8Ring {
    using Layout = Q8Layout<S>;

    const u8* source[Layout::kCopies];  // of the next copies: whole vectors
    u32 wanted;                         // bit i: copy i has bytes of the visit
    u32 reach;                          // bytes from a row's first block to the end of its last vector
    u32 tile, stride, tiles;
    u32 offset, row_bytes;  // of the next visit in its rows, and where these end
    u32 writes, reads;
    ptx::SharedAddress first;

    DG_DEVICE static u32 copied_row(u32 copy) {
        return copy * Layout::kCopyRows + ptx::lane_index() / Layout::kLanes;
    }

    DG_DEVICE const u8* row_start(const GemvParams& p, const GemvBlock& at, u32 copied) const {
        u32 row = copied % kMmaTileRows;
        const GemvMatrix& w = row_of_block<S>(p, at, copied / kMmaTileRows, row);
        return w.data + row * w.row_stride;
    }

    DG_DEVICE void enter(const GemvParams& p) {
        const GemvBlock at = find_block<S>(p, tile);
        offset = group_warp() * Layout::kVisitBytes;
        wanted = reach = 0;
        const u32 vector = ptx::lane_index() % Layout::kLanes;
#pragma unroll
        for (u32 i = 0; i < Layout::kCopies; ++i) {
            const u8* start = row_start(p, at, copied_row(i)) + offset;
            const u32 before = static_cast<u32>(reinterpret_cast<u64>(start) % 16);
            source[i] = start - before + vector * 16;
            const u32 end = (before + Layout::kVisitBytes + 15) / 16 * 16 - before;
            reach = end > reach ? end : reach;
            wanted |= (vector * 16 < before + Layout::kVisitBytes ? 1u : 0u) << i;
        }
    }

    /// The end of the rows is near: no byte beyond is read; zeros stand for it.
    DG_DEVICE void copy_end(const GemvParams& p, ptx::SharedAddress stage) {
        const GemvBlock at = find_block<S>(p, tile);
        const u32 vector = ptx::lane_index() % Layout::kLanes;
        for (u32 i = 0; i < Layout::kCopies; ++i) {
            if (vector >= Layout::kVectors) break;
            const u8* row = row_start(p, at, copied_row(i));
            const u8* from = row + offset - reinterpret_cast<u64>(row + offset) % 16 + vector * 16;
            const i64 left = row + row_bytes - from;
            const u32 bytes = left <= 0 ? 0 : left < 16 ? static_cast<u32>(left) : 16;
            ptx::cp_async_16(stage + copied_row(i) * Layout::kPitch + vector * 16, bytes ? from : p.w[0].data,
                             bytes);
        }
    }

    DG_DEVICE void copy(const GemvParams& p) {
        if (tile < tiles) {
            const ptx::SharedAddress stage = first + writes * stage_bytes_of(S);
            if (row_bytes - offset >= reach) {
                const ptx::SharedAddress mine =
                    stage + copied_row(0) * Layout::kPitch + ptx::lane_index() % Layout::kLanes * 16;
#pragma unroll
                for (u32 i = 0; i < Layout::kCopies; ++i) {
                    if (wanted >> i & 1)
                        ptx::cp_async_16(mine + i * Layout::kCopyRows * Layout::kPitch, source[i], 16);
                    source[i] += Layout::kRowBytes;
                }
            } else {
                copy_end(p, stage);
            }
            offset += Layout::kRowBytes;
            if (offset >= row_bytes) {
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

    DG_DEVICE void start(const GemvParams& p, u32 first_tile, u32 tile_stride, u32 num_tiles) {
        first = ptx::dynamic_smem() + ptx::warp_index() * S.stages * stage_bytes_of(S);
        writes = reads = 0;
        row_bytes = static_cast<u32>(row_bytes_of(S.w, p.k));
        tiles = num_tiles;
        stride = tile_stride;
        tile = group_warp() * Layout::kVisitBytes < row_bytes ? first_tile : tiles;
        if (tile < tiles) enter(p);
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
