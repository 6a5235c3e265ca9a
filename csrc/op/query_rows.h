// attention_rows() and the projections of the low-rank query, of few rows in one launch. The rules of op/model_ops.h
// hold.
#pragma once

#include "op/attention_rows.h"
#include "op/project.h"

namespace deep_gemm::op {

// attention_rows() with the same `rows`, then project_many() of what its norm leaves in FP8: the same bits. The normed
// rows themselves are not stored.
struct QueryRowsArguments {
    AttentionRowsArguments rows;
    std::span<const ProjectMatrix> matrices;
};
// false: there is no kernel for these (spec/project_staged.h), nothing was launched.
[[nodiscard]] bool query_rows(const QueryRowsArguments& arguments);

}  // namespace deep_gemm::op
