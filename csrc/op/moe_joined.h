// Operations beside a shared expert's, in one launch with them where that serves: the results are those of
// one after the other.
#pragma once

#include "op/expert.h"
#include "op/project.h"
#include "op/router.h"
#include "op/moe.h"
#include "op/moe_few.h"

namespace deep_gemm::op {

// Neither reads or writes what the other one writes. The first one's stream is both's.
void route_activate(const RouterArguments& route, const MoeSwigluArguments& activate);
void group_project(const MoeGroupArguments& group, const ProjectArguments& project);
void few_up_project(const MoeFewArguments& few, const ProjectArguments& project);  // moe_few_up()

}  // namespace deep_gemm::op
