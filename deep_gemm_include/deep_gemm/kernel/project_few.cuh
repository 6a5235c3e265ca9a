// Projections of up to 8 rows on tensor cores (spec/project_mma.h), with the sums of project_mma. A block of
// threads has tiles of 16 rows of w one after the other. What its warps multiply next is on its way to shared
// memory, some of it before the preceding kernel has finished: these kernels wait for memory, and for each
// other. A lane reads only what it has asked for itself, so that nobody waits for other lanes until sums are
// added. Called by op/project.cpp.
#pragma once

#include <deep_gemm/kernel/project_few_x.h>

namespace deep_gemm {

namespace project_detail {

/// A tile of 16 rows of w, and the part it belongs to.
class TilePlace {
  public:
    DG_DEVICE TilePlace(const ProjectMmaParams& p, u32 tile) : p_(p), tile_(tile) {
        while (tile >= p.parts[part_].end) first_ = p.parts[part_++].end;
    }
    [[nodiscard]] DG_DEVICE u32 tile() const { return tile_; }
    [[nodiscard]] DG_DEVICE const ProjectPart& part() const { return p_.parts[part_]; }
    [[nodiscard]] DG_DEVICE u32 row() const { return (tile_ - first_) * kProjectTileRows; }
    /// To the next tile; returns whether it belongs to another part. There need not be one.
    DG_DEVICE bool advance() {
        if (++tile_ < p_.parts[part_].end || part_ + 1 == p_.num_parts) return false;
        first_ = tile_, ++part_;
        return true;
    }

  private:
    const ProjectMmaParams& p_;
    u32 tile_, part_ = 0, first_ = 0;
};

/// The weights of the chunks that come next, tile after tile.
template <ProjectMmaSpec S>
class FewWeights {
    using L = Lane<S>;
    static constexpr u32 kSlotBytes = project_few_slot_bytes(S),
                         kChunkBytes = kProjectColumns * bytes_of(S.w);

  public:
    DG_DEVICE FewWeights(const ProjectMmaParams& p, u32 tile, u32 last, u32 warp)
        : mine_(ptx::dynamic_smem() + warp * (kSlotBytes / kProjectWarps) + ptx::lane_index() * 16),
          last_(last),
          column_(warp * kProjectColumns + L::column(0)),
          place_(p, tile) {
        find_rows();
#pragma unroll
        for (u32 i = 0; i < S.depth; ++i) fetch(i % S.few);
    }
    /// Asks for chunk `of_warp` of the warp, of the tile that is next.
    DG_DEVICE void fetch(u32 of_warp) {
        if (place_.tile() < last_) {
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
#pragma unroll
                for (u32 load = 0; load < L::kLoads; ++load)
                    ptx::cp_async_16(at(fetched_, half, load),
                                     row_ + half * half_step_ + of_warp * (kProjectWarps * kChunkBytes) +
                                         load * (kChunkBytes / L::kLoads),
                                     16);
        }
        ptx::cp_async_commit();
        fetched_ = next(fetched_);
        if (of_warp + 1 < S.few) return;
        row_ += 2 * half_step_;
        if (place_.advance()) find_rows();
    }
    /// Until what was asked for first is there.
    static DG_DEVICE void wait() {
        ptx::cp_async_wait<S.depth - 1>();
    }
    DG_DEVICE void read(u32 (&word)[2][L::kLoads * 4]) const {
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
#pragma unroll
            for (u32 load = 0; load < L::kLoads; ++load) {
                const ptx::UInt4 v = ptx::ld_shared_v4_u32(at(taken_, half, load));
                u32* to = word[half] + load * 4;
                to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
            }
    }
    /// The values that were read have been used.
    DG_DEVICE void free() {
        taken_ = next(taken_);
    }

  private:
    DG_DEVICE void find_rows() {
        const ProjectPart& part = place_.part();
        half_step_ = part.stride_row * (8 * bytes_of(S.w));
        row_ = static_cast<const u8*>(part.w) +
               ((place_.row() + ptx::lane_index() / 4) * part.stride_row + column_) * bytes_of(S.w);
    }
    static DG_DEVICE u32 next(u32 slot) {
        return slot + 1 < S.depth ? slot + 1 : 0;
    }
    [[nodiscard]] DG_DEVICE ptx::SharedAddress at(u32 slot, u32 half, u32 load) const {
        return mine_ + slot * kSlotBytes + (half * L::kLoads + load) * 512;
    }

    ptx::SharedAddress mine_;
    u32 last_, column_;
    TilePlace place_;
    u32 fetched_ = 0, taken_ = 0;
    const u8* row_ = nullptr;
    u64 half_step_ = 0;  // bytes of 8 rows
};

/// Scales of the warp's chunks of a tile: lane i has that of chunk i of the warp.
template <ProjectMmaSpec S>
DG_DEVICE float few_scales(const TilePlace& place, u32 warp) {
    static_assert(S.few <= ptx::kWarpThreads);
    if (S.w_scale == Format::none || ptx::lane_index() >= S.few) return 1;
    return tile::load_scale<S.w_scale>(place.part().scale,
                                       place.row() / kProjectColumns * place.part().scale_stride_row + warp +
                                           ptx::lane_index() * kProjectWarps);
}

/// A group of tiles: the warps' sums into shared memory, at `smem`, and from there, the first warp's first, to y.
template <auto S>
class FewSums {
    static constexpr u32 kRowBytes = kProjectTileRows * 4;

  public:
    DG_DEVICE FewSums(const ProjectMmaParams& p, ptx::SharedAddress smem) : p_(p), smem_(smem) {}

    DG_DEVICE void keep(u32 warp, u32 g, const float (&sums)[4]) const {
        const u32 row = ptx::lane_index() / 4, token = ptx::lane_index() % 4 * 2;
#pragma unroll
        for (u32 i = 0; i < 4; ++i)
            if (token + i % 2 < p_.rows)
                ptx::st_shared_f32(at(warp, g, token + i % 2) + (row + i / 2 * 8) * 4, sums[i]);
    }
    /// `first`: of the group, whose other tiles follow up to `last`.
    DG_DEVICE void store(u32 first, u32 last) {
        ptx::sync_threads();
        for (u32 i = ptx::thread_index(); i < S.row_tiles * kProjectTileRows * p_.rows;
             i += kProjectThreads) {
            const u32 row = i % kProjectTileRows, g = i / kProjectTileRows % S.row_tiles;
            const u32 token = i / (kProjectTileRows * S.row_tiles);
            if (first + g >= last) continue;
            const TilePlace place(p_, first + g);
            const ProjectPart& part = place.part();
            float y = ptx::ld_shared_f32(at(0, g, token) + row * 4);
#pragma unroll
            for (u32 warp = 1; warp < kProjectWarps; ++warp)
                y = ptx::add_rn_f32(y, ptx::ld_shared_f32(at(warp, g, token) + row * 4));
            const u32 n = place.row() + row;
            if constexpr (S.add != Format::none)
                y = ptx::add_rn_f32(tile::load<S.add>(part.add, token * part.add_stride + n), y);
            tile::store<S.y>(part.y, token * part.y_stride + n, y);
        }
        flip_ ^= 1;  // what is there may still be read
    }

  private:
    [[nodiscard]] DG_DEVICE ptx::SharedAddress at(u32 warp, u32 g, u32 token) const {
        return smem_ + (((flip_ * kProjectWarps + warp) * S.row_tiles + g) * S.tokens + token) * kRowBytes;
    }

    const ProjectMmaParams& p_;
    ptx::SharedAddress smem_;
    u32 flip_ = 0;
};

/// The tiles of block `block` of `blocks`.
template <ProjectMmaSpec S>
DG_DEVICE void run_few(const ProjectMmaParams& p, u32 block, u32 blocks) {
    constexpr ProjectMmaSpec kTile = project_few_tile(S);
    constexpr u32 kTurn = project_few_turn(S);
    const u32 tiles = p.parts[p.num_parts - 1].end, warp = ptx::warp_index();
    const u32 begin = static_cast<u32>(u64{tiles} * block / blocks),
              end = static_cast<u32>(u64{tiles} * (block + 1) / blocks);
    FewWeights<kTile> weights(p, begin, end, warp);
    TilePlace place(p, begin);
    float next_scales = few_scales<kTile>(place, warp);
    ptx::grid_dependency_wait();

    const auto after = [](u32 i) {  // the chunk that is asked for when chunk i has been used
        const u32 next = i + S.depth % S.few;
        return next < S.few ? next : next - S.few;
    };
    typename FewXOf<kTile>::Type x;
    FewSums<S> out(p, ptx::dynamic_smem() + plan_few(S).sums);
    bool fresh = true;
    for (u32 tile = begin; tile < end; tile += S.row_tiles) {
#pragma unroll
        for (u32 g = 0; g < S.row_tiles; ++g) {
            if (tile + g >= end) break;
            if (fresh) x.fetch(FewRows<kTile>(p, place.part(), warp));
            const float scales = next_scales;
            const u64 columns = place.part().x_offset;
            const bool other = place.advance();
            if (S.w_scale != Format::none && place.tile() < end &&
                (other || place.row() % kProjectColumns == 0))
                next_scales = few_scales<kTile>(place, warp);
            fresh = !project_few_holds(S) || (other && place.part().x_offset != columns);
            float sums[4] = {};
#pragma unroll 1
            for (u32 turn = 0; turn < S.few; turn += kTurn)
#pragma unroll
                for (u32 j = 0; j < kTurn; ++j) {
                    const u32 i = kTurn == S.few ? j : turn + j;
                    if (S.few % kTurn != 0 && i >= S.few) break;
                    float scale = 1;
                    if constexpr (S.w_scale != Format::none) scale = ptx::shfl_idx_f32(scales, i);
                    weights.wait();
                    u32 word[2][Lane<kTile>::kLoads * 4];
                    weights.read(word);
                    const FewOperand<kTile> operand = x.get(i, j);
                    multiply_tile<kTile>(sums, word, scale, operand.pairs, operand.scale);
                    x.used(i, j);
                    weights.free();
                    weights.fetch(after(i));
                }
            out.keep(warp, g, sums);
        }
        out.store(tile, end);
    }
}

}  // namespace project_detail

template <ProjectMmaSpec S>
DG_KERNEL(kProjectThreads, kProjectFewCtas)
project_few(DG_GRID_CONSTANT const ProjectMmaParams p) {
    ptx::grid_dependency_launch();
    project_detail::run_few<S>(p, ptx::block_index(), ptx::grid_size());
}

template <ProjectPairSpec S>
DG_KERNEL(kProjectThreads, kProjectFewCtas)
project_few_pair(DG_GRID_CONSTANT const ProjectPairParams p) {
    ptx::grid_dependency_launch();
    const u32 block = ptx::block_index();
    if (block < p.first_blocks)
        project_detail::run_few<S.first>(p.first, block, p.first_blocks);
    else
        project_detail::run_few<S.second>(p.second, block - p.first_blocks,
                                          ptx::grid_size() - p.first_blocks);
}

}  // namespace deep_gemm
