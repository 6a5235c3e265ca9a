// The indexer of few tokens as part of a launch with other operations (op/query_index.cpp).
#pragma once

#include "op/index_select.h"
#include "op/launch.h"
#include "op/model_check.h"

#include <deep_gemm/spec/index_few.h>

#include <optional>

namespace deep_gemm::op {

struct PreparedSelection {
    Prepared<IndexFewSpec, IndexFewParams> launch;
    bool room;  // the device has it for the clusters, of launch.params.ctas CTAs
};
// Nothing where the shapes are not those of few tokens; `checks` then has what an error says.
[[nodiscard]] std::optional<PreparedSelection> prepare_index_select(ModelChecks& checks,
                                                                    const IndexSelectArguments& a);

}  // namespace deep_gemm::op
