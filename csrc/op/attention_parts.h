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

}  // namespace deep_gemm::op
