// Model operations that may share a launch (op/attention_rows.cpp): checked, with their parameters. Each does
// what the function does that it is named after.
#pragma once

#include "op/attention_rows.h"
#include "op/model_check.h"

#include <deep_gemm/spec/attention_rows.h>

namespace deep_gemm::op {

// Parts of a launch, in order of blocks.
struct Parts {
    u32 blocks = 0;
    std::vector<driver::MemoryRange> memory;

    template <typename Spec, typename Params>
    u32 add(const Prepared<Spec, Params>& part) {
        memory.insert(memory.end(), part.memory.begin(), part.memory.end());
        return blocks += part.grid;
    }
};

[[nodiscard]] Prepared<NormSpec, NormParams> prepare_norm(ModelChecks& checks, const RmsNormArguments& a);
[[nodiscard]] Prepared<LatentSpec, RopeParams> prepare_rope(ModelChecks& checks, const RopeArguments& a);
[[nodiscard]] Prepared<LatentSpec, RopeParams> prepare_index_query(ModelChecks& checks,
                                                                   const IndexQueryArguments& a);
[[nodiscard]] Prepared<LatentSpec, LatentWriteParams> prepare_latent_write(ModelChecks& checks,
                                                                           const LatentWriteArguments& a);
[[nodiscard]] Prepared<LatentSpec, CacheWriteParams> prepare_cache_write(ModelChecks& checks,
                                                                         const CacheWriteArguments& a);
[[nodiscard]] Prepared<CompressorSpec, CompressorParams> prepare_compressor(ModelChecks& checks,
                                                                            const CompressorArguments& a);

// What a token adds to caches, of a.write, a.main and a.index, as the next parts of `spec` and `params`, whose fields
// are named alike.
template <typename Spec, typename Params>
void add_cache_rows(ModelChecks& checks, const AttentionRowsArguments& a, Spec& spec, Params& params,
                    Parts& parts) {
    const auto write = prepare_latent_write(checks, a.write);
    spec.write = write.spec, params.write = write.params;
    params.write_end = params.main_end = parts.add(write);
    if (a.main) {
        const auto main = prepare_compressor(checks, *a.main);
        spec.main = main.spec, spec.has_main = true;
        params.main = main.params, params.main_end = parts.add(main);
    }
    if (a.index) {
        const auto index = prepare_compressor(checks, *a.index);
        spec.index = index.spec, spec.has_index = true;
        params.index = index.params;
        parts.add(index);
    }
}

}  // namespace deep_gemm::op
