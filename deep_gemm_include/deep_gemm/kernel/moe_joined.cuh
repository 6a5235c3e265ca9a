// Operations of a mixture of experts that run side by side (spec/moe_joined.h). Called by op/moe_joined.cpp.
#pragma once

#include <deep_gemm/kernel/moe_group.cuh>
#include <deep_gemm/kernel/moe_swiglu.cuh>
#include <deep_gemm/kernel/project_mma.cuh>
#include <deep_gemm/kernel/router.cuh>
#include <deep_gemm/kernel/sm90_moe_few.cuh>
#include <deep_gemm/spec/moe_joined.h>

namespace deep_gemm {

template <RouteActivateSpec S>
DG_KERNEL(kMoeThreads, 4)
route_activate(DG_GRID_CONSTANT const RouteActivateParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    const u32 block = ptx::block_index();
    if (block < p.route_blocks)
        route_block<S.route>(p.route, block);
    else
        moe_swiglu_block<S.activate>(p.activate, block - p.route_blocks);
}

template <ProjectGroupSpec S>
DG_KERNEL(kProjectThreads, ctas_per_sm_of(S))
project_group(DG_GRID_CONSTANT const ProjectGroupParams p) {
    ptx::grid_dependency_launch();
    const u32 block = ptx::block_index();
    if (block < p.project_blocks)
        project_detail::run_block<S.project>(p.project, block);
    else
        moe_group_block<S.group>(p.group, block - p.project_blocks);
}

template <ProjectFewUpSpec S>
DG_KERNEL(kFewUpThreads, ctas_per_sm_of(S))
project_few_up(DG_GRID_CONSTANT const ProjectFewUpParams p) {
    const u32 block = ptx::block_index();
    if (block >= p.project_blocks)
        return moe_few_detail::few_up_block<S.few>(p.few, block - p.project_blocks);
    ptx::grid_dependency_launch();
    project_detail::run_block<S.project>(p.project, block);
}

}  // namespace deep_gemm
