// Model operations that may share a launch (op/moe_joined.cpp): checked, with their parameters. Each does
// what the function is for that it is named after.
#pragma once

#include "op/expert.h"
#include "op/model_check.h"
#include "op/moe.h"
#include "op/moe_few.h"
#include "op/project.h"
#include "op/router.h"

#include <deep_gemm/spec/moe_joined.h>

#include <optional>

namespace deep_gemm::op {

[[nodiscard]] Prepared<RouterSpec, RouterParams> prepare_route(ModelChecks& checks, const RouterArguments& a);
[[nodiscard]] Prepared<MoeSwigluSpec, MoeSwigluParams> prepare_swiglu(TensorChecks& checks,
                                                                      const MoeSwigluArguments& a);
[[nodiscard]] Prepared<MoeGroupSpec, MoeGroupParams> prepare_group(TensorChecks& checks,
                                                                   const MoeGroupArguments& a);
[[nodiscard]] Prepared<MoeFewUpSpec, MoeFewUpParams> prepare_few_up(const MoeFewArguments& a);
// Of few rows that tensor cores serve; else nothing.
[[nodiscard]] std::optional<Prepared<ProjectMmaSpec, ProjectMmaParams>> prepare_project(
    ModelChecks& checks, const ProjectArguments& a);

}  // namespace deep_gemm::op
