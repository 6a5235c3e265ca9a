// y = x W^T for Q8_0 weights and activations quantised in blocks of 32: integer products are exact, and the
// order of everything else is fixed.
//
// A group of eight warps takes tiles of 16 rows of W (or 32) and up to eight tokens; warp w takes blocks 4 w
// to 4 w + 3 of every 32. mma.sync of bytes multiplies a block of 16 rows with that of eight tokens at once,
// exactly; each of the 32 places of a block has sums of its own:
//   sum[b % 32] = fma(round(d_w * d_x), float(dot), sum[b % 32])      dot: 32 products of bytes, below 2^22
// then the 32 sums meet as lanes of a warp would by butterfly, 16, 8, 4, 2, 1: the order that one warp for a
// row and lane l for blocks l, l + 32, ... would have. A token's sum is made of its own numbers in the same
// order however many tokens share the pass over W: row i of a batch is bit-equal to the row alone. Launched
// by op/linear.cpp.
#pragma once

#include <deep_gemm/kernel/gemv_q8_ring.h>
#include <deep_gemm/kernel/gemv_q8_tokens.h>
#include <deep_gemm/ptx/mma_sync.h>

namespace deep_gemm {
namespace gemv_q8_detail {

using kernel::group_thread;
using kernel::group_warp;
using kernel::kLaneRows;

constexpr u32 kTileElements = kMmaTileRows * kMmaTileTokens;
// The integer accumulator starts with the bits of 1.5 * 2^23: a float whose last bits are the sum.
constexpr u32 kFloatBits = 0x4b400000u;
constexpr float kFloatOffset = 12582912.0f;

/// [place of the block][tile of rows][fragment element].
template <GemvSpec S>
struct Sums {
    float value[kQ8VisitBlocks][S.row_tiles][4];
};

struct Row {
    const u8* data;
    const u8* scales;  // q8_0_split
    u32 before;        // bytes between the row of a stage and this warp's first block
};

/// A lane's part of a block: bytes 8 c to 8 c + 7 of its rows, c = lane % 4, and their scales.
template <GemvSpec S>
struct Block {
    u32 word[S.row_tiles][kLaneRows][2];
    float scale[S.row_tiles][kLaneRows];
};

/// Block `place` of the visit in `stage`.
template <GemvSpec S>
DG_DEVICE void read_stage(Block<S>& block, const Row (&rows)[S.row_tiles][kLaneRows],
                          ptx::SharedAddress stage, u32 place) {
    using Layout = kernel::Q8Layout<S>;
    const u32 lane = ptx::lane_index();
#pragma unroll
    for (u32 i = 0; i < S.row_tiles * kLaneRows; ++i) {
        u32(&word)[2] = block.word[i / kLaneRows][i % kLaneRows];
        const ptx::SharedAddress row = stage + (lane / 4 + i * 8) * Layout::kPitch;
        if constexpr (Layout::kSplit) {
            const ptx::UInt2 v = ptx::ld_shared_v2_u32(row + place * kQ8Block + lane % 4 * 8);
            word[0] = v.x, word[1] = v.y;
        } else {
            const ptx::SharedAddress start =
                row + rows[i / kLaneRows][i % kLaneRows].before + place * kQ8BlockBytes;
            block.scale[i / kLaneRows][i % kLaneRows] = ptx::cvt_f32_f16(ptx::ld_shared_u16(start));
            const ptx::SharedAddress bytes = start + 2 + lane % 4 * 8;
            const u32 odd = bytes & 2;  // the eight bytes lie in three words, or in two
            const ptx::SharedAddress words = bytes - odd;
            const u32 low = ptx::ld_shared_u32(words), middle = ptx::ld_shared_u32(words + 4),
                      high = ptx::ld_shared_u32(words + 4 + 2 * odd);
            word[0] = ptx::prmt(low, middle, odd ? 0x5432 : 0x3210);
            word[1] = ptx::prmt(middle, high, odd ? 0x5432 : 0x3210);
        }
    }
}

/// Scales that lie apart, and (without a ring) the bytes, of block `index` of the rows.
template <GemvSpec S>
DG_DEVICE void read_memory(Block<S>& block, const Row (&rows)[S.row_tiles][kLaneRows], u32 index, u32 k) {
    using Layout = kernel::Q8Layout<S>;
    const u32 inside = ptx::lane_index() % 4 * 8;
#pragma unroll
    for (u32 i = 0; i < S.row_tiles * kLaneRows; ++i) {
        const Row& row = rows[i / kLaneRows][i % kLaneRows];
        const u8* start = row.data + u64{index} * Layout::kBlockBytes;
        const u8* scale = Layout::kSplit ? row.scales + u64{index} * 2 : start;
        if (Layout::kSplit || !S.vector)
            block.scale[i / kLaneRows][i % kLaneRows] = ptx::cvt_f32_f16(ptx::ld_cached_u16(scale));
        if constexpr (!S.vector) {
            const i64 left =
                Layout::kSplit ? static_cast<i64>(k) - i64{index} * kQ8Block - inside : i64{kQ8Block};
            kernel::load_bytes(block.word[i / kLaneRows][i % kLaneRows],
                               start + (Layout::kSplit ? 0 : 2) + inside, left);
        }
    }
}

/// Adds a block of every row to the sums of its place.
template <GemvSpec S>
DG_DEVICE void multiply_block(float (&sum)[S.row_tiles][4], const Block<S>& block, const TokenBlock& x) {
#pragma unroll
    for (u32 r = 0; r < S.row_tiles; ++r) {
        const u32 a[4] = {block.word[r][0][0], block.word[r][1][0], block.word[r][0][1], block.word[r][1][1]};
        u32 dot[4];
        ptx::mma_m16n8k32_s8(dot, a, x.word[0], x.word[1], kFloatBits);
#pragma unroll
        for (u32 i = 0; i < 4; ++i)
            sum[r][i] = ptx::fma_rn(ptx::mul_rn(block.scale[r][i / 2], x.scale[i % 2]),
                                    ptx::float_of_bits(dot[i]) - kFloatOffset, sum[r][i]);
    }
}

/// Four blocks from `index` on, or (not Whole) those of them that the rows have.
template <bool Whole, GemvSpec S>
DG_DEVICE void multiply_visit(Sums<S>& sums, kernel::Q8Ring<S>& ring, const GemvParams& p,
                              const Row (&rows)[S.row_tiles][kLaneRows], const Tokens<S>& tokens, u32 index) {
    const u32 num_blocks = ceil_div(p.k, kQ8Block);
    Block<S> weights[kQ8VisitBlocks];
    TokenBlock x[kQ8VisitBlocks];
#pragma unroll
    for (u32 place = 0; place < kQ8VisitBlocks; ++place) {
        if (!Whole && index + place >= num_blocks) break;
        read_memory<S>(weights[place], rows, index + place, p.k);
        tokens.read(x[place], index + place);
    }
    ptx::SharedAddress stage = 0;
    if constexpr (S.vector) stage = ring.next(p);
#pragma unroll
    for (u32 place = 0; place < kQ8VisitBlocks; ++place) {
        if (!Whole && index + place >= num_blocks) break;
        if constexpr (S.vector) read_stage<S>(weights[place], rows, stage, place);
        multiply_block<S>(sums.value[place], weights[place], x[place]);
    }
}

/// The sums of places First, First + Step, ... of an element, by butterfly: those furthest apart first.
template <u32 Step>
DG_DEVICE float sum_of_places(ptx::SharedAddress first) {
    if constexpr (Step == kGemvWarps * kQ8VisitBlocks)
        return ptx::ld_shared_f32(first);
    else
        return ptx::add_rn(sum_of_places<2 * Step>(first),
                           sum_of_places<2 * Step>(first + Step * kTileElements * 4));
}

template <GemvSpec S>
DG_DEVICE void store_block(const GemvParams& p, const kernel::GemvBlock& block, const Sums<S>& sums,
                           ptx::SharedAddress partial, u32 first_token, u32 count) {
    constexpr bool kPaired = S.epilogue == GemvEpilogue::swiglu;
    constexpr u32 kTileBytes = kGemvWarps * kQ8VisitBlocks * kTileElements * 4;
    const ptx::SharedAddress mine =
        partial + (group_warp() * kQ8VisitBlocks * kTileElements + ptx::lane_index()) * 4;
#pragma unroll
    for (u32 r = 0; r < S.row_tiles; ++r)
#pragma unroll
        for (u32 place = 0; place < kQ8VisitBlocks; ++place)
#pragma unroll
            for (u32 i = 0; i < 4; ++i)
                ptx::st_shared_f32(mine + r * kTileBytes + (place * kTileElements + i * 32) * 4,
                                   sums.value[place][r][i]);
    ptx::named_barrier_sync(1 + ptx::thread_index() / kGemvThreads, kGemvThreads);
    // Two lanes of a warp share an element: one adds the even places, one the odd ones.
    const u32 element = group_warp() * 16 + ptx::lane_index() % 16, odd = ptx::lane_index() / 16;
    const u32 row = element % 32 / 4 + element / 64 * 8, token = element % 4 * 2 + element / 32 % 2;
    float value[S.row_tiles];
#pragma unroll
    for (u32 r = 0; r < S.row_tiles; ++r) {
        value[r] = sum_of_places<2>(partial + r * kTileBytes + (odd * kTileElements + element) * 4);
        value[r] = ptx::add_rn(value[r], ptx::shfl_xor_f32(value[r], 16));
    }
    if (odd || token >= count) return;
#pragma unroll
    for (u32 r = 0; r < (kPaired ? 1 : S.row_tiles); ++r) {
        const GemvMatrix& w = p.w[block.matrix];
        const u32 at = block.first_row + r * kMmaTileRows + row;
        if (at >= w.n) break;
        if constexpr (kPaired) value[0] = kernel::swiglu(value[0], value[1], p.swiglu_limit);
        kernel::finish<S>(w, first_token + token, at, value[r]);
    }
}

template <GemvSpec S>
DG_DEVICE void find_rows(Row (&rows)[S.row_tiles][kLaneRows], const GemvParams& p,
                         const kernel::GemvBlock& block) {
#pragma unroll
    for (u32 i = 0; i < S.row_tiles * kLaneRows; ++i) {
        u32 row = ptx::lane_index() / 4 + i % kLaneRows * 8;
        const GemvMatrix& w = kernel::row_of_block<S>(p, block, i / kLaneRows, row);
        const u8* data = w.data + row * w.row_stride;
        const u64 visit = reinterpret_cast<u64>(data) + group_warp() * kernel::Q8Layout<S>::kVisitBytes;
        rows[i / kLaneRows][i % kLaneRows] = {
            data, static_cast<const u8*>(w.scales) + row * scale_columns_of(S.w, p.k) * 2,
            static_cast<u32>(visit % 16)};
    }
}

template <GemvSpec S>
DG_DEVICE void run(const GemvParams& p) {
    static_assert(why_illegal(S) == nullptr, "no such kernel");
    constexpr GemvSmemPlan kPlan = plan_smem(S);
    const u32 group = ptx::thread_index() / kGemvThreads, num_blocks = ceil_div(p.k, kQ8Block);
    const u32 tiles = kernel::num_blocks<S>(p), stride = ptx::grid_size() * S.groups;
    u32 tile = group * ptx::grid_size() + ptx::block_index();
    if constexpr (S.dependent_launch) {
        ptx::grid_dependency_launch();
        if (S.vector && tile < tiles) kernel::prefetch_first<S>(p, tile);
        ptx::grid_dependency_wait();
    }
    if (!S.resident && tile >= tiles) return;
    kernel::Q8Ring<S> ring;
    const u32 first_token = ptx::block_index_y() * p.tokens_per_block;
    const u32 left = p.m - first_token, count = left < p.tokens_per_block ? left : p.tokens_per_block;
    Tokens<S> tokens;
    tokens.start(p, first_token, count, [&] {
        if constexpr (S.vector) ring.start(p, tile, stride, tiles);
    });
    // The sums of two tiles take turns: who writes the second has passed the barrier behind the first.
    ptx::SharedAddress partial =
        ptx::dynamic_smem() + kPlan.barriers - (S.groups - group) * 2 * kPlan.partial_bytes;
    u32 flip = kPlan.partial_bytes;
    for (; tile < tiles; tile += stride) {
        const kernel::GemvBlock block = kernel::find_block<S>(p, tile);
        Row rows[S.row_tiles][kLaneRows];
        find_rows<S>(rows, p, block);
        Sums<S> sums = {};
        u32 index = group_warp() * kQ8VisitBlocks;
        for (; index + kQ8VisitBlocks <= num_blocks; index += kGemvWarps * kQ8VisitBlocks)
            multiply_visit<true, S>(sums, ring, p, rows, tokens, index);
        if (index < num_blocks) multiply_visit<false, S>(sums, ring, p, rows, tokens, index);
        store_block<S>(p, block, sums, partial, first_token, count);
        partial += flip;
        flip = 0 - flip;
    }
}

}  // namespace gemv_q8_detail

template <GemvSpec S>
DG_KERNEL(threads_of(S), 1)
gemv_q8(DG_GRID_CONSTANT const GemvParams p) {
    gemv_q8_detail::run<S>(p);
}

}  // namespace deep_gemm
