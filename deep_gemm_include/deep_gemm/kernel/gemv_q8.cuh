// y = x W^T for Q8_0 weights and activations quantised in blocks of 32: integer products are exact, and the
// order of everything else is fixed.
//
// A group of eight warps takes tiles of 16 rows of W (or 32) and up to 16 tokens; warp w takes blocks 4 w
// to 4 w + 3 of every 32. mma.sync of bytes multiplies a block of 16 rows with that of eight tokens at once,
// exactly; each of the 32 places of a block has sums of its own:
//   sum[b % 32] = fma(round(d_w * d_x), float(dot), sum[b % 32])      dot: 32 products of bytes, below 2^22
// then the 32 sums meet as lanes of a warp would by butterfly, 16, 8, 4, 2, 1: the order that one warp for a
// row and lane l for blocks l, l + 32, ... would have. A token's sum is made of its own numbers in the same
// order however many tokens share the pass over W: row i of a batch is bit-equal to the row alone. Launched
// by op/linear.cpp.
#pragma once

#include <deep_gemm/kernel/gemv_q8_bulk.h>
#include <deep_gemm/kernel/gemv_q8_tokens.h>
#include <deep_gemm/kernel/gemv_sums.h>

namespace deep_gemm {
namespace gemv_q8_detail {

using gemv_detail::Partials;
using gemv_detail::Sums;
using kernel::group_warp;
using kernel::kLaneRows;

// The integer accumulator starts with the bits of 1.5 * 2^23: a float whose last bits are the sum.
constexpr u32 kFloatBits = 0x4b400000u;
constexpr float kFloatOffset = 12582912.0f;

struct Row {
    const u8* data;
    const u8* scales;  // q8_0_split
    u32 place;         // of this warp's first block in a stage
};

/// A lane's part of a block: bytes 4 c to 4 c + 3 and 4 c + 16 to 4 c + 19 of its rows, c = lane % 4, and
/// their scales.
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
    const u32 inside = ptx::lane_index() % 4 * 4;
#pragma unroll
    for (u32 i = 0; i < S.row_tiles * kLaneRows; ++i) {
        u32(&word)[2] = block.word[i / kLaneRows][i % kLaneRows];
        const ptx::SharedAddress start =
            stage + rows[i / kLaneRows][i % kLaneRows].place + place * Layout::kBlockBytes;
        const ptx::SharedAddress bytes = start + (Layout::kSplit ? 0 : 2) + inside;
        if constexpr (!Layout::kSplit)
            block.scale[i / kLaneRows][i % kLaneRows] = ptx::cvt_f32_f16(ptx::ld_shared_u16(start));
        // Four bytes lie in one word, or in two halves.
        const u32 odd = Layout::kSplit ? 0 : S.row_alignment != 2 ? (place + 1) * 2 % 4 : bytes & 2;
        const ptx::SharedAddress words = bytes - odd;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            word[half] = ptx::ld_shared_u32(words + half * kQ8Block / 2);
            if (odd)
                word[half] =
                    ptx::prmt(word[half], ptx::ld_shared_u32(words + half * kQ8Block / 2 + 4), 0x5432);
        }
    }
}

/// Scales that lie apart, and (without a ring) the bytes, of block `index` of the rows.
template <GemvSpec S>
DG_DEVICE void read_memory(Block<S>& block, const Row (&rows)[S.row_tiles][kLaneRows], u32 index, u32 k) {
    using Layout = kernel::Q8Layout<S>;
    const u32 inside = ptx::lane_index() % 4 * 4;
#pragma unroll
    for (u32 i = 0; i < S.row_tiles * kLaneRows; ++i) {
        const Row& row = rows[i / kLaneRows][i % kLaneRows];
        const u8* start = row.data + u64{index} * Layout::kBlockBytes;
        const u8* scale = Layout::kSplit ? row.scales + u64{index} * 2 : start;
        if (Layout::kSplit || !S.vector)
            block.scale[i / kLaneRows][i % kLaneRows] = ptx::cvt_f32_f16(ptx::ld_cached_u16(scale));
        if constexpr (!S.vector) {
            const u64 left = Layout::kSplit ? k - u64{index} * kQ8Block : kQ8Block;
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                const u32 at = half * kQ8Block / 2 + inside;
                u32 word[1];
                kernel::load_bytes(word, start + (Layout::kSplit ? 0 : 2) + at, static_cast<i64>(left) - at);
                block.word[i / kLaneRows][i % kLaneRows][half] = word[0];
            }
        }
    }
}

/// Adds a block of every row to the sums of its place.
template <GemvSpec S>
DG_DEVICE void multiply_block(Sums<S>& sums, const Block<S>& block, const TokenBlock<S>& x) {
#pragma unroll
    for (u32 r = 0; r < S.row_tiles; ++r) {
        const u32 a[4] = {block.word[r][0][0], block.word[r][1][0], block.word[r][0][1], block.word[r][1][1]};
#pragma unroll
        for (u32 t = 0; t < TokenBlock<S>::kTiles; ++t) {
            u32 dot[4];
            ptx::mma_m16n8k32_s8(dot, a, x.word[t][0], x.word[t][1], kFloatBits);
#pragma unroll
            for (u32 i = 0; i < 4; ++i)
                sums.value[r][t][i] =
                    ptx::fma_rn(ptx::mul_rn(block.scale[r][i / 2], x.scale[t][i % 2]),
                                ptx::float_of_bits(dot[i]) - kFloatOffset, sums.value[r][t][i]);
        }
    }
}

/// Four blocks from `index` on, or (not Whole) those of them that the rows have.
/// next() waits for them and says where they lie.
template <bool Whole, GemvSpec S, typename Next>
DG_DEVICE void multiply_visit(Sums<S> (&sums)[kQ8VisitBlocks], const Next& next, const GemvParams& p,
                              const Row (&rows)[S.row_tiles][kLaneRows], const Tokens<S>& tokens, u32 index) {
    const u32 num_blocks = ceil_div(p.k, kQ8Block);
    Block<S> weights[kQ8VisitBlocks];
    TokenBlock<S> x[kQ8VisitBlocks];
    constexpr bool kLate = S.resident && S.tokens == 16;  // there are no registers for all of them
#pragma unroll
    for (u32 place = 0; place < kQ8VisitBlocks; ++place) {
        if (!Whole && index + place >= num_blocks) break;
        read_memory<S>(weights[place], rows, index + place, p.k);
        if constexpr (!kLate) tokens.read(x[place], index + place);
    }
    ptx::SharedAddress stage = 0;
    if constexpr (S.vector) stage = next();
#pragma unroll
    for (u32 place = 0; place < kQ8VisitBlocks; ++place) {
        if (!Whole && index + place >= num_blocks) break;
        if constexpr (kLate) tokens.read(x[place], index + place);
        if constexpr (S.vector) read_stage<S>(weights[place], rows, stage, place);
        multiply_block<S>(sums[place], weights[place], x[place]);
    }
}

template <GemvSpec S>
DG_DEVICE void find_rows(Row (&rows)[S.row_tiles][kLaneRows], const GemvParams& p,
                         const kernel::GemvBlock& block) {
    using Layout = kernel::Q8Layout<S>;
#pragma unroll
    for (u32 i = 0; i < S.row_tiles * kLaneRows; ++i) {
        const u32 of_tile = ptx::lane_index() / 4 + i % kLaneRows * 8;
        u32 row = of_tile;
        const GemvMatrix& w = kernel::row_of_block<S>(p, block, i / kLaneRows, row);
        const u8* data = w.data + row * w.row_stride;
        const u64 visit = reinterpret_cast<u64>(data) + group_warp() * Layout::kVisitBytes;
        const u32 stage_row = i / kLaneRows * kMmaTileRows + of_tile,
                  pitch = S.bulk ? kQ8BulkPitch : Layout::kPitch;
        // In a stage of bulk copies a row begins where it does between two multiples of 16.
        const u32 before =
            S.bulk ? group_warp() * Layout::kVisitBytes +
                         (S.row_alignment == 16 ? 0 : static_cast<u32>(reinterpret_cast<u64>(data) % 16))
                   : static_cast<u32>(visit % 16);
        rows[i / kLaneRows][i % kLaneRows] = {
            data, static_cast<const u8*>(w.scales) + row * scale_columns_of(S.w, p.k) * 2,
            stage_row * pitch + before};
    }
}

/// Tokens of the block.
DG_DEVICE u32 count_tokens(const GemvParams& p, u32 first) {
    return p.m - first < p.tokens_per_block ? p.m - first : p.tokens_per_block;
}

/// The warps that bring weights; `index` of all of them.
template <GemvSpec S>
DG_DEVICE void bring(const GemvParams& p, u32 index) {
    ptx::grid_dependency_launch();
    kernel::Q8BulkWriter<S> writer(p, index / kQ8Writers, index % kQ8Writers);
    ptx::grid_dependency_wait();
    const u32 first_token = ptx::block_index_y() * p.tokens_per_block;
    Tokens<S> tokens;
    tokens.start(p, first_token, count_tokens(p, first_token), [&] {
#pragma unroll 1
        for (u32 i = 0; i < S.stages && writer.more(); ++i) writer.copy(p);
    });
    while (writer.more()) writer.copy(p);
}

/// All visits of a tile of rows.
template <GemvSpec S>
DG_DEVICE void multiply_tile(Sums<S> (&sums)[kQ8VisitBlocks], kernel::Q8BulkReader<S>& ring,
                             const GemvParams& p, const Row (&rows)[S.row_tiles][kLaneRows],
                             const Tokens<S>& tokens) {
    const u32 num_blocks = ceil_div(p.k, kQ8Block);
    const auto next = [&] { return ring.next(); };
    for (u32 first = 0; first < num_blocks; first += kQ8BulkBlocks) {
        const u32 index = first + group_warp() * kQ8VisitBlocks;
        if (index + kQ8VisitBlocks <= num_blocks)
            multiply_visit<true, S>(sums, next, p, rows, tokens, index);
        else
            multiply_visit<false, S>(sums, next, p, rows, tokens, index);
    }
}
template <GemvSpec S>
DG_DEVICE void multiply_tile(Sums<S> (&sums)[kQ8VisitBlocks], kernel::Q8Ring<S>& ring, const GemvParams& p,
                             const Row (&rows)[S.row_tiles][kLaneRows], const Tokens<S>& tokens) {
    const u32 num_blocks = ceil_div(p.k, kQ8Block);
    const auto next = [&] { return ring.next(p); };
    u32 index = group_warp() * kQ8VisitBlocks;
    for (; index + kQ8VisitBlocks <= num_blocks; index += kQ8BulkBlocks)
        multiply_visit<true, S>(sums, next, p, rows, tokens, index);
    if (index < num_blocks) multiply_visit<false, S>(sums, next, p, rows, tokens, index);
}

template <GemvSpec S>
DG_DEVICE auto ring_of(u32 group) {
    if constexpr (S.bulk)
        return kernel::Q8BulkReader<S>(group);
    else
        return kernel::Q8Ring<S>();
}

template <GemvSpec S>
DG_DEVICE void run(const GemvParams& p) {
    static_assert(why_illegal(S) == nullptr, "no such kernel");
    constexpr bool kLater = Partials<S>::kLater;
    const u32 group = ptx::thread_index() / kGemvThreads;
    if constexpr (S.bulk)
        if (group >= S.groups) return bring<S>(p, ptx::warp_index() - S.groups * kGemvWarps);
    const u32 tiles = kernel::num_blocks<S>(p), stride = ptx::grid_size() * S.groups;
    u32 tile = group * ptx::grid_size() + ptx::block_index();
    Partials<S> partials(group);
    if constexpr (S.dependent_launch) {
        ptx::grid_dependency_launch();
        if (S.vector && tile < tiles) kernel::prefetch_first<S>(p, tile);
        ptx::grid_dependency_wait();
    }
    if (!S.resident && tile >= tiles) return;
    auto ring = ring_of<S>(group);
    const u32 first_token = ptx::block_index_y() * p.tokens_per_block, count = count_tokens(p, first_token);
    Tokens<S> tokens;
    tokens.start(p, first_token, count, [&] {
        if constexpr (S.vector && !S.bulk) ring.start(p, tile, stride, tiles);
    });
    for (; tile < tiles; tile += stride) {
        const kernel::GemvBlock block = kernel::find_block<S>(p, tile);
        Row rows[S.row_tiles][kLaneRows];
        find_rows<S>(rows, p, block);
        Sums<S> sums[kQ8VisitBlocks];
        for (Sums<S>& place : sums) gemv_detail::clear<S>(place);
        multiply_tile<S>(sums, ring, p, rows, tokens);
        if (kLater && partials.count != 0)
            partials.finish(p, kernel::find_block<S>(p, tile - stride), first_token, count);
        partials.leave(sums);
        if constexpr (!kLater) partials.finish(p, block, first_token, count);
    }
    if (kLater && partials.count != 0)
        partials.finish(p, kernel::find_block<S>(p, tile - stride), first_token, count);
}

}  // namespace gemv_q8_detail

template <GemvSpec S>
DG_KERNEL(threads_of(S), 1)
gemv_q8(DG_GRID_CONSTANT const GemvParams p) {
    gemv_q8_detail::run<S>(p);
}

}  // namespace deep_gemm
