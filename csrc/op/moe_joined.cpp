#include "op/moe_joined.h"

#include "op/moe_parts.h"

namespace deep_gemm::op {

namespace {

constexpr const char* kMoeJoinedHeader = "deep_gemm/kernel/moe_joined.cuh";
constexpr jit::KernelId kRouteActivate{"route_activate", kMoeJoinedHeader},
    kProjectGroup{"project_group", kMoeJoinedHeader}, kProjectFewUp{"project_few_up", kMoeJoinedHeader};

template <typename First, typename Second>
std::vector<driver::MemoryRange> memory_of(const First& first, const Second& second) {
    std::vector<driver::MemoryRange> memory = first.memory;
    memory.insert(memory.end(), second.memory.begin(), second.memory.end());
    return memory;
}

}  // namespace

void route_activate(const RouterArguments& route, const MoeSwigluArguments& activate) {
    ModelChecks checks("route");
    TensorChecks others("moe_swiglu");
    const auto first = prepare_route(checks, route);
    const auto second = prepare_swiglu(others, activate);
    const RouteActivateParams params{
        .route = first.params, .activate = second.params, .route_blocks = first.grid};
    launch(checks.device(), kRouteActivate, RouteActivateSpec{first.spec, second.spec},
           {first.grid + second.grid, kMoeThreads}, route.stream, params, memory_of(first, second));
}

void group_project(const MoeGroupArguments& group, const ProjectArguments& a) {
    ModelChecks checks("project");
    const auto first = prepare_project(checks, a);
    if (!first) {
        moe_group(group);
        project(a);
        return;
    }
    TensorChecks others("moe_group");
    const auto second = prepare_group(others, group);
    const ProjectGroupParams params{
        .project = first->params, .group = second.params, .project_blocks = first->grid};
    launch(checks.device(), kProjectGroup, ProjectGroupSpec{first->spec, second.spec},
           {first->grid + second.grid, kMoeThreads}, group.stream, params, memory_of(*first, second));
}

void few_up_project(const MoeFewArguments& few, const ProjectArguments& a) {
    ModelChecks checks("project");
    const auto first = prepare_project(checks, a);
    if (!first) {
        moe_few_up(few);
        project(a);
        return;
    }
    const auto second = prepare_few_up(few);
    const ProjectFewUpParams params{
        .project = first->params, .few = second.params, .project_blocks = first->grid};
    launch(checks.device(), kProjectFewUp, ProjectFewUpSpec{first->spec, second.spec},
           {first->grid + second.grid, kMoeThreads}, few.stream, params, memory_of(*first, second));
}

}  // namespace deep_gemm::op
