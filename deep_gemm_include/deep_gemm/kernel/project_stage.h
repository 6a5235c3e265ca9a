// The rows of x of project_staged (spec/project_staged.h): a warp makes its chunks of them, FP16 of their E4M3 codes,
// in shared memory, where its lanes find right operands of mma.sync. A lane has four columns of a chunk until they
// are there. Lanes of rows that there are not read the last one: what comes of it is a sum that nobody stores.
#pragma once

#include <deep_gemm/kernel/project_few_x.h>
#include <deep_gemm/spec/project_staged.h>
#include <deep_gemm/spec/norm.h>
#include <deep_gemm/tile/narrow_copy.h>
#include <deep_gemm/tile/norm.h>
#include <deep_gemm/ptx/math.h>

namespace deep_gemm::project_detail {

/// A lane's four bf16 columns of each of a warp's chunks of a row, as they are loaded.
template <u32 Chunks>
struct RawChunks {
    ptx::Word2 word[Chunks];

    DG_DEVICE void load(const u8* row, u32 step) {
#pragma unroll
        for (u32 i = 0; i < Chunks; ++i) word[i] = ptx::ld_global_v2_u32(row + i * step);
    }
    [[nodiscard]] DG_DEVICE tile::Float4 get(u32 i) const {
        return {ptx::bf16_low(word[i].x), ptx::bf16_high(word[i].x), ptx::bf16_low(word[i].y),
                ptx::bf16_high(word[i].y)};
    }
};

constexpr u32 kChunkBytes = kProjectColumns * 2;        // of a bf16 row
constexpr u32 kWarpStep = kProjectWarps * kChunkBytes;  // from a chunk of a warp to its next one

/// Where the lane's columns of the warp's first chunk of a row are.
DG_DEVICE const u8* row_of_lane(const ProjectMmaParams& p, u32 row) {
    return static_cast<const u8*>(p.x) + row * p.x_stride * 2 + ptx::warp_index() * kChunkBytes +
           ptx::lane_index() * 8;
}

/// Rows as they are.
template <ProjectStagedSpec S>
struct PlainRows {
    RawChunks<S.few> raw;

    DG_DEVICE explicit PlainRows(const ProjectStagedParams&) {}
    DG_DEVICE void load(const ProjectStagedParams& q, u32 row) { raw.load(row_of_lane(q.p, row), kWarpStep); }
    DG_DEVICE void begin(const ProjectStagedParams&) {}
    [[nodiscard]] DG_DEVICE tile::Float4 get(u32 i) const { return raw.get(i); }
};

/// Normed rows. Every warp adds up the squares of the whole row, in the order of norm.cuh: a thread of four warps has
/// every fourth chunk.
template <ProjectStagedSpec S>
struct NormedRows {
    static constexpr u32 kNormWarps = kNormThreads / 32, kChunks = S.few * kProjectWarps;
    static_assert(kChunks % kNormWarps == 0 && S.few <= kMaxNormed);
    RawChunks<S.few> raw;  // again: which of `all` they are is not known to the compiler
    RawChunks<kChunks> all;
    tile::Float4 weight[S.few];
    float factor;

    DG_DEVICE explicit NormedRows(const ProjectStagedParams& q) {
#pragma unroll
        for (u32 i = 0; i < S.few; ++i) {
            const u32 column =
                (i * kProjectWarps + ptx::warp_index()) * kProjectColumns + ptx::lane_index() * 4;
            if constexpr (S.weight != Format::none) weight[i] = tile::load4<S.weight>(q.weight, column);
        }
    }
    DG_DEVICE void load(const ProjectStagedParams& q, u32 row) {
        const u8* mine = row_of_lane(q.p, row);
        all.load(mine - ptx::warp_index() * kChunkBytes, kChunkBytes);
        raw.load(mine, kWarpStep);
    }
    DG_DEVICE void begin(const ProjectStagedParams& q) {
        float squares[kNormWarps] = {};
#pragma unroll
        for (u32 i = 0; i < kChunks; ++i)
            squares[i % kNormWarps] = tile::add_squares(all.get(i), squares[i % kNormWarps]);
#pragma unroll
        for (u32 i = 0; i < kNormWarps; ++i) squares[i] = tile::warp_sum(squares[i]);
        float sum = squares[0];
#pragma unroll
        for (u32 i = 1; i < kNormWarps; ++i) sum = ptx::add_rn_f32(sum, squares[i]);
        factor = tile::norm_factor(sum, q.p.k, q.eps);
    }
    [[nodiscard]] DG_DEVICE tile::Float4 get(u32 i) const {
        tile::Float4 v = tile::times(raw.get(i), factor);
        if constexpr (S.weight != Format::none) v = tile::times(v, weight[i]);
        return tile::through_bf16(v);
    }
};

template <ProjectStagedSpec S>
struct StagedRowsOf {
    using Type = PlainRows<S>;
};
template <ProjectStagedSpec S>
requires(S.input == StagedInput::normed) struct StagedRowsOf<S> {
    using Type = NormedRows<S>;
};

template <ProjectStagedSpec S>
class StagedX {
    static constexpr ProjectMmaSpec kTile = tile_of(S);
    static constexpr ProjectStagedSmem kPlan = plan_smem(S);

  public:
    /// Before the wait: reads what no launch writes.
    DG_DEVICE explicit StagedX(const ProjectStagedParams& q) : q_(q), rows_(q) {}

    /// After it. A warp makes what its own lanes read.
    DG_DEVICE void make() {
        rows_.load(q_, 0);
#pragma unroll 1
        for (u32 row = 0; row < q_.p.rows; ++row) {
            typename StagedRowsOf<S>::Type now = rows_;
            if (row + 1 < q_.p.rows) rows_.load(q_, row + 1);
            now.begin(q_);
#pragma unroll
            for (u32 i = 0; i < S.few; ++i) keep(i, row, now.get(i));
        }
        ptx::sync_warp();
    }
    /// Chunk `i` of the warp.
    [[nodiscard]] DG_DEVICE FewOperand<kTile> get(u32 i) const {
        FewOperand<kTile> x;
        const u32 lane = ptx::lane_index();
        const ptx::SharedAddress from = at(i, there(lane / 4)) + lane % 4 * 32;
#pragma unroll
        for (u32 piece = 0; piece < 4; ++piece) {
            const ptx::UInt4 v = ptx::ld_shared_v4_u32(from + piece / 2 * 128 + piece % 2 * 16);
            x.pairs.pair[piece * 2][0] = v.x, x.pairs.pair[piece * 2][1] = v.y;
            x.pairs.pair[piece * 2 + 1][0] = v.z, x.pairs.pair[piece * 2 + 1][1] = v.w;
        }
#pragma unroll
        for (u32 j = 0; j < 2; ++j) x.scale[j] = ptx::ld_shared_f32(scale_at(i, there(lane % 4 * 2 + j)));
        return x;
    }

  private:
    [[nodiscard]] DG_DEVICE u32 there(u32 row) const {
        return row < q_.p.rows ? row : q_.p.rows - 1;
    }
    [[nodiscard]] DG_DEVICE u32 index(u32 i, u32 row) const {
        return (warp_ * S.few + i) * S.tokens + row;
    }
    [[nodiscard]] DG_DEVICE ptx::SharedAddress at(u32 i, u32 row) const {
        return ptx::dynamic_smem() + index(i, row) * kStagedPitch;
    }
    [[nodiscard]] DG_DEVICE ptx::SharedAddress scale_at(u32 i, u32 row) const {
        return ptx::dynamic_smem() + kPlan.scales + index(i, row) * 4;
    }
    /// As tile::store_fp8_copy() rounds.
    DG_DEVICE void keep(u32 i, u32 row, const tile::Float4& v) const {
        const tile::Fp8Columns out = tile::to_fp8_columns<ScaleRule::up>(v);
        u32 low, high;
        tile::decode_e4m3<true, true>(out.codes, low, high);
        ptx::st_shared_v2_u32(at(i, row) + ptx::lane_index() * 8, low, high);
        if (ptx::lane_index() == 0) ptx::st_shared_f32(scale_at(i, row), out.scale);
    }

    const ProjectStagedParams& q_;
    u32 warp_ = ptx::warp_index();
    typename StagedRowsOf<S>::Type rows_;
};

}  // namespace deep_gemm::project_detail
