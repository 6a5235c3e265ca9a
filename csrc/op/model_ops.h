// The operations that chain matrix products into DeepSeek-V4 and Qwen3-MoE, over plain views of device
// memory.
//
// Rules that hold for all of them
// - `t` is the number of rows (tokens) of a call. It is a host value; whatever varies from step to step
//   (positions, token ids, sequence numbers, sampling parameters) is read from device memory, so a call can
//   be captured in a CUDA graph once and replayed. No call allocates, synchronises or copies to the host. A
//   kernel is compiled the first time its formats are seen: run each call once before a capture.
// - Row i of a result depends on row i of the inputs (and the caches it names) alone, bit for bit: not on
//   t, not on its neighbours, not on the number of multiprocessors. No floating-point atomics.
// - "real" means fp32 or bf16, chosen per tensor; all arithmetic is fp32. The last dimension is contiguous;
//   others may have any stride. Vectors are packed.
// - positions: int32 [t], the absolute position of a row in its sequence, from 0. A negative position marks
//   an idle row: nothing is read or written for it, except where an operation says what it writes.
// - sequences: int32 [t] or absent: which entry of a cache's first dimension a row belongs to; absent:
//   entry 0. Rows of one sequence have ascending positions. Values outside the cache make the row idle.
// - Errors: Error(value) for shapes, strides, ranges; Error(type) for formats; both with got, expected,
//   remedy, before anything is launched. t = 0 does nothing. All calls are safe to use from several threads.
// - `stream` is a CUstream; null: the default stream. The device is the tensors'.
#pragma once

#include "op/attention.h"
#include "op/attention_rows.h"
#include "op/cache_rows.h"
#include "op/compressor.h"
#include "op/embed.h"
#include "op/expert.h"
#include "op/gqa.h"
#include "op/hyper_connection.h"
#include "op/index_select.h"
#include "op/indexer.h"
#include "op/norm.h"
#include "op/project.h"
#include "op/rope.h"
#include "op/router.h"
#include "op/sample.h"
#include "op/top_k.h"
