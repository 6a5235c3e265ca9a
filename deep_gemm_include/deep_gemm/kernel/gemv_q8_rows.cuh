// y = x W^T for Q8_0 weights and one or two tokens: the sums of gemv_q8.cuh, in the same order and to the
// same bit, by dp4a, which needs fewer instructions where an mma would multiply mostly zeros.
//
// A warp owns a row of W (or two) and the tokens; lane l takes blocks l, l + 32, ... in turn. For
// each:
//   sum = fma(round(d_w * d_x), float(dot), sum)      dot: 32 products of bytes, exact, below 2^24
// then the lanes' sums meet by butterfly, 16, 8, 4, 2, 1. A token's sum is made of its own numbers in the
// same order however many tokens share the pass over W: row i of a batch is bit-equal to the row alone.
//
// Blocks of 34 bytes are at no useful alignment, so a warp copies 32 of them as whole 16-byte vectors to
// shared memory, several visits deep, and each lane picks its block from there. Launched by op/linear.cpp.
#pragma once

#include <deep_gemm/kernel/gemv_prefetch.h>
#include <deep_gemm/kernel/gemv_store.h>

namespace deep_gemm {
namespace gemv_q8_rows_detail {

constexpr u32 kPrefetchBytes =
    kQ8LaneVisitBytes;  // of each row: what a warp asks L2 for before it may read x

/// One block of W: its scale and bytes.
struct Block {
    float scale;
    u32 word[8];
};

struct Row {
    const u8* data;
    const u8* scales;  // q8_0_split
};

/// Starts the copy of blocks [32 index, 32 index + 32) of a row; bytes beyond the row become zeros.
DG_DEVICE void copy_visit(ptx::SharedAddress stage, const u8* row, u64 row_bytes, u32 index) {
    const u64 first = u64{index} * kQ8LaneVisitBytes;
    if (first >= row_bytes) return;
    const u64 last = first + kQ8LaneVisitBytes < row_bytes ? first + kQ8LaneVisitBytes : row_bytes;
    const u32 before = static_cast<u32>(reinterpret_cast<u64>(row + first) % 16);
    const u32 bytes = static_cast<u32>(last - first) + before;
    const u64 to_end = row_bytes - first + before;  // no lane uses what is beyond the visit
    const u8* source = row + first - before;
#pragma unroll
    for (u32 i = 0; i < ceil_div(kQ8StageBytes, 512u); ++i) {
        const u32 offset = (i * 32 + ptx::lane_index()) * 16;
        if (offset < bytes)
            ptx::cp_async_part<16>(stage + offset, source + offset,
                                   to_end - offset < 16 ? static_cast<u32>(to_end - offset) : 16);
    }
}

/// The lane's block of a copied visit. `before`: bytes of the stage before the visit's first.
DG_DEVICE Block block_of_stage(ptx::SharedAddress stage, u32 before) {
    const u32 offset = before + ptx::lane_index() * kQ8BlockBytes;
    const bool odd = offset % 4 != 0;  // the scale is the upper half of its word
    u32 word[9];
#pragma unroll
    for (u32 i = 0; i < 9; ++i) word[i] = ptx::ld_shared_u32(stage + offset / 4 * 4 + 4 * i);
    Block block;
    block.scale = ptx::cvt_f32_f16(odd ? word[0] >> 16 : word[0] & 0xffff);
#pragma unroll
    for (u32 i = 0; i < 8; ++i) block.word[i] = ptx::prmt(word[i], word[i + 1], odd ? 0x7654 : 0x5432);
    return block;
}

/// The same block straight from memory: rows at any even address, or split bytes and scales.
template <GemvSpec S>
DG_DEVICE Block block_of_memory(const Row& row, u32 index, u32 k) {
    Block block;
    if constexpr (S.w == Quant::q8_0) {
        const u8* address = row.data + u64{index} * kQ8BlockBytes;
        block.scale = ptx::cvt_f32_f16(ptx::ld_cached_u16(address));
#pragma unroll
        for (u32 i = 0; i < 8; ++i)
            block.word[i] = ptx::ld_cached_u16(address + 2 + 4 * i) | ptx::ld_cached_u16(address + 4 + 4 * i)
                                                                          << 16;
    } else {
        const u8* address = row.data + u64{index} * kQ8Block;
        block.scale = ptx::cvt_f32_f16(ptx::ld_cached_u16(row.scales + u64{index} * 2));
        if (S.vector && (index + 1) * kQ8Block <= k) {
            const ptx::Words4 low = ptx::ld_cached_v4(address), high = ptx::ld_cached_v4(address + 16);
            for (u32 i = 0; i < 4; ++i) block.word[i] = low.word[i], block.word[i + 4] = high.word[i];
        } else {
            kernel::load_bytes(block.word, address, static_cast<i64>(k) - index * kQ8Block);
        }
    }
    return block;
}

/// Adds block `index` of every row to the sums of every token.
template <GemvSpec S>
DG_DEVICE void multiply_block(float (&sum)[S.row_tiles][S.tokens], const Block (&blocks)[S.row_tiles],
                              const GemvParams& p, u32 first_token, u32 count, u32 index) {
#pragma unroll
    for (u32 t = 0; t < S.tokens; ++t) {
        if (t >= count) break;
        const u64 token = first_token + t;
        const u8* x = p.x + token * p.x_stride + u64{index} * kQ8Block;
        const ptx::Words4 low = ptx::ld_cached_v4(x), high = ptx::ld_cached_v4(x + 16);
        const float scale_x = ptx::ld_cached_f32(p.x_scale + token * p.x_scale_stride + index);
#pragma unroll
        for (u32 r = 0; r < S.row_tiles; ++r) {
            i32 dot = 0;
#pragma unroll
            for (u32 i = 0; i < 4; ++i) dot = ptx::dp4a(blocks[r].word[i], low.word[i], dot);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) dot = ptx::dp4a(blocks[r].word[i + 4], high.word[i], dot);
            sum[r][t] =
                ptx::fma_rn(ptx::mul_rn(blocks[r].scale, scale_x), static_cast<float>(dot), sum[r][t]);
        }
    }
}

/// The whole blocks of a row of split bytes and scales, two visits on their way: one would leave memory
/// waiting. The lane's next block.
template <GemvSpec S>
DG_DEVICE u32 multiply_ahead(float (&sum)[S.row_tiles][S.tokens], const Row& row, const GemvParams& p,
                             u32 first_token, u32 count) {
    constexpr u32 kVisits = 2;
    const u32 whole = p.k / kQ8Block;
    ptx::Words4 low[kVisits], high[kVisits];
    u32 scale[kVisits];
    const auto load = [&](u32 turn, u32 index) {
        if (index >= whole) return;
        const u8* address = row.data + u64{index} * kQ8Block;
        scale[turn] = ptx::ld_cached_u16(row.scales + u64{index} * 2);
        low[turn] = ptx::ld_cached_v4(address);
        high[turn] = ptx::ld_cached_v4(address + 16);
    };
    u32 index = ptx::lane_index();
#pragma unroll
    for (u32 i = 0; i + 1 < kVisits; ++i) load(i, index + i * kQ8LaneBlocks);
    while (true) {
#pragma unroll
        for (u32 i = 0; i < kVisits; ++i) {
            if (index >= whole) return index;
            load((i + kVisits - 1) % kVisits, index + (kVisits - 1) * kQ8LaneBlocks);
            Block block[1];
            block[0].scale = ptx::cvt_f32_f16(scale[i]);
            for (u32 j = 0; j < 4; ++j)
                block[0].word[j] = low[i].word[j], block[0].word[j + 4] = high[i].word[j];
            multiply_block<S>(sum, block, p, first_token, count, index);
            index += kQ8LaneBlocks;
        }
    }
}

template <GemvSpec S>
DG_DEVICE void multiply_rows(float (&sum)[S.row_tiles][S.tokens], const Row (&rows)[S.row_tiles],
                             const GemvParams& p, u32 first_token, u32 count) {
    const u32 num_blocks = ceil_div(p.k, kQ8Block), lane = ptx::lane_index();
    const u32 visits = ceil_div(num_blocks, kQ8LaneBlocks);
    Block blocks[S.row_tiles];
    if constexpr (S.w != Quant::q8_0 || !S.vector) {
        u32 index = lane;
        if constexpr (S.vector && S.row_tiles == 1)
            index = multiply_ahead<S>(sum, rows[0], p, first_token, count);
        for (; index < num_blocks; index += kQ8LaneBlocks) {
#pragma unroll
            for (u32 r = 0; r < S.row_tiles; ++r) blocks[r] = block_of_memory<S>(rows[r], index, p.k);
            multiply_block<S>(sum, blocks, p, first_token, count, index);
        }
        return;
    }
    const u64 row_bytes = row_bytes_of(S.w, p.k);
    const ptx::SharedAddress ring =
        ptx::dynamic_smem() + ptx::warp_index() * S.row_tiles * S.stages * kQ8StageBytes;
    const auto stage_of = [ring](u32 visit, u32 r) {
        return ring + (visit % S.stages * S.row_tiles + r) * kQ8StageBytes;
    };
    const auto copy = [&](u32 visit) {
#pragma unroll
        for (u32 r = 0; r < S.row_tiles; ++r) copy_visit(stage_of(visit, r), rows[r].data, row_bytes, visit);
        ptx::cp_async_commit();  // an empty group keeps the count
    };
    for (u32 visit = 0; visit + 1 < S.stages; ++visit) copy(visit);
    for (u32 visit = 0; visit < visits; ++visit) {
        ptx::cp_async_wait<S.stages - 2>();
        ptx::sync_warp();  // every lane's part has landed, and every lane has read the stage before
        copy(visit + S.stages - 1);
        const u32 index = visit * kQ8LaneBlocks + lane;
        if (index >= num_blocks) continue;
#pragma unroll
        for (u32 r = 0; r < S.row_tiles; ++r) {
            const u64 start = reinterpret_cast<u64>(rows[r].data) + u64{visit} * kQ8LaneVisitBytes;
            blocks[r] = block_of_stage(stage_of(visit, r), static_cast<u32>(start % 16));
        }
        multiply_block<S>(sum, blocks, p, first_token, count, index);
    }
}

DG_DEVICE float sum_of_lanes(float value) {
#pragma unroll
    for (u32 distance = 16; distance > 0; distance /= 2)
        value = ptx::add_rn(value, ptx::shfl_xor_f32(value, distance));
    return value;
}

template <GemvSpec S>
DG_DEVICE void run(const GemvParams& p) {
    static_assert(why_illegal(S) == nullptr, "no such kernel");
    constexpr bool kPaired = S.epilogue == GemvEpilogue::swiglu;
    if constexpr (S.dependent_launch) ptx::grid_dependency_launch();
    const kernel::GemvBlock block = kernel::find_block<S>(p, ptx::block_index());
    const u32 first_token = ptx::block_index_y() * p.tokens_per_block;
    const u32 left = p.m - first_token, count = left < p.tokens_per_block ? left : p.tokens_per_block;
    const u32 first_row = block.first_row + ptx::warp_index() * (kPaired ? 1 : S.row_tiles);
    if (first_row >= p.w[block.matrix].n) return;  // it writes nothing that a next kernel could miss
    Row rows[S.row_tiles];
#pragma unroll
    for (u32 r = 0; r < S.row_tiles; ++r) {
        const GemvMatrix& w = p.w[kPaired ? r : block.matrix];
        const u32 wanted = first_row + (kPaired ? 0 : r);
        const u64 row = wanted < w.n ? wanted : w.n - 1;  // beyond the last: the last, dropped below
        const u8* scales = static_cast<const u8*>(w.scales);
        rows[r] = {w.data + row * w.row_stride, scales + row * scale_columns_of(S.w, p.k) * 2};
    }
    if constexpr (S.dependent_launch) {
        if (S.w == Quant::q8_0 && S.vector && ptx::lane_index() == 0) {
            const u64 bytes = row_bytes_of(S.w, p.k);
            for (const Row& row : rows)
                kernel::prefetch_bytes(row.data,
                                       bytes < kPrefetchBytes ? static_cast<u32>(bytes) : kPrefetchBytes);
        }
        ptx::grid_dependency_wait();
    }
    float sum[S.row_tiles][S.tokens] = {};
    multiply_rows<S>(sum, rows, p, first_token, count);
#pragma unroll
    for (u32 t = 0; t < S.tokens; ++t) {
        if (t >= count) break;
#pragma unroll
        for (u32 r = 0; r < S.row_tiles; ++r) sum[r][t] = sum_of_lanes(sum[r][t]);
        if (ptx::lane_index() != t) continue;
#pragma unroll
        for (u32 r = 0; r < (kPaired ? 1 : S.row_tiles); ++r) {
            const GemvMatrix& w = p.w[block.matrix];
            float value = sum[r][t];
            if constexpr (kPaired) value = kernel::swiglu(value, sum[1][t], p.swiglu_limit);
            if (first_row + r < w.n) kernel::finish<S>(w, first_token + t, first_row + r, value);
        }
    }
}

}  // namespace gemv_q8_rows_detail

template <GemvSpec S>
DG_KERNEL(kGemvThreads, 4)
gemv_q8_rows(DG_GRID_CONSTANT const GemvParams p) {
    gemv_q8_rows_detail::run<S>(p);
}

}  // namespace deep_gemm
