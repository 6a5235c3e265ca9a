// How project_few has x (spec/project_mma.h): a warp's chunks of all rows, as right operands of mma.sync. Lanes
// of rows that there are not have the last row: what comes of it is a column of sums that nobody stores.
#pragma once

#include <deep_gemm/kernel/project_tile.h>
#include <deep_gemm/ptx/shared.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm::project_detail {

/// A lane's rows of x: the one it loads, and the two whose sums it gets.
template <ProjectMmaSpec S>
struct FewRows {
    using L = Lane<S>;
    const u8* data;  // of row 0, at the warp's first chunk and the lane's columns
    u64 step;        // bytes between rows
    u32 mine, last;
    const float* scale[2];

    FewRows() = default;
    DG_DEVICE FewRows(const ProjectMmaParams& p, const ProjectPart& part, u32 warp)
        : step(p.x_stride * bytes_of(S.x)), last(p.rows - 1) {
        data = static_cast<const u8*>(p.x) +
               (part.x_offset + warp * kProjectColumns + L::column(0)) * bytes_of(S.x);
        mine = clamped(ptx::lane_index() / 4);
#pragma unroll
        for (u32 i = 0; i < 2; ++i)
            scale[i] = p.x_scale + clamped(ptx::lane_index() % 4 * 2 + i) * p.x_scale_stride +
                       part.x_scale_offset + warp;
    }
    [[nodiscard]] DG_DEVICE u32 clamped(u32 row) const { return row < last ? row : last; }
    /// Chunk `i` of the warp of `row`, whose lane reads it.
    DG_DEVICE void load(u32 (&word)[L::kXWords], u32 row, u32 i) const {
        load_tokens<S>(word, data + row * step, i * kProjectWarps);
    }
};

/// What is multiplied with a chunk of weights.
template <ProjectMmaSpec S>
struct FewOperand {
    Fragments<S> pairs;
    float scale[2];
};

/// A chunk of x as it comes.
template <ProjectMmaSpec S>
struct FewTile {
    u32 word[Lane<S>::kXWords];
    float scale[2];

    DG_DEVICE void load(const FewRows<S>& rows, u32 i) {
        rows.load(word, rows.mine, i);
#pragma unroll
        for (u32 j = 0; j < 2; ++j)
            scale[j] = S.x == Format::fp8_e4m3 ? ptx::ld_global_f32(rows.scale[j] + i * kProjectWarps) : 0;
    }
    [[nodiscard]] DG_DEVICE FewOperand<S> operand() const {
        FewOperand<S> x;
        if constexpr (S.rounds) {
            u32 codes[Lane<S>::kMmaWords];
            round_tokens<S>(codes, x.scale, word);
            x.pairs.set(codes);
        } else {
            x.scale[0] = scale[0], x.scale[1] = scale[1];
            x.pairs.set(word);
        }
        return x;
    }
};

/// Ways to have a warp's chunks: fetch() asks for what a tile of w meets, get() gives chunk `i`, the `place`-th of
/// its turn, and used() says that it has been multiplied.
///
/// In registers, all chunks of the warp, for as long as tiles of w meet the same columns.
template <ProjectMmaSpec S>
class FewHeld {
    // Many chunks are held as they come: two registers of codes are four of pairs.
    static constexpr bool kDecoded = S.x == Format::fp8_e4m3 && S.few <= 2;

  public:
    DG_DEVICE void fetch(const FewRows<S>& rows, u32) {
#pragma unroll
        for (u32 i = 0; i < S.few; ++i) tile_[i].load(rows, i);
        if constexpr (kDecoded) {
#pragma unroll
            for (u32 i = 0; i < S.few; ++i) decoded_[i] = tile_[i].operand();
        }
    }
    [[nodiscard]] DG_DEVICE FewOperand<S> get(u32 i, u32) const {
        if constexpr (kDecoded) return decoded_[i];
        return tile_[i].operand();
    }
    DG_DEVICE void used(u32, u32) {}

  private:
    FewTile<S> tile_[S.few];
    FewOperand<S> decoded_[kDecoded ? S.few : 1];
};

/// In registers, some chunks ahead of those that are multiplied; for every tile of w again.
template <ProjectMmaSpec S>
class FewAhead {
  public:
    DG_DEVICE void fetch(const FewRows<S>& rows, u32) {
        rows_ = rows;
#pragma unroll
        for (u32 i = 0; i < kAhead; ++i) tile_[i].load(rows, i);
    }
    [[nodiscard]] DG_DEVICE FewOperand<S> get(u32, u32 place) const { return tile_[place].operand(); }
    DG_DEVICE void used(u32 i, u32 place) {
        if (i + kAhead < S.few) tile_[place].load(rows_, i + kAhead);
    }

  private:
    static constexpr u32 kAhead = project_few_turn(S);

    FewRows<S> rows_;
    FewTile<S> tile_[kAhead];
};

/// Rounded, in shared memory of the warp. Few rows would leave most lanes idle: four lanes have a chunk here,
/// and rows come one after the other.
template <ProjectMmaSpec S>
class FewStaged {
    using L = Lane<S>;
    static constexpr u32 kChunksOfPass = ptx::kWarpThreads / 4;

  public:
    DG_DEVICE void fetch(const FewRows<S>& rows, u32 warp) {
        warp_ = ptx::dynamic_smem() + plan_few(S).x + warp * (S.tokens * S.few * kProjectStagedBytes);
        const u32 q = ptx::lane_index() % 4;
        ptx::sync_warp();  // what is there may still be read
        for (u32 row = 0; row <= rows.last; ++row) {
#pragma unroll
            for (u32 pass = 0; pass < ceil_div(S.few, kChunksOfPass); ++pass) {
                const u32 wanted = pass * kChunksOfPass + ptx::lane_index() / 4;
                const u32 i = wanted < S.few ? wanted : S.few - 1;  // the last one several times, the same
                u32 word[L::kXWords], codes[L::kMmaWords];
                rows.load(word, row, i);
                const float scale = round_chunk<S>(codes, word);
                if (wanted >= S.few) continue;
                const ptx::SharedAddress to = at(row, i);
                ptx::st_shared_v4_u32(to + q * 16, {codes[0], codes[1], codes[2], codes[3]});
                ptx::st_shared_v4_u32(to + 64 + q * 16, {codes[4], codes[5], codes[6], codes[7]});
                if (q == 0) ptx::st_shared_f32(to + kProjectColumns, scale);
            }
        }
        ptx::sync_warp();
        mine_ = at(rows.mine, 0) + q * 16;
#pragma unroll
        for (u32 j = 0; j < 2; ++j) scale_[j] = at(rows.clamped(q * 2 + j), 0) + kProjectColumns;
    }
    [[nodiscard]] DG_DEVICE FewOperand<S> get(u32 i, u32) const {
        u32 codes[L::kMmaWords];
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const ptx::UInt4 v = ptx::ld_shared_v4_u32(mine_ + i * kProjectStagedBytes + half * 64);
            codes[half * 4] = v.x, codes[half * 4 + 1] = v.y;
            codes[half * 4 + 2] = v.z, codes[half * 4 + 3] = v.w;
        }
        FewOperand<S> x;
        x.pairs.set(codes);
#pragma unroll
        for (u32 j = 0; j < 2; ++j) x.scale[j] = ptx::ld_shared_f32(scale_[j] + i * kProjectStagedBytes);
        return x;
    }
    DG_DEVICE void used(u32, u32) {}

  private:
    [[nodiscard]] DG_DEVICE ptx::SharedAddress at(u32 row, u32 i) const {
        return warp_ + (row * S.few + i) * kProjectStagedBytes;
    }

    ptx::SharedAddress warp_ = 0, mine_ = 0, scale_[2] = {};
};

template <ProjectMmaSpec S>
struct FewXOf {
    using Type = FewAhead<S>;
};
template <ProjectMmaSpec S>
requires(project_few_x(S) == ProjectFewX::held) struct FewXOf<S> {
    using Type = FewHeld<S>;
};
template <ProjectMmaSpec S>
requires(project_few_x(S) == ProjectFewX::staged) struct FewXOf<S> {
    using Type = FewStaged<S>;
};

}  // namespace deep_gemm::project_detail
