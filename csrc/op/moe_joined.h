// Operations beside a shared expert's, in one launch with them where that serves: the results are those of
// one after the other.
#pragma once

#include "op/model_ops.h"
#include "op/moe.h"

namespace deep_gemm::op {

// Neither reads or writes what the other one writes. The first one's stream is both's.
void route_activate(const RouterArguments& route, const MoeSwigluArguments& activate);
void group_project(const MoeGroupArguments& group, const ProjectArguments& project);

}  // namespace deep_gemm::op
