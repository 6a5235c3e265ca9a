#include "op/fp4_arrange.h"

#include <deep_gemm/spec/arrange.h>

#include "op/launch.h"
#include "op/tensor_maps.h"

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kArrange{"arrange", "deep_gemm/kernel/arrange.cuh"};
constexpr u64 kAlignment = 256;
constexpr u32 kScaleAlignment = 32;  // elements: lines of 128 bytes

}  // namespace

Arranged arrange(const Fp4GemmCall& call, const Fp4GemmParams& gemm) {
    const plan::Fp4Problem& problem = call.problem;
    const u64 groups = problem.groups == GroupMode::masked ? problem.num_groups : 1, rows = problem.m;
    const u64 blobs = fp4_k_blocks(problem.k), padded_k = blobs * kFp4BlockK;
    const u64 scale_stride = align_up(rows, u64{kScaleAlignment});
    const u64 scale_rows = problem.per_token ? 1 : blobs;
    const u64 token_bytes = groups * rows * padded_k, scale_bytes = groups * scale_rows * scale_stride * 4;
    WorkspaceLease lease = workspace(*call.device, static_cast<driver::Stream>(call.stream),
                                     align_up(token_bytes, kAlignment) + scale_bytes);
    const u64 base = lease.address;
    const u64 scales = base + align_up(token_bytes, kAlignment);
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
                               .num_groups = problem.num_groups};
    const u64 grid = groups * arrange_blocks_of_group(params.rows, params.padded_k);
    launch(*call.device, kArrange, ArrangeSpec{.groups = problem.groups},
           {.grid = static_cast<u32>(grid), .threads = kArrangeThreads}, call.stream, params,
           {{call.a.address, bytes_spanned(call.a, Format::fp8_e4m3), false},
            {call.scale_a.address, bytes_spanned(call.scale_a, Format::fp32), false},
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
                       .tokens = matrix_map(*call.device, tokens, Format::fp8_e4m3, kFp4BoxRows),
                       .scales = params.scales,
                       .scale_stride = params.scale_stride},
            .tokens = {base, token_bytes, false},
            .scales = {scales, scale_bytes, false},
            .lease = std::move(lease)};
}

}  // namespace deep_gemm::op
