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
    const AttentionRowsArguments& r = a.rows;
    if (r.norm.x.shape[0] > kStagedMostRows) return false;
    const NarrowCopy& narrow = r.norm.narrow;
    if (!narrow.present() || narrow.recipe != Recipe::fp8_128 || narrow.rule != ScaleRule::up) return false;
    const auto write = prepare_latent_write(checks, r.write);
    QueryRowsSpec spec;
    QueryRowsParams params{};
    Parts parts;
    spec.write = write.spec, params.write = write.params;
    params.write_end = params.main_end = parts.add(write);
    if (r.main) {
        const auto main = prepare_compressor(checks, *r.main);
        spec.main = main.spec, spec.has_main = true;
        params.main = main.params, params.main_end = parts.add(main);
    }
    if (r.index) {
        const auto index = prepare_compressor(checks, *r.index);
        spec.index = index.spec, spec.has_index = true;
        params.index = index.params;
        parts.add(index);
    }
    params.rows_end = parts.blocks;
    const u32 at_once = staged_blocks(checks.device());
    if (parts.blocks >= at_once) return false;
    const auto project = prepare_staged(checks,
                                        {.input = StagedInput::normed,
                                         .x = r.norm.x,
                                         .weight = r.norm.weight,
                                         .matrices = a.matrices,
                                         .eps = r.norm.eps},
                                        at_once - parts.blocks);
    if (!project) return false;
    spec.project = project->spec, params.project = project->params;
    parts.add(*project);
    launch(checks.device(), kQueryRows, spec, {parts.blocks, kProjectThreads}, r.stream, params,
           parts.memory);
    return true;
}

}  // namespace deep_gemm::op
