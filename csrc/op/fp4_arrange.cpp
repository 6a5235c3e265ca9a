#include "op/fp4_arrange.h"

#include <deep_gemm/spec/arrange.h>

#include "op/launch.h"
#include "op/tensor_maps.h"

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kArrange{"arrange", "deep_gemm/kernel/arrange.cuh"};
constexpr u64 kAlignment = 128;
constexpr u32 kScaleAlignment = 32;  // elements: lines of 128 bytes

// What the arranged activations look like.
struct Layout {
    u64 groups, rows, padded_k, scale_rows, scale_stride;
    u64 token_bytes, scale_offset, scale_bytes;
};

Layout layout_of(const plan::Fp4Problem& problem) {
    Layout l{};
    const u64 blobs = fp4_k_blocks(problem.k);
    l.groups = problem.groups == GroupMode::masked ? problem.num_groups : 1;
    l.rows = problem.m;
    l.padded_k = blobs * kFp4BlockK;
    l.scale_rows = problem.a == Format::bf16 ? 0 : problem.per_token ? 1 : blobs;
    l.scale_stride = align_up(l.rows, u64{kScaleAlignment});
    l.token_bytes = l.groups * l.rows * l.padded_k * bytes_of(problem.a);
    l.scale_offset = align_up(l.token_bytes, kAlignment);
    l.scale_bytes = l.groups * l.scale_rows * l.scale_stride * 4;
    return l;
}

}  // namespace

u64 arranged_bytes(const plan::Fp4Problem& problem) {
    const Layout layout = layout_of(problem);
    return layout.scale_offset + layout.scale_bytes;
}

Arranged arrange(const Fp4GemmCall& call, const Fp4GemmParams& gemm) {
    const plan::Fp4Problem& problem = call.problem;
    const auto [groups, rows, padded_k, scale_rows, scale_stride, token_bytes, scale_offset, scale_bytes] =
        layout_of(problem);
    WorkspaceLease lease;
    if (call.scratch == 0)
        lease = workspace(*call.device, static_cast<driver::Stream>(call.stream), arranged_bytes(problem));
    const u64 base = call.scratch != 0 ? call.scratch : lease.address, scales = base + scale_offset;
    const ArrangeParams params{.a = gemm.a,
                               .scale_a = gemm.scale_a,
                               .group_layout = gemm.group_layout,
                               .list = gemm.list,
                               .a_rows = gemm.a_rows,
                               .out = reinterpret_cast<u8*>(base),
                               .scales = reinterpret_cast<float*>(scales),
                               .a_stride_group = gemm.a_stride_group,
                               .scale_a_stride_group = gemm.scale_a_stride_group,
                               .a_stride_m = gemm.a_stride_m,
                               .scale_a_stride_m = gemm.scale_a_stride_m,
                               .scale_a_stride_k = gemm.scale_a_stride_k,
                               .scale_stride = static_cast<u32>(scale_stride),
                               .scale_rows = static_cast<u32>(scale_rows),
                               .rows = static_cast<u32>(rows),
                               .k = problem.k,
                               .padded_k = static_cast<u32>(padded_k),
                               .num_groups = problem.num_groups,
                               .a_num_rows = gemm.a_num_rows};
    const ArrangeSpec spec{.groups = problem.groups, .a = problem.a};
    const u64 grid = groups * arrange_blocks_of_group(spec, params.rows, params.padded_k);
    launch(*call.device, kArrange, spec, {.grid = static_cast<u32>(grid), .threads = kArrangeThreads},
           call.stream, params,
           {{call.a.address, bytes_spanned(call.a, problem.a), false},
            {call.scale_a.address, scale_rows > 0 ? bytes_spanned(call.scale_a, Format::fp32) : 0, false},
            {call.group_layout, call.group_layout_length * 4, false},
            {call.list, call.list ? sizeof(Fp4ListHead) : 0, false},
            {call.a_rows, call.a_rows ? call.slots * 4 : 0, false},
            {base, token_bytes, true},
            {scales, scale_bytes, true}});
    const Operand tokens{.address = base,
                         .groups = groups,
                         .rows = rows,
                         .columns = padded_k,
                         .stride_group = rows * padded_k,
                         .stride_row = padded_k};
    return {.params = {.gemm = gemm,
                       .tokens = matrix_map(*call.device, tokens, problem.a, kFp4BoxRows),
                       .scales = params.scales,
                       .scale_stride = params.scale_stride},
            .tokens = {base, token_bytes, false},
            .scales = {scales, scale_bytes, false},
            .lease = std::move(lease)};
}

}  // namespace deep_gemm::op
