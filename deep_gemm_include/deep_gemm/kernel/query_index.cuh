// Queries beside the indexer (spec/query_index.h). Called by op/query_index.cpp.
#pragma once

#include <deep_gemm/kernel/index_few.cuh>
#include <deep_gemm/kernel/project_staged.cuh>
#include <deep_gemm/spec/query_index.h>

namespace deep_gemm {

template <QueryIndexSpec S>
DG_KERNEL(kProjectThreads, kStagedCtas)
query_index(DG_GRID_CONSTANT const QueryIndexParams p) {
    ptx::grid_dependency_launch();
    const u32 block = ptx::block_index();
    if (block < p.index_blocks) return index_few_block<S.index>(p.index, block / p.index.ctas);
    project_detail::run_staged<S.project>(p.project, block - p.index_blocks,
                                          ptx::grid_size() - p.index_blocks);
}

}  // namespace deep_gemm
