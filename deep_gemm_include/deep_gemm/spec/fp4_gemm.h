// D[m, n] = C + A[m, k] * W[n, k]^T with FP8 activations A and packed FP4 weights W (spec/fp4_weights.h), one
// matrix or one for each expert: what a kernel is (Fp4GemmSpec), what it is called with (Fp4GemmParams),
// where its shared memory goes and when it cannot exist. Weights are the 64-row side of wgmma, decoded into
// registers; tokens are the short side. Evaluated by host and kernel alike.
//
// Two kernels share the spec. `wide = false` (kernel/sm90_fp4_gemm_swap_ab.cuh): few tokens, brought word by
// word from wherever they lie. `wide = true` (kernel/sm90_fp4_gemm_wide.cuh): up to 256 tokens an item, which
// kernel/arrange.cuh has put in order so that TMA can bring them, to all CTAs of a cluster at once. Both add
// in the same order: a row has the same bits whichever computes it.
#pragma once

#include <deep_gemm/spec/gemm.h>
#include <deep_gemm/spec/nvfp4_weights.h>

namespace deep_gemm {

struct Fp4GemmSpec {
    Fp4Form form = Fp4Form::mx_e4m3;
    Format a = Format::fp8_e4m3;  // of what is multiplied; bf16 has no scales, and weights become bf16
    bool split = false;           // some blocks of weights have several runs
    Format d = Format::bf16;
    GroupMode groups = GroupMode::dense;
    bool accumulate = false;  // add C
    bool per_token = false;   // A has one scale for each token: it comes in with the output
    bool by_32 = false;       // A has a scale for each 32 along K, not for each 128: see fp4_groups_of()
    u32 token_terms = 1;      // 2: a bf16 token is the sum of two rows of E4M3, see spec/two_terms.h
    bool queue = false;       // CTAs take work from a counter in memory, not in fixed turns
    u32 block_m = 8;          // most tokens of a work item; fewer cost less
    u32 warpgroups = 1;       // that decode and multiply, 64 rows of weights each
    u32 k_blocks = 2;         // blobs of 128 along K in a stage
    u32 stages = 4;
    u32 load_warps = 1;              // that bring activations
    u32 ctas_per_sm = 1;             // that registers and shared memory must leave room for
    bool copies_only = false;        // a ruler for benchmarks: the same copies, no product; D becomes zeros
    bool wide = false;               // the kernel for many tokens
    u32 cluster = 1;                 // wide: CTAs with neighbouring weights that share each load of tokens
    u32 fragment_sets = 1;           // wide: 2 decode a blob while the one before it multiplies
    bool fast_accumulation = false;  // wide: all of K in the tensor core, without promotion to fp32

    friend constexpr bool operator==(const Fp4GemmSpec&, const Fp4GemmSpec&) = default;
};

template <typename Visitor, typename Spec>
requires requires(Spec& s) {
    s.load_warps;
}
constexpr void visit_fields(Visitor&& visit, Spec& s) {
    auto& [form, a, split, d, groups, accumulate, per_token, by_32, token_terms, queue, block_m, warpgroups,
           k_blocks, stages, load_warps, ctas_per_sm, copies_only, wide, cluster, fragment_sets,
           fast_accumulation] = s;
    visit("form", form);
    visit("a", a);
    visit("split", split);
    visit("d", d);
    visit("groups", groups);
    visit("accumulate", accumulate);
    visit("per_token", per_token);
    visit("by_32", by_32);
    visit("token_terms", token_terms);
    visit("queue", queue);
    visit("block_m", block_m);
    visit("warpgroups", warpgroups);
    visit("k_blocks", k_blocks);
    visit("stages", stages);
    visit("load_warps", load_warps);
    visit("ctas_per_sm", ctas_per_sm);
    visit("copies_only", copies_only);
    visit("wide", wide);
    visit("cluster", cluster);
    visit("fragment_sets", fragment_sets);
    visit("fast_accumulation", fast_accumulation);
}

// GroupMode::gathered: what a router leaves on the device. Tokens are numbered by slot; each entry owns
// `count` slots from `first`. The counters serve `queue`: zero before the first launch, zero again after
// each. Nobody on the host sees these numbers, so that each is held to what there is: entries of experts or
// first slots that do not exist are skipped, `count` ends with the slots, a row beyond A reads row 0, a row
// beyond D is not written.
struct Fp4Entry {
    i32 expert, first, count, unused;
};
struct Fp4ListHead {
    i32 num_entries;
    u32 next_unit, finished_ctas;
    i32 unused;
};

struct Fp4GemmParams {
    const u8* weights;        // blobs
    const float* row_scales;  // [runs, 64]
    const u32* runs;          // split: for each (expert, block of 64 rows), see spec/fp4_weights.h
    const u8* a;           // [a_groups, m, k] at the strides below; two terms: as spec/two_terms.h has them
    const float* scale_a;  // fp8: [a_groups, m, k / 128]; by_32: k / 32; per_token: [a_groups, m]
    const i32* group_layout;  // see GroupMode; gathered: Fp4Entry[num_groups]
    Fp4ListHead* list;        // gathered, queue
    const i32* a_rows;        // gathered: row of A for each slot; null: the slot
    const i32* d_rows;        // gathered: row of D (and C) for each slot; null: the slot
    const void* c;            // same layout as d; may be d itself
    void* d;                  // [a_groups, m, n]
    u64 a_stride_group, scale_a_stride_group, d_stride_group;  // in elements; those of a in bytes
    u32 a_stride_m, scale_a_stride_m, scale_a_stride_k, d_stride_m;
    u32 m, n, k;                 // m: rows of one a_group
    u32 num_groups;              // experts; gathered: room in the list
    u32 a_num_rows, d_num_rows;  // gathered: rows that a_rows and d_rows may name
};

// `wide`: the tokens of A and their scales as kernel/arrange.cuh leaves them (ArrangeParams).
struct Fp4WideParams {
    Fp4GemmParams gemm;
    TensorMap tokens;     // [a_groups, m, padded k], box [1, kFp4BoxRows, 128 bytes], 128-byte swizzle
    const float* scales;  // [a_groups, padded k / 128, scale_stride]; per_token: [a_groups, 1, scale_stride];
                          // bf16 tokens: none
    u32 scale_stride;
};

constexpr u32 threads_of(const Fp4GemmSpec& s) {
    return s.wide ? (s.warpgroups + 1) * kWarpgroup : s.warpgroups * kWarpgroup + 32 * (1 + s.load_warps);
}
constexpr bool has_bf16_tokens(const Fp4GemmSpec& s) {
    return s.a == Format::bf16;
}
// Sums take a token's scales in as they leave the tensor core, every 128 along K.
constexpr bool scales_in_loop(const Fp4GemmSpec& s) {
    return !s.per_token && !has_bf16_tokens(s);
}
// A blob is multiplied in two parts with fragments of their own: the two terms of its weights, or the two
// halves of its K as bf16.
constexpr bool in_two_parts(const Fp4GemmSpec& s) {
    return fp4_terms_of(s.form) == 2 || has_bf16_tokens(s);
}
// by_32: a token is four columns of wgmma, one for each 32 along K of a blob and zero beyond it, whose sums
// the token's four scales multiply. Columns are short of a wgmma's cost where tokens are few, and the words
// that never change are cleared once. Eight tokens are 32 columns: columns 8 g to 8 g + 7 are their group g.
constexpr u32 fp4_groups_of(const Fp4GemmSpec& s) {
    return s.by_32 ? 4 : 1;
}
constexpr u32 kFp4MostTokensBy32 = 32;
// Columns of wgmma that a token takes: its terms are neighbours, so that one thread has the sums of both.
constexpr u32 fp4_columns_per_token(const Fp4GemmSpec& s) {
    return fp4_groups_of(s) * s.token_terms;
}
constexpr u32 fp4_block_n_of(const Fp4GemmSpec& s) {
    return s.warpgroups * kFp4BlockRows;
}
// Columns of the wgmma that serves `tokens` of an item. Each number is a loop of its own in the kernel, so
// that large blocks have coarser ones. All are wrappers of ptx/wgmma_rs_shapes.h.
constexpr u32 fp4_columns_of(u32 tokens, u32 block_m) {
    if (block_m <= 48) return align_up(tokens, 8u);
    return tokens <= 64 ? align_up(tokens, 32u) : align_up(tokens, 16u);
}
// The same of the wide kernel, five at most. Plans choose block_m little above what experts get: three fine
// steps end there, and below them are half of it (an expert cut in two) and a quarter.
constexpr u32 kFp4BoxRows = 16;  // tokens that one TMA load brings
// Fast accumulation: of more columns, ptxas has registers for three loops whose sums stay in flight (C7512).
constexpr u32 kFp4FastFiveLoops = 160, kFp4FastMostColumns = 224;
constexpr u32 fp4_wide_columns_of(u32 tokens, u32 block_m, bool only_fine) {
    const u32 fine = align_up(tokens, kFp4BoxRows);
    if (fine + 2 * kFp4BoxRows >= block_m) return fine;
    if (only_fine) return block_m - 2 * kFp4BoxRows;
    const u32 half = align_up(block_m / 2, kFp4BoxRows), quarter = align_up(block_m / 4, kFp4BoxRows);
    return fine <= quarter ? quarter : fine <= half ? half : block_m - 2 * kFp4BoxRows;
}
// Of two terms, the tokens that those columns have room for.
constexpr u32 fp4_columns_of(const Fp4GemmSpec& s, u32 tokens) {
    const u32 columns = tokens * s.token_terms, most = s.block_m * s.token_terms;
    if (!s.wide) return fp4_columns_of(columns, most) / s.token_terms;
    const bool only_fine = s.fast_accumulation && s.block_m > kFp4FastFiveLoops;
    return fp4_wide_columns_of(columns, most, only_fine) / s.token_terms;
}
// Up to here a stage's token scales are in registers before its sums are ready; beyond there is no room.
constexpr u32 kFp4EarlyScaleColumns = 40;
// While one blob multiplies the next one is decoded; beyond this many columns the second set of fragments
// costs more registers than it hides (ptxas C7519, spills).
constexpr u32 kFp4OverlapColumns = 16;
constexpr bool overlaps(const Fp4GemmSpec& s, u32 tokens) {
    return tokens * s.token_terms <= kFp4OverlapColumns;
}
// A table in shared memory says which row of D each token of an item goes to. The wide kernel has one in more
// cases, with this bit for rows of no group and for slots that are not written.
constexpr u32 kFp4ZeroRow = 1u << 31;
constexpr bool has_row_table(const Fp4GemmSpec& s) {
    return s.groups == GroupMode::gathered ||
           (s.wide && s.groups != GroupMode::dense && s.groups != GroupMode::masked);
}
constexpr u32 kFp4ItemSlots = 4;  // work items between the warp that finds them and those that serve them

struct Fp4SmemPlan {
    // Stage 0: [k_blocks][block_m * columns of a token][128], [warpgroups][k_blocks][blob],
    // [k_blocks][groups][block_m]
    u32 tokens, weights, scales;
    u32 token_stage_bytes, weight_stage_bytes, scale_stage_bytes;
    u32 magnitudes;    // MXFP4: table of fp4_magnitudes()
    u32 full, empty;   // mbarriers of the stages
    u32 items;         // kFp4ItemSlots of 16 bytes
    u32 rows;          // kFp4ItemSlots tables, see has_row_table()
    u32 token_scales;  // per_token: kFp4ItemSlots tables of the tokens' scales
    u32 row_table_bytes, scale_table_bytes;
    u32 items_full, items_empty;  // mbarriers of the items
    u32 bytes;
};

constexpr u32 fp4_table_entries(Fp4Form form) {
    return is_nvfp4(form) ? 0 : form == Fp4Form::mx_e5m2 ? 32 : 16;
}

constexpr Fp4SmemPlan plan_smem(const Fp4GemmSpec& s) {
    Fp4SmemPlan p{};
    const u32 groups = fp4_groups_of(s);
    p.token_stage_bytes = s.k_blocks * fp4_columns_per_token(s) * s.block_m * kFp4BlockK * bytes_of(s.a);
    p.weight_stage_bytes = s.warpgroups * s.k_blocks * fp4_blob_bytes_of(s.form);
    // wide: a warp writes 32 scales at a time.
    p.scale_stage_bytes =
        !scales_in_loop(s) ? 0 : align_up(s.k_blocks * groups * s.block_m * 4, s.wide ? 128u : 4u);
    u32 offset = 0;
    const auto take = [&offset](u32 bytes, u32 alignment) {
        offset = align_up(offset, alignment);
        const u32 start = offset;
        offset += bytes;
        return start;
    };
    p.tokens = take(s.stages * p.token_stage_bytes, 1024);
    p.weights = take(s.stages * p.weight_stage_bytes, 128);
    p.scales = take(s.stages * p.scale_stage_bytes, 16);
    p.magnitudes = take(fp4_table_entries(s.form) * 8, 16);
    p.items = take(kFp4ItemSlots * 16, 16);
    p.row_table_bytes = has_row_table(s) ? s.block_m * 4 : 0;
    p.rows = take(kFp4ItemSlots * p.row_table_bytes, 16);
    p.scale_table_bytes = s.per_token ? s.block_m * 4 : 0;
    p.token_scales = take(kFp4ItemSlots * p.scale_table_bytes, 16);
    p.full = take(s.stages * 8, 8);
    p.empty = take(s.stages * 8, 8);
    p.items_full = take(kFp4ItemSlots * 8, 8);
    p.items_empty = take(kFp4ItemSlots * 8, 8);
    p.bytes = offset;
    return p;
}

constexpr u32 kSmemBytesOfSm = 233472;  // sm_90; each CTA takes 1 KiB of it besides its own
constexpr u32 max_smem_bytes_of(const Fp4GemmSpec& s) {
    const u32 share = kSmemBytesOfSm / s.ctas_per_sm - 1024;
    return share / 128 * 128;
}
// What a thread may take for that many CTAs to fit: each quarter of an SM has a quarter of the registers.
constexpr u32 registers_of(const Fp4GemmSpec& s) {
    const u32 warps = align_up(threads_of(s) / 32 * s.ctas_per_sm, 4u);
    const u32 registers = 65536 / (warps * 32) / 8 * 8;
    return registers < 255 ? registers : 255;
}
// Sums, partial sums, fragments, and what else a multiplying thread holds.
constexpr u32 registers_needed_by(const Fp4GemmSpec& s) {
    if (s.fast_accumulation) return s.block_m / 2 + 32 + 48;
    // wide: the columns are multiplied in parts, of which as many sums as half of them have are in flight.
    if (s.wide) {
        // Found by building them.
        const u32 rolling = s.token_terms == 2 ? 32 + 40 : s.per_token ? 32 + 32 : 32 + 52;
        const u32 fragments = in_two_parts(s) ? 32 + 48 : s.fragment_sets == 2 ? rolling : 16 + 20;
        const u32 others = (s.split ? 8 : 0) + (s.accumulate && has_row_table(s) ? 8 : 0);
        return s.block_m / 2 + s.block_m * s.token_terms / 4 + fragments + others;
    }
    const bool two_sets = overlaps(s, s.block_m) || in_two_parts(s);
    const u32 fragments = two_sets ? 32 : 16;
    const u32 columns = s.block_m * fp4_columns_per_token(s);
    const bool busy = is_nvfp4(s.form) || (s.by_32 && two_sets);
    // Two terms: found by building them.
    const u32 others = columns <= kFp4EarlyScaleColumns || busy ? 40 : s.token_terms == 2 ? 36 : 24;
    const u32 sums = (s.block_m + columns) / 2;
    return sums + fragments + others + (s.split ? 16 : 0);
}
// wide: setmaxnreg moves registers from the loading warpgroup, which needs few, to those that multiply.
constexpr u32 fp4_math_registers_of(const Fp4GemmSpec& s, u32 loader_registers) {
    const u32 all = registers_of(s) * (s.warpgroups + 1);
    const u32 share = (all - loader_registers) / s.warpgroups / 8 * 8;
    return share < 240 ? share : 240;
}
constexpr u32 fp4_loader_registers_of(const Fp4GemmSpec& s) {
    constexpr u32 kAmple = 56, kBare = 40;
    return registers_needed_by(s) <= fp4_math_registers_of(s, kAmple) ? kAmple : kBare;
}
constexpr u32 fp4_math_registers_of(const Fp4GemmSpec& s) {
    return fp4_math_registers_of(s, fp4_loader_registers_of(s));
}

constexpr const char* why_illegal_wide(const Fp4GemmSpec& s) {
    const u32 columns = s.block_m * s.token_terms;
    if (columns % kFp4BoxRows != 0 || columns < 32 || columns > 256)
        return s.token_terms == 1 ? "block_m of the wide kernel is 32 to 256 in steps of 16"
                                  : "block_m of the wide kernel is 16 to 128 in steps of 8 with two terms";
    if (s.warpgroups < 2 || s.warpgroups > 4 || s.ctas_per_sm != 1)
        return "the wide kernel has 2 to 4 warpgroups and an SM of its own";
    if (s.k_blocks != 1 || s.load_warps != 1)
        return "a stage of the wide kernel is one blob, brought by one warp";
    if (s.cluster != 1 && s.cluster != 2 && s.cluster != 4) return "clusters of 1, 2 or 4 CTAs";
    if (s.fragment_sets != 1 && s.fragment_sets != 2) return "one or two sets of fragments";
    if (in_two_parts(s) && s.fragment_sets == 2)
        return "a blob in two parts has two sets of fragments anyway";
    if (in_two_parts(s) && s.block_m < 80)  // halves of 8 columns: ptxas C7519
        return "blobs in two parts have block_m 80 at least";
    if (s.split && (s.fragment_sets == 2 || (s.accumulate && has_row_table(s))))
        return "weights with several runs leave no registers for a second set of fragments or added outputs";
    if (s.fast_accumulation && (!s.per_token || s.split || s.fragment_sets != 2))
        return "fast accumulation takes one scale for each token, weights of one run and two sets of "
               "fragments";
    if (s.fast_accumulation && s.block_m > kFp4FastMostColumns)
        return "fast accumulation has registers for up to 224 tokens";
    // Found by building it: it spills.
    if (!in_two_parts(s) && s.fragment_sets == 2 && !s.fast_accumulation && s.warpgroups == 3 && columns > 96)
        return "three warpgroups with two sets of fragments have block_m 96 at most";
    if (s.per_token && in_two_parts(s) && s.block_m > 160)  // or it spills
        return "with a scale for each token blobs in two parts have block_m 160 at most";
    // Found by building them: they spill.
    if (columns > 240 &&
        (s.groups == GroupMode::contiguous || (s.groups == GroupMode::dense && s.cluster == 1)))
        return "contiguous groups, and one matrix without clusters, have block_m 240 at most";
    if (s.queue) return "CTAs of the wide kernel take fixed turns";
    if (s.stages < 3 || s.stages > 24) return "3 to 24 stages";
    if (registers_needed_by(s) > fp4_math_registers_of(s)) return "accumulators do not fit the register file";
    if (plan_smem(s).bytes > kMaxSmemBytes) return "stages do not fit shared memory";
    return nullptr;
}

constexpr const char* why_illegal(const Fp4GemmSpec& s) {
    const u32 counts[] = {s.block_m, s.warpgroups, s.k_blocks, s.stages, s.load_warps, s.ctas_per_sm};
    for (u32 count : counts)
        if (count < 1 || count > 256) return "block, stage, warp and CTA counts are 1 to 256";
    if (s.d != Format::bf16 && s.d != Format::fp32) return "the output must be bf16 or fp32";
    if (s.a != Format::bf16 && s.a != Format::fp8_e4m3) return "tokens are fp8_e4m3 or bf16";
    if (has_bf16_tokens(s)) {
        if (s.per_token) return "bf16 tokens have no scales";
        if (s.form == Fp4Form::nv_single)
            return "nv_single is rounded for 8-bit floats: bf16 tokens take nv_exact, of the same bytes";
    }
    if (s.token_terms != 1 && s.token_terms != 2) return "a token is one row or the sum of two";
    if (s.token_terms == 2) {
        if (s.a != Format::fp8_e4m3 || !s.per_token || s.by_32)
            return "the two terms of a token are fp8_e4m3 under one scale of the token";
        if (fp4_terms_of(s.form) != 1) return "weights of two terms multiply tokens of one";
        if (s.fast_accumulation) return "sums of two terms are promoted";
    }
    if (s.by_32) {
        if (s.wide || s.per_token || has_bf16_tokens(s))
            return "scales for each 32 of K are fp8 tokens' only ones, and the few-token kernel's";
        if (s.block_m > kFp4MostTokensBy32)
            return "scales for each 32 of K take four columns for a token: block_m is at most 32";
    }
    if (s.wide) return why_illegal_wide(s);
    if (s.cluster != 1 || s.fragment_sets != 1) return "clusters and sets of fragments are the wide kernel's";
    if (s.fast_accumulation) return "fast accumulation is the wide kernel's";
    const u32 columns = s.block_m * s.token_terms;
    if (fp4_columns_of(columns, columns) != columns)
        return "block_m is 8 to 48 in steps of 8, or 64 to 128 in steps of 16; with two terms half of that";
    if (columns > 128) return "block_m is 128 at most, 64 with two terms";
    if (s.warpgroups > 4) return "1 to 4 warpgroups";
    if (s.k_blocks > 2) return "a stage holds one or two blobs";
    if (s.stages < 3 || s.stages > 48) return "3 to 48 stages";
    if (s.load_warps != 1 && s.load_warps != 2 && s.load_warps != 4)
        return "1, 2 or 4 warps load activations";
    if (s.block_m / s.load_warps + 32 > registers_of(s))
        return "a warp has registers for fewer tokens to load";
    if (s.ctas_per_sm > 4) return "at most four CTAs share an SM";
    if (s.queue && s.groups != GroupMode::gathered) return "the counter of a queue lives in a gathered list";
    if (s.split && s.block_m > 64) return "weights with several runs need registers: block_m is at most 64";
    if (registers_needed_by(s) > registers_of(s)) return "accumulators do not fit the register file";
    if (plan_smem(s).bytes > max_smem_bytes_of(s)) return "stages do not fit shared memory";
    return nullptr;
}

}  // namespace deep_gemm
