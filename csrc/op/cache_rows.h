// Rows of the caches of attention. The rules of op/model_ops.h hold.
#pragma once

#include "op/api.h"

#include <deep_gemm/spec/latent.h>

namespace deep_gemm::op {

// Rows of a latent cache (keys and values in one vector of d channels), of `s` sequences.
//   fp32, bf16   data [s, rows, d]
//   FP8          data int8 [s, pages, page_bytes], d = 512 = 448 + 64: in a page first page_rows rows of 576
//                bytes (448 E4M3, then 64 bf16), then page_rows rows of 8 bytes (7 UE8M0 scales, one for 64
//                channels, and a 0). page_bytes = 584 page_rows rounded up to 576; see latent_page_bytes().
//   FP4          of the indexer alone (compressor_update, index_scores): data int8 [s, pages, page_bytes],
//                d = 128: in a page first page_rows rows of 64 bytes (E2M1, two a byte), then page_rows rows
//                of 4 bytes (UE8M0 scales, one for 32 channels). page_bytes = 68 page_rows rounded up to 64;
//                see index_page_bytes().
//   with a table   int32 [s, n]: page i of sequence s is page table[s, i] of data, which every row that is
//                written or visible must have. Data is pages of all sequences: fp32, bf16 [pages, page_rows,
//                d]; FP8, FP4 [pages, page_bytes]. A sequence has n page_rows rows
struct LatentRows {
    TensorView data;
    u32 page_rows = 0;      // FP8, FP4, or with a table
    TensorView table = {};  // or absent
    [[nodiscard]] bool present() const { return data.present(); }
};
[[nodiscard]] constexpr u64 latent_page_bytes(u32 page_rows) {
    return align_up(u64{584} * page_rows, 576);
}
[[nodiscard]] constexpr u64 index_page_bytes(u32 page_rows) {
    return align_up(u64{68} * page_rows, 64);
}

// The key-value row of a token: RMS norm with weight, rotation of the last channels, rounding, write to row
// position % (number of rows) of its sequence.
//   x real [t, d]; weight real [d]; frequencies fp32 [dims / 2, 2]
//   fp8_round_trip  fp32 and bf16 rows: pass all channels but the rotated ones through the FP8 row format
// A ring of n rows can hold a call's t new rows and still show the window to the first: n >= window + t - 1.
struct LatentWriteArguments {
    TensorView x, weight, frequencies, positions, sequences;
    LatentRows rows;
    bool fp8_round_trip = false;
    float eps = 1e-6f;
    void* stream = nullptr;
};
void latent_write(const LatentWriteArguments& arguments);

// Plain rows (Qwen3's keys or values): rows[sequence, position % n] = x. x real [t, r, d]; rows real [s, n,
// r, d]; with a table (int32, see LatentRows) pages [pages, n, r, d] of all sequences.
struct CacheWriteArguments {
    TensorView x, positions, sequences, rows, table = {};
    void* stream = nullptr;
};
void cache_write(const CacheWriteArguments& arguments);

}  // namespace deep_gemm::op
