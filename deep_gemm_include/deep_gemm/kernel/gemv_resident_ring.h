// The stream of weights of one warp: as gemv_ring.h, with the scales and zero points of each visit in its
// stage.
//
// A stage is rows of 128 bytes, then the scales of one row after another, then the zero points. Weights lie
// as in gemv_ring.h. Scales are copied in pieces, one or two of a row, each an aligned vector in memory (of
// shifted scales, the two words that they are in); zero points in one, which is that of two visits where a
// visit has fewer than four.
#pragma once

#include <deep_gemm/kernel/gemv_ring.h>

namespace deep_gemm::kernel {

template <GemvSpec S>
struct ResidentRing {
    static constexpr QuantRow kRow = row_of(S.w);
    static constexpr u32 kRows = kMmaTileRows * S.row_tiles, kCopies = kRows / kCopyRows;
    static constexpr u32 kScaleBytes = visit_scale_bytes_of(S), kPieces = scale_pieces_of(S);
    static constexpr bool kShifted = has_shifted_scales(S);
    static constexpr u32 kStageScaleBytes = stage_scale_bytes_of(S);  // of a row
    static constexpr u32 kPieceBytes = kStageScaleBytes / kPieces,
                         kScaleCopies = kScaleBytes ? ceil_div(kRows * kPieces, 32u) : 0;
    static constexpr u32 kZeroBytes = zero_piece_bytes_of(S), kVisitZeros = visit_zeros_of(S);
    static constexpr u32 kScales = kRows * kGemvVisitBytes;  // offsets in a stage
    static constexpr u32 kZeros = kScales + kRows * kStageScaleBytes;

    const u8* weights[kCopies];  // of the next copies
    const u8* scales[kScaleCopies + 1];
    const u8* zeros;
    u32 tile, stride, tiles;       // of rows: theirs, how far it is to the group's next, how many there are
    u32 visit, visits, whole;      // of the tile: theirs, how many there are and how many are whole
    ptx::SharedAddress first;      // of this warp's stages
    u32 write, read;               // offsets of the next copy's stage and of the next read's
    u32 write_place, scale_place;  // of this lane in a stage

    /// Row and piece of a row that this lane copies the scales of.
    static DG_DEVICE u32 scale_row(u32 copy) { return (copy * 32 + ptx::lane_index()) / kPieces; }

    DG_DEVICE void enter(const GemvParams& p) {
        const GemvBlock at = find_block<S>(p, tile);
        const u32 lane = ptx::lane_index();
#pragma unroll
        for (u32 i = 0; i < kCopies; ++i) {
            u32 row = (lane / 8 + i * kCopyRows) % kMmaTileRows;
            const GemvMatrix& w = row_of_block<S>(p, at, i * kCopyRows / kMmaTileRows, row);
            weights[i] = w.data + row * w.row_stride + visit * kGemvVisitBytes + lane % 8 * 16;
        }
#pragma unroll
        for (u32 i = 0; i < kScaleCopies; ++i) {
            u32 row = scale_row(i) % kMmaTileRows;
            const GemvMatrix& w = row_of_block<S>(p, at, scale_row(i) / kMmaTileRows % S.row_tiles, row);
            scales[i] = static_cast<const u8*>(w.scales) + visit * kScaleBytes +
                        lane % kPieces * kPieceBytes +
                        row / kRow.block_rows * scale_columns_of(S.w, p.k) * bytes_of(kRow.scale);
        }
        if constexpr (kZeroBytes != 0) {
            u32 row = lane % kMmaTileRows;
            const GemvMatrix& w = row_of_block<S>(p, at, lane % kRows / kMmaTileRows, row);
            zeros =
                w.zeros + row * scale_columns_of(S.w, p.k) + visit * kVisitZeros / kZeroBytes * kZeroBytes;
        }
    }

    /// The group's next tile. Where all its rows exist in the one matrix, every pointer moves alike.
    DG_DEVICE void next_tile(const GemvParams& p) {
        const u32 turns = (visit - group_warp()) / kGemvWarps - 1;  // behind the first visit
        visit = group_warp();
        tile += stride;
        if (tile >= tiles) return;
        const bool alike = S.epilogue == GemvEpilogue::none && kRow.block_rows == 1 && p.num_matrices == 1;
        if (!alike || (tile + 1) * block_rows_of(S) > p.w[0].n) return enter(p);
        const u64 rows = u64{stride} * block_rows_of(S);
        const u64 jump = rows * p.w[0].row_stride - turns * (kGemvWarps * kGemvVisitBytes);
        const u64 scale_jump =
            rows * scale_columns_of(S.w, p.k) * bytes_of(kRow.scale) - turns * (kGemvWarps * kScaleBytes);
#pragma unroll
        for (auto& address : weights) address += jump;
#pragma unroll
        for (u32 i = 0; i < kScaleCopies; ++i) scales[i] += scale_jump;
        if constexpr (kZeroBytes != 0)
            zeros += rows * scale_columns_of(S.w, p.k) - turns * (kGemvWarps * kVisitZeros);
    }

    /// Starts the copies of the next visit, if there is one. An empty group keeps the count. Of a visit that
    /// overlaps the end of the rows, zeros stand for what is beyond.
    template <bool Whole>
    DG_DEVICE void copy_visit(const GemvParams& p) {
        const u32 lane = ptx::lane_index();
        const ptx::SharedAddress stage = first + write;
        const ptx::SharedAddress to = stage + write_place;
        const u32 row_bytes = static_cast<u32>(row_bytes_of(S.w, p.k));
        const u32 scale_bytes = static_cast<u32>(scale_columns_of(S.w, p.k)) * bytes_of(kRow.scale);
        const u32 left = Whole ? 16 : present(visit * kGemvVisitBytes + lane % 8 * 16, row_bytes, 16);
        const u32 place = visit * kScaleBytes + lane % kPieces * kPieceBytes;
        const u32 scales_left = Whole ? kPieceBytes : present(place, scale_bytes, kPieceBytes);
#pragma unroll
        for (u32 i = 0; i < kCopies; ++i) ptx::cp_async_16(to + i * kCopyBytes, weights[i], left);
#pragma unroll
        for (u32 i = 0; i < kScaleCopies; ++i) {
            if (i * 32 + lane >= kRows * kPieces) continue;
            const ptx::SharedAddress piece = stage + scale_place + i * 32 * kPieceBytes;
            if constexpr (kShifted) {  // no further than the row, which may be the last
                const u32 shift = static_cast<u32>(reinterpret_cast<u64>(scales[i]) % kPieceBytes);
                ptx::cp_async_part<kPieceBytes, 1>(piece, scales[i] - shift,
                                                   present(place, scale_bytes + shift, kPieceBytes));
            } else {
                ptx::cp_async<kPieceBytes>(piece, scales[i], scales_left);
            }
        }
        // Aligned pieces of zero points are whole ones: such rows end with a visit.
        if constexpr (kZeroBytes != 0)
            if (lane < kRows)
                ptx::cp_async<kZeroBytes>(stage + kZeros + lane * kZeroBytes, zeros, kZeroBytes);
    }

    /// How many of `bytes` from `offset` on a row of `row_bytes` has.
    static DG_DEVICE u32 present(u32 offset, u32 row_bytes, u32 bytes) {
        return offset >= row_bytes ? 0 : row_bytes - offset < bytes ? row_bytes - offset : bytes;
    }

    DG_DEVICE void copy(const GemvParams& p) {
        if (tile < tiles) {
            if (visit < whole)
                copy_visit<true>(p);
            else
                copy_visit<false>(p);
            visit += kGemvWarps;
            if (visit < visits) {
#pragma unroll
                for (auto& address : weights) address += kGemvWarps * kGemvVisitBytes;
#pragma unroll
                for (u32 i = 0; i < kScaleCopies; ++i) scales[i] += kGemvWarps * kScaleBytes;
                if constexpr (kZeroBytes != 0) zeros += kGemvWarps * kVisitZeros;
            } else {
                next_tile(p);
            }
        }
        ptx::cp_async_commit();
        write = behind(write);
    }

    /// Offset of the stage behind the one at `offset`.
    static DG_DEVICE u32 behind(u32 offset) {
        constexpr u32 kStage = stage_bytes_of(S);
        if constexpr (S.stages == 2) return kStage - offset;
        return offset + kStage == S.stages * kStage ? 0 : offset + kStage;
    }

    DG_DEVICE void start(const GemvParams& p, u32 first_tile, u32 tile_stride, u32 num_tiles) {
        first = ptx::dynamic_smem() + ptx::warp_index() * S.stages * stage_bytes_of(S);
        write = read = 0;
        const u32 lane = ptx::lane_index();
        write_place = lane / 8 * kGemvVisitBytes + swizzled<S>(lane / 8, lane % 8 * 16);
        scale_place = kScales + lane * kPieceBytes;
        ptx::pin(write_place);  // else they are computed again for every visit
        ptx::pin(scale_place);
        visit = group_warp();
        visits = ceil_div(p.k, visit_k_of(S));
        whole = p.k / visit_k_of(S);
        tiles = num_tiles;
        stride = tile_stride;
        tile = visit < visits ? first_tile : tiles;
        if (tile < tiles) enter(p);
#pragma unroll 1
        for (u32 i = 0; i + 1 < S.stages; ++i) copy(p);
    }

    DG_DEVICE void read_scales(GemvVisit<S>& to, ptx::SharedAddress stage) const {
        using Visit = GemvVisit<S>;
        const u32 lane = ptx::lane_index();
#pragma unroll
        for (u32 i = 0; i < S.row_tiles * kLaneRows; ++i) {
            const u32 r = i / kLaneRows, row = i % kLaneRows;
            const u32 stage_row = lane / 4 + i * (kMmaTileRows / kLaneRows);
            const ptx::SharedAddress mine = stage + kScales + stage_row * kStageScaleBytes;
            if constexpr (kZeroBytes != 0) {
                u32 word[kZeroBytes / 4];
#pragma unroll
                for (u32 j = 0; j < kZeroBytes / 4; ++j)
                    word[j] = ptx::ld_shared_u32(stage + kZeros + stage_row * kZeroBytes + j * 4);
                // Warps take visits eight apart: which of two visits a word is of is the warp's parity.
                if constexpr (kVisitZeros < kZeroBytes) word[0] >>= group_warp() % 2 * 8 * kVisitZeros;
#pragma unroll
                for (u32 block = 0; block < kVisitZeros; ++block)
                    to.zero[block][r][row] = word[block / 4] >> block % 4 * 8 & 0xff;
            }
            if constexpr (Visit::kDecodesScales) {
                constexpr u32 kBlocks = lane_elements_of(S) / kRow.block_k;  // of a lane and step
#pragma unroll
                for (u32 step = 0; step < Visit::kSteps; ++step) {
                    const ptx::SharedAddress at = mine + (step * 4 + lane % 4) * kBlocks;
                    to.code[step][r][row] = kBlocks == 2 ? ptx::ld_shared_u16(at) : ptx::ld_shared_u8(at);
                }
            } else if constexpr (kShifted) {  // of odd rows: an odd number of scales is before them
                const u32 before = ptx::ld_shared_u32(mine), behind = ptx::ld_shared_u32(mine + 4);
                const u32 both = stage_row % 2 ? before >> 16 | behind << 16 : before;
                const ptx::Float2 two = ptx::cvt_f32_f16x2(both);
                to.scale[0][r][row] = two.x, to.scale[1][r][row] = two.y;
            } else if constexpr (kRow.scale == ScaleType::fp16) {
#pragma unroll
                for (u32 block = 0; block < Visit::kScaledBlocks; block += 2) {
                    const ptx::Float2 two = ptx::cvt_f32_f16x2(ptx::ld_shared_u32(mine + block * 2));
                    to.scale[block][r][row] = two.x, to.scale[block + 1][r][row] = two.y;
                }
            } else {
#pragma unroll
                for (u32 block = 0; block < Visit::kScaledBlocks; ++block)
                    to.scale[block][r][row] = ptx::ld_shared_f32(mine + block * 4);
            }
        }
    }

    /// The next visit: waits for it, and starts the copies of one more into the stage before it.
    DG_DEVICE void next(GemvWords<S> (&words)[steps_of_visit(S)], GemvVisit<S>& beside, const GemvParams& p) {
        ptx::cp_async_wait<S.stages - 2>();
        ptx::sync_warp();  // every lane's part has landed, and every lane has used the stage before
        copy(p);
        const ptx::SharedAddress stage = first + read;
        read = behind(read);
#pragma unroll
        for (u32 step = 0; step < steps_of_visit(S); ++step)
            read_stage<S>(words[step], stage, read_place<S>(), step);
        read_scales(beside, stage);
    }
};

}  // namespace deep_gemm::kernel
