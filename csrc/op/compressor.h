// The compressor: softmax pools over windows of tokens. The rules of op/model_ops.h hold.
#pragma once

#include "op/cache_rows.h"

namespace deep_gemm::op {

// Pushes tokens, in order of rows, into the running softmax pool of their sequence (positions are consecutive
// where a state of one sequence gets two windows or more); the token that closes
// window w (position w ratio + ratio - 1) writes row w: pooled, RMS norm, rotated at position w ratio,
// rounded.
//   kv, gate   fp32 [t, c dim]: projections of the normed input; c = 2 with `overlap` else 1; dim 128 or 512
//   ape        fp32 [ratio, c dim]; weight real [dim]; frequencies fp32 [dims / 2, 2]
//   state      fp32 [s, 3 or (overlap) 9, dim]: (max, sum, weighted sum) of the open window; with overlap: of
//              the closed window's first half, the open window's first half, its second half. It starts
//              itself at position 0 whatever it held, with zeros for a window that is not there.
//   journal    fp32 [t, 3 or 9, dim] or absent: the state after each row, for compressor_restore
//   rows       the compressed rows; beyond their number nothing is written
//   finish     what happens to a row last: nothing; FP8 round trip of the unrotated channels (fp32 or bf16
//              rows); Hadamard transform and FP4 round trip (indexer, dim 128). FP8 rows round by
//              themselves; FP4 rows take hadamard_fp4.
struct CompressorArguments {
    TensorView kv, gate, ape, weight, frequencies, positions, sequences, state, journal;
    LatentRows rows;
    u32 ratio = 4;
    bool overlap = true;
    RowFinish finish = RowFinish::none;
    float eps = 1e-6f;
    void* stream = nullptr;
};
void compressor_update(const CompressorArguments& arguments);

// state[sequence] = journal[row]: takes back the tokens after `row` of the call that wrote the journal. row
// int32 [1]; negative: nothing. Compressed rows need no undo: rows beyond the position are invisible and will
// be rewritten.
struct CompressorRestoreArguments {
    TensorView journal, row, state;
    u32 sequence = 0;
    void* stream = nullptr;
};
void compressor_restore(const CompressorRestoreArguments& arguments);

}  // namespace deep_gemm::op
