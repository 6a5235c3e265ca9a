// Projections of up to three rows that are normed and rounded on the way (spec/project_staged.h), with the
// sums of project_mma. A block of threads has tiles of 16 rows of w one after the other; some units of a warp's
// weights are always on their way to its registers, the first ones before the preceding kernel has finished. Called
// by op/project_staged.cpp.
#pragma once

#include <deep_gemm/kernel/project_few.cuh>
#include <deep_gemm/kernel/project_stage.h>

namespace deep_gemm {

namespace project_detail {

/// Units of weights, 16 rows and a chunk of the warp each: tile after tile, each tile's chunks in turn.
template <ProjectStagedSpec S>
class UnitRing {
    static constexpr ProjectMmaSpec kTile = tile_of(S);
    using L = Lane<kTile>;

  public:
    struct Unit {
        u32 word[2][L::kLoads * 4];
        float scale;
    };

    DG_DEVICE UnitRing(const ProjectMmaParams& p, u32 tile, u32 last) : last_(last), place_(p, tile) {
        find_row();
#pragma unroll
        for (u32 i = 0; i < S.depth; ++i) fetch(i, i % S.few);
    }
    [[nodiscard]] DG_DEVICE const Unit& operator[](u32 slot) const {
        return unit_[slot];
    }
    /// Asks for chunk `of_warp` of the tile that is next, into `slot`.
    DG_DEVICE void fetch(u32 slot, u32 of_warp) {
        if (place_.tile() >= last_) return;
        Unit& unit = unit_[slot];
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
#pragma unroll
            for (u32 load = 0; load < L::kLoads; ++load) {
                const ptx::Words4 v = ptx::ld_stream_v4(row_ + half * half_step_ + of_warp * kStagedColumns +
                                                        load * (kProjectColumns / L::kLoads));
#pragma unroll
                for (u32 i = 0; i < 4; ++i) unit.word[half][load * 4 + i] = v.word[i];
            }
        const ProjectPart& part = place_.part();
        unit.scale =
            tile::load_scale<S.w_scale>(part.scale, place_.row() / kProjectColumns * part.scale_stride_row +
                                                        ptx::warp_index() + of_warp * kProjectWarps);
        if (of_warp + 1 < S.few) return;
        place_.advance();
        find_row();
    }

  private:
    DG_DEVICE void find_row() {
        const ProjectPart& part = place_.part();
        half_step_ = part.stride_row * 8;
        row_ = static_cast<const u8*>(part.w) + (place_.row() + ptx::lane_index() / 4) * part.stride_row +
               ptx::warp_index() * kProjectColumns + L::column(0);
    }

    Unit unit_[S.depth];
    u32 last_;
    TilePlace place_;
    const u8* row_ = nullptr;
    u64 half_step_ = 0;  // bytes of 8 rows
};

/// The tiles of block `block` of `blocks`.
template <ProjectStagedSpec S>
DG_DEVICE void run_staged(const ProjectStagedParams& q, u32 block, u32 blocks) {
    static_assert(S.few * S.row_tiles % S.depth == 0, "a unit's slot is known to the compiler");
    constexpr ProjectMmaSpec kTile = tile_of(S);
    const u32 tiles = q.p.parts[q.p.num_parts - 1].end, warp = ptx::warp_index();
    const u32 begin = static_cast<u32>(u64{tiles} * block / blocks),
              end = static_cast<u32>(u64{tiles} * (block + 1) / blocks);
    UnitRing<S> weights(q.p, begin, end);
    StagedX<S> x(q);
    ptx::grid_dependency_wait();
    x.make();
    [[maybe_unused]] FewOperand<kTile> only;
    if constexpr (S.few == 1) only = x.get(0);
    FewSums<S> out(q.p, ptx::dynamic_smem() + plan_smem(S).sums);
    for (u32 tile = begin; tile < end; tile += S.row_tiles) {
#pragma unroll
        for (u32 g = 0; g < S.row_tiles; ++g) {
            if (tile + g >= end) break;
            float sums[4] = {};
#pragma unroll
            for (u32 i = 0; i < S.few; ++i) {
                const u32 slot = (g * S.few + i) % S.depth;
                if constexpr (S.few == 1) {
                    multiply_tile<kTile>(sums, weights[slot].word, weights[slot].scale, only.pairs,
                                         only.scale);
                } else {
                    const FewOperand<kTile> operand = x.get(i);
                    multiply_tile<kTile>(sums, weights[slot].word, weights[slot].scale, operand.pairs,
                                         operand.scale);
                }
                weights.fetch(slot, (i + S.depth) % S.few);
            }
            out.keep(warp, g, sums);
        }
        out.store(tile, end);
    }
}

}  // namespace project_detail

template <ProjectStagedSpec S>
DG_KERNEL(kProjectThreads, kStagedCtas)
project_staged(DG_GRID_CONSTANT const ProjectStagedParams q) {
    ptx::grid_dependency_launch();
    project_detail::run_staged<S>(q, ptx::block_index(), ptx::grid_size());
}

}  // namespace deep_gemm
