// Rows of a latent cache (keys and values in one vector) and rotary positions: what rope, cache writes, the
// compressor and the indexer share.
//
// An FP8 row is 584 bytes: 448 E4M3, 64 bf16 (the rotated channels), 7 UE8M0 scales (one for 64 channels) and
// a zero. A page holds the 576-byte parts of all its rows first, then the 8-byte parts.
//
// An FP4 row, of the indexer, is 68 bytes: 128 E2M1, the first of a pair in the low nibble, and 4 UE8M0
// scales (one for 32 channels). A page holds the 64-byte parts of all its rows first, then the 4-byte parts.
#pragma once

#include <deep_gemm/spec/view.h>

namespace deep_gemm {

// Which channels are rotated together: (2 i, 2 i + 1) or (i, i + dims / 2).
enum class RopePairs : u8 { interleaved, halves };
constexpr const char* name_of(RopePairs pairs) {
    return pairs == RopePairs::halves ? "halves" : "interleaved";
}

// What happens to a row last.
enum class RowFinish : u8 {
    none,
    fp8_round_trip,  // the unrotated channels through bf16 and E4M3, one scale for 64
    hadamard,        // orthonormal Walsh-Hadamard transform
    hadamard_fp4,    // the same through bf16, then E2M1, one scale for 32
};
constexpr const char* name_of(RowFinish finish) {
    switch (finish) {
        case RowFinish::none: return "none";
        case RowFinish::fp8_round_trip: return "fp8_round_trip";
        case RowFinish::hadamard: return "hadamard";
        case RowFinish::hadamard_fp4: return "hadamard_fp4";
    }
    return "?";
}

constexpr u32 kLatentMaxChannels = 512;  // four a thread
constexpr u32 kLatentThreads = kLatentMaxChannels / 4;
constexpr u32 kFp8RowChannels = 512, kFp8RowRotated = 64, kFp8RowGroup = 64;
constexpr u32 kFp8RowBytes = 576, kFp8RowScaleBytes = 8;
constexpr u32 kFp4RowChannels = 128, kFp4RowGroup = 32;
constexpr u32 kFp4RowBytes = 64, kFp4RowScaleBytes = 4;

// Rows [sequences, rows, d] of fp32 or bf16 (strides in elements), or pages of FP8 or FP4 rows (strides in
// bytes). With a table, pages of either are anywhere in data: page i of a sequence is page table[sequence,
// i], and stride_sequence is a page's.
struct LatentView {
    void* data;
    u64 stride_sequence, stride_row;  // FP8, FP4 without a table: stride_row is the page's
    u32 sequences, rows, page_rows;
    u32 table_stride;  // pages of a sequence
    const i32* table;  // or null
};

struct LatentSpec {
    Format x = Format::fp32;
    Format weight = Format::bf16;  // none: rotate without a norm
    Format rows = Format::fp32;    // what is written: fp32, bf16, fp8_e4m3 or fp4_e2m1 for FP8 or FP4 rows
    RowFinish finish = RowFinish::none;
    RopePairs pairs = RopePairs::interleaved;
    bool norm = true;
    bool inverse = false;
    u32 heads = 1;  // of a CTA of rope: 1, or kLatentHeads of one token; any number gives the same bits

    friend constexpr bool operator==(const LatentSpec&, const LatentSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const LatentSpec& s) {
    visit("x", s.x);
    visit("weight", s.weight);
    visit("rows", s.rows);
    visit("finish", s.finish);
    visit("pairs", s.pairs);
    visit("norm", s.norm);
    visit("inverse", s.inverse);
    visit("heads", s.heads);
}

struct LatentSmem {
    u32 sums;  // a float a warp, of each head
    u32 bytes;
};
constexpr u32 kLatentHeads = kLatentThreads / 32;
constexpr LatentSmem plan_smem(const LatentSpec&) {
    return {.sums = 0, .bytes = kLatentThreads / 32 * 4 * kLatentHeads};
}

// Heads of tokens, in place or to another tensor.
struct RopeParams {
    View x, y;           // [rows, inner, d]
    const void* weight;  // [d]
    const float* frequencies;
    const i32* positions;  // [rows]
    u32 inner, d, dims;    // dims: the last channels, rotated
    float eps;
};

// Tokens to cache rows position % rows.
struct LatentWriteParams {
    View x;              // [rows, d]
    const void* weight;  // [d]
    const float* frequencies;
    const i32* positions;
    const i32* sequences;  // or null
    LatentView rows;
    u32 d, dims;
    float eps;
};

struct CacheWriteParams {
    View x;  // [rows, inner, d]
    const i32* positions;
    const i32* sequences;
    LatentView rows;  // of [inner, d]
    u64 stride_inner;
    u32 inner, d;
};

}  // namespace deep_gemm
