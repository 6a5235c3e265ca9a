#include "op/query_rows.h"

#include "op/attention_parts.h"
#include "op/project_staged.h"

#include <deep_gemm/spec/query_rows.h>

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kQueryRows{"query_rows", "deep_gemm/kernel/query_rows.cuh"};

}  // namespace

bool query_rows(const QueryRowsArguments& a) {
    ModelChecks checks("query_rows");
    if (!takes_normed(a.rows.norm)) return false;
    QueryRowsSpec spec;
    QueryRowsParams params{};
    Parts parts;
    add_cache_rows(checks, a.rows, spec, params, parts);
    params.rows_end = parts.blocks;
    const u32 at_once = staged_blocks(checks.device());
    if (parts.blocks >= at_once) return false;
    const auto project = prepare_normed(checks, a.rows.norm, a.matrices, at_once - parts.blocks);
    if (!project) return false;
    spec.project = project->spec, params.project = project->params;
    parts.add(*project);
    launch(checks.device(), kQueryRows, spec, {parts.blocks, kProjectThreads}, a.rows.stream, params,
           parts.memory);
    return true;
}

}  // namespace deep_gemm::op
