// How project_few has x (spec/project_mma.h): a warp's chunks of all rows, as right operands of mma.sync. Lanes
// of rows that there are not have the last row: what comes of it is a column of sums that nobody stores.
#pragma once

#include <deep_gemm/kernel/project_tile.h>

namespace deep_gemm::project_detail {

/// A lane's rows of x: the one it loads, and the two whose sums it gets.
template <ProjectMmaSpec S>
struct FewRows {
    using L = Lane<S>;
    const u8* data;  // at the warp's first chunk and the lane's columns
    const float* scale[2];

    FewRows() = default;
    DG_DEVICE FewRows(const ProjectMmaParams& p, const ProjectPart& part, u32 warp) {
        const auto there = [&](u32 row) { return u64{row < p.rows ? row : p.rows - 1}; };
        data = static_cast<const u8*>(p.x) + (there(ptx::lane_index() / 4) * p.x_stride + part.x_offset +
                                              warp * kProjectColumns + L::column(0)) *
                                                 bytes_of(S.x);
#pragma unroll
        for (u32 i = 0; i < 2; ++i)
            scale[i] = p.x_scale + there(ptx::lane_index() % 4 * 2 + i) * p.x_scale_stride +
                       part.x_scale_offset + warp;
    }
    /// Chunk `i` of the warp.
    DG_DEVICE void load(u32 (&word)[L::kXWords], u32 i) const {
        load_tokens<S>(word, data, i * kProjectWarps);
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
        rows.load(word, i);
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
    DG_DEVICE void fetch(const FewRows<S>& rows) {
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
    DG_DEVICE void fetch(const FewRows<S>& rows) {
        rows_ = rows;
#pragma unroll
        for (u32 i = 0; i < kAhead; ++i) tile_[i].load(rows, i);
    }
    [[nodiscard]] DG_DEVICE FewOperand<S> get(u32, u32 place) const {
        return tile_[place].operand();
    }
    DG_DEVICE void used(u32 i, u32 place) {
        if (i + kAhead < S.few) tile_[place].load(rows_, i + kAhead);
    }

  private:
    static constexpr u32 kAhead = project_few_turn(S);

    FewRows<S> rows_;
    FewTile<S> tile_[kAhead];
};

template <ProjectMmaSpec S>
struct FewXOf {
    using Type = FewAhead<S>;
};
template <ProjectMmaSpec S>
requires(project_few_holds(S)) struct FewXOf<S> {
    using Type = FewHeld<S>;
};

}  // namespace deep_gemm::project_detail
