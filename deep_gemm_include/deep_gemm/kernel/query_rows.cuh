// Queries beside the rows that a token adds to caches (spec/query_rows.h). Called by op/query_rows.cpp.
#pragma once

#include <deep_gemm/kernel/attention_rows.cuh>
#include <deep_gemm/kernel/project_staged.cuh>
#include <deep_gemm/spec/query_rows.h>

namespace deep_gemm {

namespace query_rows_detail {

/// A block of rows, of as many threads as such a block has elsewhere.
template <QueryRowsSpec S>
DG_DEVICE void run_rows(const QueryRowsParams& p, u32 block) {
    using namespace attention_rows_detail;
    const bool main = S.has_main && block >= p.write_end && block < p.main_end;
    const bool index = S.has_index && block >= p.main_end;
    if (block < p.write_end) bring_write<S.write>(p.write);
    if constexpr (S.has_main)
        if (main) bring_compressor<S.main>(p.main);
    if constexpr (S.has_index)
        if (index) bring_compressor<S.index>(p.index);
    ptx::grid_dependency_wait();
    if (block < p.write_end) return latent_write_block<S.write>(p.write, block);
    if constexpr (S.has_main)
        if (main) return compressor_block<S.main>(p.main, block - p.write_end);
    if constexpr (S.has_index)
        if (index) compressor_block<S.index>(p.index, block - p.main_end);
}

}  // namespace query_rows_detail

template <QueryRowsSpec S>
DG_KERNEL(kProjectThreads, kStagedCtas)
query_rows(DG_GRID_CONSTANT const QueryRowsParams p) {
    ptx::grid_dependency_launch();
    const u32 block = ptx::block_index();
    if (block >= p.rows_end)
        return project_detail::run_staged<S.project>(p.project, block - p.rows_end,
                                                     ptx::grid_size() - p.rows_end);
    if (ptx::thread_index() < kLatentThreads) query_rows_detail::run_rows<S>(p, block);
}

}  // namespace deep_gemm
