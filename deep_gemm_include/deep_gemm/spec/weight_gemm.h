// The large-batch form of y[m, n] = x[m, k] * W[n, k]^T with bf16 x and W in the 8- and 4-bit layouts of
// spec/quant.h, or with both of one type, bf16, fp16 or signed bytes: what a kernel is (WeightGemmSpec), what
// it is called with (WeightGemmParams), where its shared memory goes (plan_smem) and when it cannot exist
// (why_illegal). Evaluated by host and kernel alike.
//
// Weights are the 64-row side of wgmma, read as they are stored and decoded exactly to bf16 in registers;
// tokens are the other side. Weights of the tokens' type need no decoding. The sum of a row is taken in an
// order that depends on (W's layout, k) alone. Bytes times bytes are summed as integers, exactly.
#pragma once

#include <deep_gemm/spec/gemm.h>
#include <deep_gemm/spec/gemv.h>

namespace deep_gemm {

constexpr u32 kWeightTileBytes = 128;  // of each row of W in a stage: one swizzle atom
constexpr u32 kMaxInt8K = 131071;      // products of -128 and -128 that an int32 holds
constexpr u32 kTokenTileK = 64;        // elements of each token in a stage: one swizzle atom of bf16

struct WeightGemmSpec {
    Quant w = Quant::fp8_128x128;
    Activation x = Activation::bf16;  // or fp16 and int8_row, beside weights of these types
    Format y = Format::bf16;
    GemvEpilogue epilogue = GemvEpilogue::none;
    u32 block_m = 256;      // tokens of a block
    u32 warpgroups = 2;     // 64 rows of W each
    u32 cluster = 1;        // CTAs side by side along n that share the loads of their tokens: 1 or 2
    u32 token_stages = 5;   // of kTokenTileK
    u32 weight_stages = 3;  // of kWeightTileBytes
    u32 ctas_per_sm = 1;
    bool whole_scales = true;  // the scales of a stage are one aligned vector, and k ends with a stage

    friend constexpr bool operator==(const WeightGemmSpec&, const WeightGemmSpec&) = default;
};

template <typename Visitor, typename Spec>
requires requires(Spec& s) {
    s.weight_stages;
}
constexpr void visit_fields(Visitor&& visit, Spec& s) {
    auto& [w, x, y, epilogue, block_m, warpgroups, cluster, token_stages, weight_stages, ctas_per_sm,
           whole_scales] = s;
    visit("w", w);
    visit("x", x);
    visit("y", y);
    visit("epilogue", epilogue);
    visit("block_m", block_m);
    visit("warpgroups", warpgroups);
    visit("cluster", cluster);
    visit("token_stages", token_stages);
    visit("weight_stages", weight_stages);
    visit("ctas_per_sm", ctas_per_sm);
    visit("whole_scales", whole_scales);
}

// What stands beside the elements of a matrix.
struct WeightMatrix {
    const void* scales;  // [ceil(n / block_rows), scale columns]
    const u8* zeros;     // as scales, a byte each
    float global_scale;
};

struct WeightGemmParams {
    TensorMap w[2];          // bytes [1, n, row_bytes], box [1, matrix_rows_of, 128 bytes]; swiglu has both
    TensorMap x;             // [1, m, k], box [1, block_m / cluster, 128 bytes]
    WeightMatrix matrix[2];  // as w
    const float* x_scale;    // int8 x: [m], x_scale_stride elements apart
    void* y;                 // [m, n]
    const void* bias;        // [n] or null, in y's format
    const void* residual;    // [m, n] or null, in y's format; may be y
    u64 x_scale_stride, y_stride, residual_stride;  // in elements
    u32 m, n, k;
    float swiglu_limit;  // as GemvParams'
    u32 vector_y;        // rows of y start at multiples of 16 bytes
};

// Rows that a block has in shared memory, and those of each matrix. With swiglu half of them are the gate's.
constexpr u32 block_rows_of(const WeightGemmSpec& s) {
    return s.warpgroups * kMmaRows;
}
constexpr u32 num_matrices_of(const WeightGemmSpec& s) {
    return s.epilogue == GemvEpilogue::swiglu ? 2 : 1;
}
constexpr u32 matrix_rows_of(const WeightGemmSpec& s) {
    return block_rows_of(s) / num_matrices_of(s);
}
constexpr u32 threads_of(const WeightGemmSpec& s) {
    return (s.warpgroups + 1) * kWarpgroup;
}
// Elements of K in a stage of weights, and stages of tokens beside it.
constexpr u32 weight_stage_k_of(Quant w) {
    return kWeightTileBytes * 8 / row_of(w).element_bits;
}
constexpr u32 token_tile_k_of(const WeightGemmSpec& s) {
    return kBlockKBytes / bytes_of(element_of(s.x));
}
constexpr u32 token_tiles_of(const WeightGemmSpec& s) {
    return weight_stage_k_of(s.w) / token_tile_k_of(s);
}
// Whether both operands are multiplied as they are stored (kernel/sm90_stored_gemm.cuh).
constexpr bool multiplies_stored(const WeightGemmSpec& s) {
    return s.x == Activation::int8_row || row_of(s.w).element_bits == 16;
}
// E2M1 times its block scale is exact in bf16, and the one scale of a row comes last. Other block scales
// would need more bits than bf16 has: the sum itself is kept in units of the current block's scale, and
// multiplied by old / new unit where a block begins.
constexpr bool changes_units(Quant w) {
    return row_of(w).element != Format::fp4_e2m1 && row_of(w).block_k != 0;
}
// Steps of 16 along K that are started together: a unit or a stage of tokens.
constexpr u32 steps_of_run(Quant w) {
    return changes_units(w) && row_of(w).block_k < kTokenTileK ? row_of(w).block_k / 16 : kTokenTileK / 16;
}

// In how many parts tokens are multiplied.
constexpr u32 weight_parts_of(const WeightGemmSpec& s) {
    return changes_units(s.w) && s.block_m >= 128 ? 2 : 1;
}

constexpr u32 weight_accumulators_of(const WeightGemmSpec& s) {
    return s.block_m / 2;
}
// Decoded and stored weights (two runs, one stage), scales of two stages, addresses.
constexpr u32 weight_other_registers_of(const WeightGemmSpec& s) {
    if (multiplies_stored(s)) return 64;
    const QuantRow row = row_of(s.w);
    const u32 scale_bytes = row.block_k ? weight_stage_k_of(s.w) / row.block_k * bytes_of(row.scale) : 0;
    const u32 zero_bytes = row.has_zero ? weight_stage_k_of(s.w) / row.block_k : 0;
    const u32 rows = row.block_rows == 1 ? 2 : 1;
    return 8 * steps_of_run(s.w) + 16 + 2 * rows * (ceil_div(scale_bytes, 4u) + ceil_div(zero_bytes, 4u)) +
           36;
}
constexpr u32 kWeightLoaderRegisters = 40;
constexpr u32 launch_registers_of(const WeightGemmSpec& s) {
    const u32 registers = 65536 / (threads_of(s) * s.ctas_per_sm) / 8 * 8;
    return registers < 248 ? registers : 248;
}
constexpr u32 math_registers_of(const WeightGemmSpec& s) {
    const u32 pool = launch_registers_of(s) * (s.warpgroups + 1);
    const u32 share = (pool - kWeightLoaderRegisters) / s.warpgroups / 8 * 8;
    return share < 240 ? share : 240;
}
// A compiler that may not spill wants more than its kernel needs.
constexpr u32 kSpareRegisters = 24;
constexpr bool moves_registers(const WeightGemmSpec& s) {
    return s.warpgroups > 1 && s.ctas_per_sm == 1 &&
           weight_accumulators_of(s) + weight_other_registers_of(s) + kSpareRegisters >
               launch_registers_of(s);
}

// Tokens whose results a warp stages before it writes them: 32 bytes (16 rows of W) each.
constexpr u32 kStagedTokens = 32;
constexpr u32 kStagedBytes = kStagedTokens * 32;

struct WeightGemmSmemPlan {
    u32 weights, tokens;  // stage 0
    u32 weight_stage_bytes, token_stage_bytes;
    u32 staging;  // kStagedBytes of each math warp
    u32 weights_full, weights_empty, tokens_full, tokens_empty;
    u32 bytes;
};

constexpr WeightGemmSmemPlan plan_smem(const WeightGemmSpec& s) {
    WeightGemmSmemPlan p{};
    p.weight_stage_bytes = block_rows_of(s) * kWeightTileBytes;
    p.token_stage_bytes = s.block_m * kBlockKBytes;
    u32 offset = 0;
    const auto take = [&offset](u32 bytes, u32 alignment) {
        offset = align_up(offset, alignment);
        const u32 start = offset;
        offset += bytes;
        return start;
    };
    p.weights = take(s.weight_stages * p.weight_stage_bytes, 1024);
    p.tokens = take(s.token_stages * p.token_stage_bytes, 1024);
    p.staging = take(s.warpgroups * 4 * kStagedBytes, 128);
    p.weights_full = take(s.weight_stages * 8, 8);
    p.weights_empty = take(s.weight_stages * 8, 8);
    p.tokens_full = take(s.token_stages * 8, 8);
    p.tokens_empty = take(s.token_stages * 8, 8);
    p.bytes = offset;
    return p;
}
constexpr u32 max_smem_bytes_of(const WeightGemmSpec& s) {
    return s.ctas_per_sm == 1 ? kMaxSmemBytes : kMaxSmemBytesOfTwo;
}

// nullptr, or why this form does not serve such weights.
constexpr const char* why_no_weight_gemm(Quant w, Activation x) {
    if (w == Quant::q8_0 || w == Quant::q8_0_split) return "Q8_0 is multiplied as integers";
    if (block_k_of(x) != 0) return "tokens must be bf16, or fp16 or int8 beside weights of that type";
    return nullptr;
}

// nullptr, or one sentence. The plan and the kernel's static_assert both ask here.
constexpr const char* why_illegal(const WeightGemmSpec& s) {
    if (const char* reason = why_no_product(s.w, s.x)) return reason;
    if (const char* reason = why_no_weight_gemm(s.w, s.x)) return reason;
    if (s.y != Format::bf16 && s.y != Format::fp16 && s.y != Format::fp32)
        return "the output must be bf16, fp16 or fp32";
    const u32 m = s.block_m;
    if (m != 16 && m != 32 && m != 64 && m != 96 && m != 128 && m != 192 && m != 256)
        return "a block has 16, 32, 64, 96, 128, 192 or 256 tokens";
    if (s.warpgroups != 1 && s.warpgroups != 2) return "1 or 2 warpgroups";
    if (s.epilogue == GemvEpilogue::swiglu && s.warpgroups != 2)
        return "swiglu needs two warpgroups: one of the gate, one of the other matrix";
    if (s.cluster != 1 && s.cluster != 2) return "1 or 2 CTAs share their tokens";
    if (s.ctas_per_sm != 1 && s.ctas_per_sm != 2) return "an SM holds 1 or 2 CTAs";
    if (s.weight_stages < 2 || s.weight_stages > 16) return "2 to 16 stages of weights";
    // A stage of tokens is multiplied while the one before it is still held.
    if (s.token_stages < 2 || s.token_stages > 32) return "2 to 32 stages of tokens";
    if (weight_accumulators_of(s) + weight_other_registers_of(s) >
        (moves_registers(s) ? math_registers_of(s) : launch_registers_of(s)))
        return "accumulators do not fit the register file";
    if (plan_smem(s).bytes > max_smem_bytes_of(s)) return "stages do not fit shared memory";
    return nullptr;
}

}  // namespace deep_gemm
