#include "op/project_wide.h"

#include "op/launch.h"
#include "op/model_check.h"
#include "op/tensor_maps.h"
#include "op/workspace.h"

#include <algorithm>
#include <vector>

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kOperands{"project_operands", "deep_gemm/kernel/project_operands.cuh"},
    kProjectWide{"project_wide", "deep_gemm/kernel/project_wide.cuh"};

// The matrices that become operands: x of each group, then w of each part.
ProjectOperandsParams operands_of(const ProjectMmaSpec& spec, const ProjectMmaParams& p, u32 x_groups,
                                  u64 to) {
    ProjectOperandsParams operands{
        .to = reinterpret_cast<void*>(to), .k = p.k, .x_groups = x_groups, .of = {}};
    for (u32 g = 0; g < x_groups; ++g)
        operands.of[g] = {.data = static_cast<const u8*>(p.x) + p.parts[g].x_offset * bytes_of(spec.x),
                          .stride = p.x_stride,
                          .rows = p.rows,
                          .end = (g + 1) * p.token_blocks};
    for (u32 i = 0; i < p.num_parts; ++i)
        operands.of[x_groups + i] = {.data = p.parts[i].w,
                                     .stride = p.parts[i].stride_row,
                                     .rows = p.parts[i].n,
                                     .end = x_groups * p.token_blocks + p.parts[i].end};
    return operands;
}

}  // namespace

void project_wide(driver::Device& device, const ProjectMmaSpec& spec, const ProjectMmaParams& params,
                  u32 x_groups, void* stream, std::span<const driver::MemoryRange> memory) {
    const u32 row_blocks = params.parts[params.num_parts - 1].end;
    const u64 rows = u64{x_groups * params.token_blocks + row_blocks} * kWideRows,
              bytes = rows * params.k * 2;
    const WorkspaceLease lease = workspace(device, static_cast<driver::Stream>(stream), bytes);

    std::vector<driver::MemoryRange> used(memory.begin(), memory.end());
    used.push_back({lease.address, bytes, true});
    const u64 groups = rows * (params.k / kWideColumns);
    launch(device, kOperands, ProjectOperandsSpec{.x = spec.x, .w = spec.w},
           {grid_of("project", groups / kOperandGroups), kOperandThreads}, stream,
           operands_of(spec, params, x_groups, lease.address), used);

    used.back().writable = false;
    const Operand operands{
        .address = lease.address, .rows = rows, .columns = params.k, .stride_row = params.k};
    const ProjectWideParams wide{
        .operands = matrix_map(device, operands, Format::bf16, kWideRows), .p = params, .x_groups = x_groups};
    const u32 grid =  // a CTA goes on to further blocks
        std::min(grid_of("project", u64{row_blocks} * params.token_blocks), device.properties().num_sms);
    launch(device, kProjectWide, spec, {grid, kWideThreads}, stream, wide, used);
}

}  // namespace deep_gemm::op
