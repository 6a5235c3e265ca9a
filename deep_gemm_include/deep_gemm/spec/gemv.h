// The small-batch family y[m, n] = x[m, k] * W[n, k]^T with W in any layout of spec/quant.h: what a kernel is
// (GemvSpec), what it is called with (GemvParams), where its shared memory goes (plan_smem) and when it
// cannot exist (why_illegal). Evaluated by host and kernel alike.
//
// The sum of a row is taken in an order that depends on (W's layout, k) alone: not on m, on n, on the spec's
// other fields or on what other rows hold. Row i of a batch is therefore bit-equal to the row alone.
//
// Two kernels share the spec. kernel/gemv.cuh multiplies with mma.sync, weights as its 16 rows and tokens as
// its 8 columns, so that a weight is decoded once whatever the number of tokens. kernel/gemv_q8.cuh adds
// exact integer products of Q8_0 blocks.
#pragma once

#include <deep_gemm/spec/quant.h>

namespace deep_gemm {

enum class GemvEpilogue : u8 {
    none,
    swiglu,  // y = silu(x W0^T) * (x W1^T), of two matrices of the same layout and shape
};

constexpr u32 kGemvWarps = 8;
constexpr u32 kGemvThreads = kGemvWarps * 32;
constexpr u32 kMaxGemvMatrices = 4;  // that share one launch and its activations
constexpr u32 kMaxGemvTokens = 16;   // of one block; more tokens are more blocks along y

constexpr u32 kMmaTileRows = 16;          // weights of an mma
constexpr u32 kMmaTileTokens = 8;         // tokens of an mma
constexpr u32 kGemvVisitBytes = 128;      // of each row: what a warp takes before the next warp's share
constexpr u32 kGemvPrefetchBytes = 2048;  // of each row: what a block asks L2 for before it may read x
constexpr u32 kQ8VisitBlocks = 32;        // blocks of a row that a warp takes at once, one a lane
constexpr u32 kQ8Stages = 3;              // visits on their way to a warp
constexpr u32 kQ8VisitBytes = kQ8VisitBlocks * kQ8BlockBytes;
constexpr u32 kQ8StageBytes = kQ8VisitBytes + 16;  // and the bytes up to the 16-byte boundaries around

struct GemvSpec {
    Quant w = Quant::bf16;
    Activation x = Activation::bf16;
    Format y = Format::bf16;
    GemvEpilogue epilogue = GemvEpilogue::none;
    u32 tokens = 8;      // of a block: 8 or 16; for Q8_0: 1, 2, 3, 4 or 8
    u32 row_tiles = 1;   // 16-row tiles of a block, which share the loads of x; for Q8_0: rows of a warp
    u32 stages = 4;      // visits of a warp on their way to shared memory, where rows are vectors
    u32 ctas = 2;        // blocks of threads that an SM holds
    bool vector = true;  // rows of w and x start at multiples of 16 bytes
    bool dependent_launch = true;  // the architecture has programmatic dependent launch

    bool native_fp8 = true;  // the architecture converts E4M3 (sm_89 and newer)

    friend constexpr bool operator==(const GemvSpec&, const GemvSpec&) = default;
};

// Every field once, by name: source text, log line, JSON and cache key are made of it.
template <typename Visitor, typename Spec>
requires requires(Spec& s) {
    s.row_tiles;
}
constexpr void visit_fields(Visitor&& visit, Spec& s) {
    auto& [w, x, y, epilogue, tokens, row_tiles, stages, ctas, vector, dependent_launch, native_fp8] = s;
    visit("w", w);
    visit("x", x);
    visit("y", y);
    visit("epilogue", epilogue);
    visit("tokens", tokens);
    visit("row_tiles", row_tiles);
    visit("stages", stages);
    visit("ctas", ctas);
    visit("vector", vector);
    visit("dependent_launch", dependent_launch);
    visit("native_fp8", native_fp8);
}

constexpr const char* name_of(GemvEpilogue epilogue) {
    return epilogue == GemvEpilogue::swiglu ? "swiglu" : "none";
}

struct GemvMatrix {
    const u8* data;                             // rows of row_bytes, row_stride bytes apart
    const void* scales;                         // [ceil(n / block_rows), scale columns]
    const u8* zeros;                            // as scales, a byte each
    void* y;                                    // [m, n]
    const void* bias;                           // [n] or null, in y's format
    const void* residual;                       // [m, n] or null, in y's format; may be y
    u64 row_stride, y_stride, residual_stride;  // y_stride and residual_stride in elements
    u32 n;
    float global_scale;
};

struct GemvParams {
    GemvMatrix w[kMaxGemvMatrices];
    const u8* x;           // [m, k], x_stride bytes apart
    const float* x_scale;  // [m, ceil(k / block)], x_scale_stride elements apart
    u64 x_stride, x_scale_stride;
    u32 num_matrices;
    u32 m, k;
    u32 tokens_per_block;  // at most the spec's tokens; 1: every row alone
    float swiglu_limit;    // 0: none; else gate <= limit and |up| <= limit before they are multiplied
};

// For tests and tuning: fields of the spec that are not 0 stand for what a plan would choose.
struct GemvTuning {
    u32 row_tiles = 0, stages = 0, ctas = 0;
    u32 grid_x = 0;
};

constexpr bool is_q8(const GemvSpec& s) {
    return s.x == Activation::q8;
}
// Whether both operands are multiplied as f16; else as bf16, whose range holds every decoded weight and
// token.
constexpr bool multiplies_f16(const GemvSpec& s) {
    return s.w == Quant::fp16 ||
           (row_of(s.w).element == Format::fp8_e4m3 && element_of(s.x) == Format::fp8_e4m3);
}
constexpr u32 row_bits_of(const GemvSpec& s) {
    return row_of(s.w).element_bits;
}
// Bytes of a row that a lane loads at once. Four lanes share a row: with a scale for 32 elements of 8 bits,
// all four must be inside one block.
constexpr u32 lane_bytes_of(const GemvSpec& s) {
    return s.w == Quant::fp8_32 ? 8 : 16;
}
constexpr u32 lane_elements_of(const GemvSpec& s) {
    return lane_bytes_of(s) * 8 / row_bits_of(s);
}
constexpr u32 visit_k_of(const GemvSpec& s) {
    return kGemvVisitBytes * 8 / row_bits_of(s);
}
constexpr u32 steps_of_visit(const GemvSpec& s) {
    return kGemvVisitBytes / (4 * lane_bytes_of(s));
}
// Elements of K after which a partial sum is scaled and added to the row's; 0: the row has one scale, or its
// scales are part of the decoded weights (E2M1 times a scale of a few bits is exact in bf16).
constexpr u32 promote_k_of(const GemvSpec& s) {
    const QuantRow row = row_of(s.w);
    const u32 of_w = row.element == Format::fp4_e2m1 ? 0 : row.block_k;
    const u32 of_x = block_k_of(s.x);
    if (of_w == 0 || of_x == 0) return of_w + of_x;
    return of_w < of_x ? of_w : of_x;
}
// Rows of W in a block of threads.
constexpr u32 block_rows_of(const GemvSpec& s) {
    if (is_q8(s)) return kGemvWarps * (s.epilogue == GemvEpilogue::swiglu ? 1 : s.row_tiles);
    return kMmaTileRows * (s.epilogue == GemvEpilogue::swiglu ? 1 : s.row_tiles);
}
// Bytes of a warp's stage: a visit of every row of the block.
constexpr u32 stage_bytes_of(const GemvSpec& s) {
    return s.vector ? kMmaTileRows * s.row_tiles * kGemvVisitBytes : 0;
}
// Blocks an SM is asked to hold: the spec's wish, and no more than the registers of a kernel that may not
// spill leave room for.
constexpr u32 ctas_per_sm_of(const GemvSpec& s) {
    if (is_q8(s)) return s.tokens * s.row_tiles > 8 ? 2 : 4;
    const u32 promote_k = promote_k_of(s);
    const bool heavy = promote_k != 0 && promote_k < 128;
    const u32 width = s.row_tiles * s.tokens;
    const bool light = promote_k == 0 && width == 8 && row_bits_of(s) >= 8;
    const u32 most = width > 16 || (heavy && (width == 16 || row_of(s.w).has_zero)) ? 1 : light ? 3 : 2;
    return s.ctas < most ? s.ctas : most;
}

struct GemvSmemPlan {
    u32 partial_bytes;  // sums of the warps; they follow the rings, twice
    u32 bytes;
};

constexpr GemvSmemPlan plan_smem(const GemvSpec& s) {
    if (is_q8(s))
        return {0, s.vector && s.w == Quant::q8_0 ? kGemvWarps * s.row_tiles * kQ8Stages * kQ8StageBytes : 0};
    const u32 partial = kGemvWarps * kMmaTileRows * s.row_tiles * s.tokens * 4;
    return {partial, kGemvWarps * s.stages * stage_bytes_of(s) + 2 * partial};
}

// nullptr, or one sentence. The plan and the kernel's static_assert both ask here.
constexpr const char* why_illegal(const GemvSpec& s) {
    if (const char* reason = why_no_product(s.w, s.x)) return reason;
    if (s.x == Activation::int8_row) return "int8 activations are for the large-batch form";
    if (s.y != Format::bf16 && s.y != Format::fp16 && s.y != Format::fp32)
        return "the output must be bf16, fp16 or fp32";
    if (s.row_tiles != 1 && s.row_tiles != 2) return "1 or 2 tiles of rows";
    if (s.epilogue == GemvEpilogue::swiglu && s.row_tiles != 2)
        return "swiglu needs two tiles: one of the gate, one of the other matrix";
    if (is_q8(s)) {
        const bool known = (s.tokens >= 1 && s.tokens <= 4) || s.tokens == 8;
        return known ? nullptr : "a Q8_0 block has 1, 2, 3, 4 or 8 tokens";
    }
    if (s.tokens != 8 && s.tokens != 16) return "a block has 8 or 16 tokens";
    if (s.stages < 2 || s.ctas == 0) return "at least 2 stages and a block for an SM";
    return nullptr;
}

}  // namespace deep_gemm
