#include "op/fp4_arrange.h"

#include <deep_gemm/spec/arrange.h>
#include <deep_gemm/spec/two_terms.h>

#include "op/launch.h"
#include "op/tensor_maps.h"

#include <algorithm>

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kTwoTerms{"two_terms", "deep_gemm/kernel/two_terms.cuh"};
constexpr jit::KernelId kArrange{"arrange", "deep_gemm/kernel/arrange.cuh"};
constexpr u64 kAlignment = 128;
constexpr u32 kScaleAlignment = 32;  // elements: lines of 128 bytes

u64 groups_of(const plan::Fp4Problem& problem) {
    return problem.groups == GroupMode::masked ? problem.num_groups : 1;
}
// Both terms of a row.
u64 two_term_bytes_of(const plan::Fp4Problem& problem) {
    return u64{2} * fp4_k_blocks(problem.k) * kFp4BlockK;
}

// Makes `gemm` read both terms of `rows` rows in each group.
TwoTerms read_terms_at(u64 tokens, u64 scales, const plan::Fp4Problem& problem, u64 rows,
                       Fp4GemmParams& gemm) {
    const u64 all = groups_of(problem) * rows, row_bytes = two_term_bytes_of(problem);
    gemm.a = reinterpret_cast<const u8*>(tokens);
    gemm.a_stride_group = rows * row_bytes;
    gemm.a_stride_m = static_cast<u32>(row_bytes);
    gemm.scale_a = reinterpret_cast<const float*>(scales);
    gemm.scale_a_stride_group = rows;
    gemm.scale_a_stride_m = 1;
    gemm.scale_a_stride_k = 0;
    return {.tokens = {tokens, all * row_bytes, false}, .scales = {scales, all * 4, false}};
}

// What the arranged activations look like.
struct Layout {
    Format a;
    u64 groups, rows, terms, padded_k, scale_rows, scale_stride;
    u64 token_bytes, scale_offset, scale_bytes;
};

Layout layout_of(const plan::Fp4Problem& problem, u32 token_terms) {
    Layout l{};
    const u64 blobs = fp4_k_blocks(problem.k);
    l.groups = groups_of(problem);
    l.rows = problem.m;
    l.padded_k = blobs * kFp4BlockK;
    l.terms = token_terms;
    l.a = token_terms == 2 ? Format::fp8_e4m3 : problem.a;
    const bool per_token = problem.per_token || token_terms == 2;
    l.scale_rows = l.a == Format::bf16 ? 0 : per_token ? 1 : blobs;
    l.scale_stride = align_up(l.rows, u64{kScaleAlignment});
    l.token_bytes = l.groups * l.rows * l.terms * l.padded_k * bytes_of(l.a);
    l.scale_offset = align_up(l.token_bytes, kAlignment);
    l.scale_bytes = l.groups * l.scale_rows * l.scale_stride * 4;
    return l;
}

}  // namespace

u64 two_terms_bytes(const plan::Fp4Problem& problem, u64 rows) {
    const u64 all = groups_of(problem) * rows;
    return all * two_term_bytes_of(problem) + align_up(all * 4, kAlignment);
}

TwoTerms read_two_terms(const Fp4GemmCall& call, Fp4GemmParams& gemm) {
    return read_terms_at(call.a.address, call.term_scales, call.problem, call.a.rows, gemm);
}

TwoTerms split_in_two_terms(const Fp4GemmCall& call, u64 memory, Fp4GemmParams& gemm) {
    const plan::Fp4Problem& problem = call.problem;
    const u64 rows = call.a.rows, all = groups_of(problem) * rows, row_bytes = two_term_bytes_of(problem);
    const u64 scales = memory + all * row_bytes;
    const bool masked = problem.groups == GroupMode::masked;
    const u64 at_once = masked ? std::min(rows, u64{kTwoTermRowsOfGroup}) : rows;
    const TwoTermSpec spec{.groups = masked ? GroupMode::masked : GroupMode::dense};
    const TwoTermParams params{.x = gemm.a,
                               .group_layout = gemm.group_layout,
                               .out = reinterpret_cast<u8*>(memory),
                               .scales = reinterpret_cast<float*>(scales),
                               .x_stride_group = gemm.a_stride_group,
                               .x_stride_row = gemm.a_stride_m,
                               .rows = static_cast<u32>(rows),
                               .k = problem.k,
                               .padded_k = static_cast<u32>(row_bytes / 2),
                               .rows_at_once = static_cast<u32>(at_once)};
    launch(*call.device, kTwoTerms, spec,
           {.grid = static_cast<u32>(groups_of(problem) * at_once), .threads = kTwoTermThreads}, call.stream,
           params,
           {{call.a.address, bytes_spanned(call.a, problem.a), false},
            {call.group_layout, call.group_layout_length * 4, false},
            {memory, all * row_bytes, true},
            {scales, all * 4, true}});
    return read_terms_at(memory, scales, problem, rows, gemm);
}

u64 arranged_bytes(const plan::Fp4Problem& problem, u32 token_terms) {
    const Layout layout = layout_of(problem, token_terms);
    return layout.scale_offset + layout.scale_bytes;
}

Arranged arrange(const Fp4GemmCall& call, const Fp4GemmParams& gemm, u32 token_terms,
                 const std::array<driver::MemoryRange, 2>& read, u64 memory) {
    const plan::Fp4Problem& problem = call.problem;
    const Layout l = layout_of(problem, token_terms);
    const u64 scales = memory + l.scale_offset;
    // Both terms of a token are arranged as one row: blocks of 128 of K know nothing of each other.
    const u64 row = l.terms * l.padded_k;
    const ArrangeParams params{.a = gemm.a,
                               .scale_a = gemm.scale_a,
                               .group_layout = gemm.group_layout,
                               .list = gemm.list,
                               .a_rows = gemm.a_rows,
                               .out = reinterpret_cast<u8*>(memory),
                               .scales = reinterpret_cast<float*>(scales),
                               .a_stride_group = gemm.a_stride_group,
                               .scale_a_stride_group = gemm.scale_a_stride_group,
                               .a_stride_m = gemm.a_stride_m,
                               .scale_a_stride_m = gemm.scale_a_stride_m,
                               .scale_a_stride_k = gemm.scale_a_stride_k,
                               .scale_stride = static_cast<u32>(l.scale_stride),
                               .scale_rows = static_cast<u32>(l.scale_rows),
                               .rows = static_cast<u32>(l.rows),
                               .k = l.terms == 1 ? problem.k : static_cast<u32>(row),
                               .padded_k = static_cast<u32>(row),
                               .num_groups = problem.num_groups,
                               .a_num_rows = gemm.a_num_rows};
    const ArrangeSpec spec{.groups = problem.groups, .a = l.a};
    const u64 grid = l.groups * arrange_blocks_of_group(spec, params.rows, params.padded_k);
    launch(*call.device, kArrange, spec, {.grid = static_cast<u32>(grid), .threads = kArrangeThreads},
           call.stream, params,
           {read[0],
            read[1],
            {call.group_layout, call.group_layout_length * 4, false},
            {call.list, call.list ? sizeof(Fp4ListHead) : 0, false},
            {call.a_rows, call.a_rows ? call.slots * 4 : 0, false},
            {memory, l.token_bytes, true},
            {scales, l.scale_bytes, true}});
    const u64 rows = l.rows * l.terms;
    const Operand tokens{.address = memory,
                         .groups = l.groups,
                         .rows = rows,
                         .columns = l.padded_k,
                         .stride_group = rows * l.padded_k,
                         .stride_row = l.padded_k};
    return {.params = {.gemm = gemm,
                       .tokens = matrix_map(*call.device, tokens, l.a, kFp4BoxRows),
                       .scales = params.scales,
                       .scale_stride = params.scale_stride},
            .tokens = {memory, l.token_bytes, false},
            .scales = {scales, l.scale_bytes, false}};
}

}  // namespace deep_gemm::op
