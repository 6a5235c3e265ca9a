// The small-batch family y[m, n] = x[m, k] * W[n, k]^T with W in any layout of spec/quant.h: what a kernel is
// (GemvSpec), what it is called with (GemvParams), where its shared memory goes (plan_smem) and when it
// cannot exist (why_illegal). Evaluated by host and kernel alike.
//
// The sum of a row is taken in an order that depends on (W's layout, k) alone: not on m, on n, on the spec's
// other fields or on what other rows hold. Row i of a batch is therefore bit-equal to the row alone.
//
// Three kernels share the spec. kernel/gemv.cuh multiplies with mma.sync, weights as its 16 rows and tokens
// as its 8 columns, so that a weight is decoded once whatever the number of tokens; kernel/gemv_resident.cuh
// takes the same sums with fewer instructions, for weights of 4 and 8 bits, which are bound by them.
// kernel/gemv_q8.cuh multiplies bytes, and adds the exact integer products of Q8_0 blocks.
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

constexpr u32 kMmaTileRows = 16;      // weights of an mma
constexpr u32 kMmaTileTokens = 8;     // tokens of an mma
constexpr u32 kGemvVisitBytes = 128;  // of each row: what a warp takes before the next warp's share
constexpr u32 kQ8VisitBlocks = 4;  // Q8_0: blocks of each row that a warp takes before the next warp's share
constexpr u32 kQ8LaneBlocks = 32;  // the same where a warp has a row to itself: one for each lane
constexpr u32 kQ8LaneVisitBytes = kQ8LaneBlocks * kQ8BlockBytes;
constexpr u32 kMaxWarpRowTokens = 2;                   // of such a warp: more of them wait for x in L1
constexpr u32 kQ8StageBytes = kQ8LaneVisitBytes + 16;  // and the bytes up to the 16-byte boundaries around

struct GemvSpec {
    Quant w = Quant::bf16;
    Activation x = Activation::bf16;
    Format y = Format::bf16;
    GemvEpilogue epilogue = GemvEpilogue::none;
    u32 tokens = 8;          // of a block: 8 or 16; of Q8_0 also, in a kernel of their own, 1 or 2
    u32 row_tiles = 1;       // tiles of 16 rows (that kernel: rows of a warp), which share the loads of x
    u32 stages = 4;          // visits of a warp on their way to shared memory, where rows are vectors
    u32 groups = 2;          // of eight warps in a block of threads; each takes tiles of its own
    bool vector = true;      // rows of w and x start at multiples of 16 bytes
    u32 row_alignment = 16;  // of Q8_0: rows start at multiples of 16, 4 or 2 bytes; of shifted scales: 2
    bool resident = false;   // x lies in shared memory, and scales come through the ring (gemv_resident.cuh)
    bool bulk = false;       // Q8_0: warps of their own bring whole rows' visits (gemv_q8_bulk.h)
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
    auto& [w, x, y, epilogue, tokens, row_tiles, stages, groups, vector, row_alignment, resident, bulk,
           dependent_launch, native_fp8] = s;
    visit("w", w);
    visit("x", x);
    visit("y", y);
    visit("epilogue", epilogue);
    visit("tokens", tokens);
    visit("row_tiles", row_tiles);
    visit("stages", stages);
    visit("groups", groups);
    visit("vector", vector);
    visit("row_alignment", row_alignment);
    visit("resident", resident);
    visit("bulk", bulk);
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

// How rows become tiles: the first `whole_tiles` have block_rows_of, the others `rest_rows` each (the last what
// is left).
struct GemvDeal {
    u32 whole_tiles, rest_rows;
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
    GemvDeal deal;         // of the rows of the one matrix; where a spec may not deal evenly, unused
};

// For tests and tuning: fields of the spec that are not 0 stand for what a plan would choose.
struct GemvTuning {
    u32 row_tiles = 0, stages = 0, groups = 0;
    u32 grid_x = 0;
    u32 form = 0;  // 1: x read from memory, 2: resident, 3: Q8_0 by bulk copies
};

constexpr bool is_q8(const GemvSpec& s) {
    return s.x == Activation::q8;
}
// Few tokens of Q8_0: a warp has a row to itself (kernel/gemv_q8_rows.cuh).
constexpr bool has_warp_rows(const GemvSpec& s) {
    return is_q8(s) && s.tokens <= kMaxWarpRowTokens;
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
// Rows of W that a group takes at once.
constexpr u32 block_rows_of(const GemvSpec& s) {
    const u32 rows = has_warp_rows(s) ? kGemvWarps : kMmaTileRows;
    return rows * (s.epilogue == GemvEpilogue::swiglu ? 1 : s.row_tiles);
}
// Whether the last tiles of all groups may be equally short. A short tile takes the instructions of a whole
// one, which wide weights do not wait for.
constexpr bool may_deal_evenly(const GemvSpec& s) {
    return row_bits_of(s) == 16 && !s.resident && s.epilogue == GemvEpilogue::none;
}
constexpr GemvDeal deal_of(const GemvSpec& s, u32 n, u32 num_matrices, u32 grid_x) {
    const u32 rows = block_rows_of(s);
    if (!may_deal_evenly(s) || num_matrices != 1 || grid_x == 0) return {0, rows};
    const u32 groups = grid_x * s.groups, whole = n / (groups * rows) * groups;
    const u32 rest = ceil_div(n - whole * rows, groups);
    return {whole, rest == 0 ? rows : rest};
}
// Bytes between the rows of a stage of Q8_0: room for four blocks and the 16-byte vectors around them. Four
// lanes read 16 bytes of a row, and those of eight rows are in different banks.
constexpr u32 q8_pitch_of(const GemvSpec& s) {
    return s.w == Quant::q8_0 ? 176 : 144;
}
// The row_alignment of rows at multiples of `unit`.
constexpr u32 q8_row_alignment(u64 unit) {
    return unit % 16 == 0 ? 16 : unit % 4 == 0 ? 4 : 2;
}
// Whether bulk copies, which take whole 16 bytes, may bring the rows that lie at [first, end): what they read around
// a row is inside. (Bytes and scales apart would be two copies a row, which took longer than none.)
constexpr bool has_bulk_rows(Quant w, u64 first, u64 end) {
    return w == Quant::q8_0 && first % 16 == 0 && end % 16 == 0;
}
// The resident kernel: bytes of a row's scales of a visit, and in how many pieces they are copied, each a
// vector of 4, 8 or 16 bytes that is aligned in memory. Two pieces leave rows of half a visit more aligned.
constexpr u32 visit_scale_bytes_of(const GemvSpec& s) {
    const QuantRow row = row_of(s.w);
    return row.block_k ? visit_k_of(s) / row.block_k * bytes_of(row.scale) : 0;
}
// INT4 with a scale for 128 and an odd number of them in a row: every other row of scales starts between
// words, and a visit's are copied with the words around them.
constexpr bool has_shifted_scales(const GemvSpec& s) {
    return s.resident && s.w == Quant::int4_128 && s.row_alignment == 2;
}
constexpr u32 stage_scale_bytes_of(const GemvSpec& s) {
    return visit_scale_bytes_of(s) + (has_shifted_scales(s) ? 4 : 0);
}
constexpr u32 scale_pieces_of(const GemvSpec& s) {
    return stage_scale_bytes_of(s) >= 8 ? 2 : 1;
}
// Zero points of a row and a visit, and the bytes of the piece that they are copied in: two visits may share
// one.
constexpr u32 visit_zeros_of(const GemvSpec& s) {
    return row_of(s.w).has_zero ? visit_k_of(s) / row_of(s.w).block_k : 0;
}
constexpr u32 zero_piece_bytes_of(const GemvSpec& s) {
    const u32 zeros = visit_zeros_of(s);
    return zeros == 0 || zeros >= 4 ? zeros : 4;
}
// What rows of scales and zero points of k elements at these addresses are to the resident kernel: 16, such
// pieces; 2, shifted ones; 0, neither.
constexpr u32 scale_alignment_of(Quant w, u64 k, u64 scales, u64 zeros) {
    const GemvSpec s{.w = w};
    const u64 columns = scale_columns_of(w, k);
    const auto aligned = [](u64 row_bytes, u64 address, u64 piece) {
        return piece == 0 || (row_bytes % piece == 0 && address % piece == 0);
    };
    const u64 piece = visit_scale_bytes_of(s) / scale_pieces_of(s);
    if (aligned(columns * bytes_of(row_of(w).scale), scales, piece) &&
        aligned(columns, zeros, zero_piece_bytes_of(s)))
        return 16;
    return w == Quant::int4_128 && scales % piece == 0 ? 2 : 0;
}
// Whether a kernel of mma.sync has a resident form: rows must be aligned.
constexpr bool may_be_resident(const GemvSpec& s) {
    return !has_warp_rows(s) && s.vector;
}
// Bytes of a warp's stage: a visit of every row of the block, in whole lines, within which bytes are
// swizzled.
constexpr u32 stage_bytes_of(const GemvSpec& s) {
    const u32 of_row = is_q8(s)     ? q8_pitch_of(s)
                       : s.resident ? kGemvVisitBytes + stage_scale_bytes_of(s) + zero_piece_bytes_of(s)
                                    : kGemvVisitBytes;
    const u32 bytes = kMmaTileRows * s.row_tiles * of_row;
    return !s.vector ? 0 : is_q8(s) ? bytes : align_up(bytes, kGemvVisitBytes);
}
// The same of the resident kernel, which needs fewer.
constexpr u32 resident_groups_of(const GemvSpec& s) {
    const u32 promote_k = promote_k_of(s), width = s.row_tiles * s.tokens;
    const bool heavy = promote_k != 0 && (promote_k < 128 || row_of(s.w).has_zero);
    return width == 32 || (s.row_tiles == 2 && heavy) ? 1 : 2;
}
// Groups that the registers of a kernel that may not spill leave room for. An SM holds one block of them, so
// that tiles are dealt to SMs evenly wherever blocks are placed.
constexpr u32 max_groups_of(const GemvSpec& s) {
    if (has_warp_rows(s)) return 1;
    if (is_q8(s)) return 3 - s.row_tiles;
    if (s.resident) return resident_groups_of(s);
    const u32 promote_k = promote_k_of(s);
    const bool heavy = promote_k != 0 && promote_k < 128;
    const u32 width = s.row_tiles * s.tokens;
    const bool plain = promote_k == 0 && row_bits_of(s) >= 8;
    if (width > 16 || (heavy && (width == 16 || row_of(s.w).has_zero))) return 1;
    if (width == 8) return plain ? 3 : 2;
    const bool second_sums =
        row_bits_of(s) == 4 && (s.tokens == 16 || (promote_k != 0 && block_k_of(s.x) != 0));
    return second_sums || (s.epilogue == GemvEpilogue::swiglu && !plain) ? 1 : 2;
}
// Warps that bring weights for a group by bulk copies: one alone gives them too slowly, each after the one before.
constexpr u32 kQ8Writers = 2;
constexpr u32 threads_of(const GemvSpec& s) {
    return s.groups * (kGemvThreads + (s.bulk ? kQ8Writers * 32 : 0));
}

// Visits of all warps of a row of Q8_0, side by side in a stage: 32 blocks. Rows are that and 16 bytes apart,
// so that lanes of eight rows read other banks.
constexpr u32 kQ8BulkBlocks = kGemvWarps * kQ8VisitBlocks;
constexpr u32 kQ8BulkPitch = kQ8BulkBlocks * kQ8BlockBytes + 16;
// Bytes of a group's ring.
constexpr u32 ring_bytes_of(const GemvSpec& s) {
    return s.stages * (s.bulk ? kMmaTileRows * s.row_tiles * kQ8BulkPitch : kGemvWarps * stage_bytes_of(s));
}
// Of a group: two mbarriers for each of two places for sums, and for each stage that bulk copies fill.
constexpr u32 barrier_bytes_of(const GemvSpec& s) {
    return 32 + (s.bulk ? s.stages * 16 : 0);
}

// Places for the sums of a group's warps, which take turns; one where the tokens leave no room for another.
constexpr u32 partial_places_of(const GemvSpec& s) {
    return s.resident && s.tokens == 16 && s.dependent_launch ? 1 : 2;
}

struct GemvSmemPlan {
    u32 partial_bytes;  // a place, behind the rings of all groups
    u32 barriers;       // offset of the groups' mbarriers
    u32 bytes;
};

constexpr GemvSmemPlan plan_smem(const GemvSpec& s) {
    if (has_warp_rows(s)) {
        const bool ring = s.vector && s.w == Quant::q8_0;
        return {0, 0, ring ? kGemvWarps * s.row_tiles * s.stages * kQ8StageBytes : 0};
    }
    const u32 tiles = s.row_tiles * (is_q8(s) ? kQ8VisitBlocks : 1);  // of sums of a warp
    const u32 partial = kGemvWarps * tiles * kMmaTileRows * s.tokens * 4;
    const u32 barriers = s.groups * (ring_bytes_of(s) + partial_places_of(s) * partial);
    return {partial, barriers, barriers + s.groups * barrier_bytes_of(s)};
}

// The resident kernel keeps the tokens of a block behind the barriers: pairs as mma.sync takes them, each
// token a pitch from the one before, then their scales, [block of K][token].
constexpr u32 x_pitch_of(const GemvSpec& s, u32 k) {
    if (is_q8(s)) return align_up(k, 128) + 16;  // bytes as they are; read as the rows of a stage
    constexpr u32 kOutOfBanks = 64;  // four lanes read 64 bytes; the next token's are in the other banks
    return align_up(k, visit_k_of(s)) * 2 + kOutOfBanks;
}
constexpr u32 x_scale_bytes_of(const GemvSpec& s, u32 k) {
    const u32 block = block_k_of(s.x);
    return block ? align_up(k, is_q8(s) ? block : visit_k_of(s)) / block * s.tokens * 4 : 0;
}
// Dynamic shared memory of a launch for rows of k elements and `tokens` tokens in a block.
constexpr u64 smem_bytes_of(const GemvSpec& s, u32 k, u32 tokens) {
    const u64 x = s.resident ? u64{tokens} * x_pitch_of(s, k) + x_scale_bytes_of(s, k) : 0;
    return plan_smem(s).bytes + x;
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
    if (s.tokens != 8 && s.tokens != 16 && !(has_warp_rows(s) && s.tokens >= 1))
        return "a block has 8 or 16 tokens, and of Q8_0 also 1 or 2";
    if (s.row_alignment != 16 && !has_shifted_scales(s) &&
        (s.w != Quant::q8_0 || (s.row_alignment != 4 && s.row_alignment != 2)))
        return "rows start at multiples of 16 bytes, and of Q8_0 also of 4 or 2";
    if (s.bulk && (s.w != Quant::q8_0 || has_warp_rows(s) || !s.resident || !s.dependent_launch))
        return "bulk copies are for Q8_0 in the resident form, on sm_90 and newer";
    if (s.resident && !may_be_resident(s)) return "the resident form is for aligned rows";
    if (s.stages < 2 || s.groups == 0) return "at least 2 stages and a group";
    if (s.groups > max_groups_of(s)) return "as many groups as have registers";
    return nullptr;
}

}  // namespace deep_gemm
