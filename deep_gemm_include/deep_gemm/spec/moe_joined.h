// What a mixture of experts does beside its shared expert, two operations in one launch each: the router
// beside the shared expert's activation, the grouping or the first product for few tokens beside its second
// product. The two do not meet: each
// has a range of blocks, and computes what its own kernel does.
#pragma once

#include <deep_gemm/spec/moe.h>
#include <deep_gemm/spec/moe_few.h>
#include <deep_gemm/spec/project_mma.h>
#include <deep_gemm/spec/router.h>

namespace deep_gemm {

static_assert(kRouterThreads == kMoeThreads && kProjectThreads == kMoeThreads &&
              kFewUpThreads == kMoeThreads);

struct RouteActivateSpec {
    RouterSpec route;
    MoeSwigluSpec activate;

    friend constexpr bool operator==(const RouteActivateSpec&, const RouteActivateSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const RouteActivateSpec& s) {
    visit("route", s.route);
    visit("activate", s.activate);
}
constexpr RouterSmem plan_smem(const RouteActivateSpec& s) {
    return plan_smem(s.route);
}
struct RouteActivateParams {
    RouterParams route;
    MoeSwigluParams activate;
    u32 route_blocks;
};

struct ProjectGroupSpec {
    ProjectMmaSpec project;
    MoeGroupSpec group;

    friend constexpr bool operator==(const ProjectGroupSpec&, const ProjectGroupSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const ProjectGroupSpec& s) {
    visit("project", s.project);
    visit("group", s.group);
}
constexpr ProjectMmaSmem plan_smem(const ProjectGroupSpec& s) {
    const u32 project = plan_smem(s.project).bytes, group = plan_smem(s.group).bytes;
    return {project > group ? project : group};
}
constexpr u32 ctas_per_sm_of(const ProjectGroupSpec& s) {
    return ctas_per_sm_of(s.project);
}
struct ProjectGroupParams {
    ProjectMmaParams project;
    MoeGroupParams group;
    u32 project_blocks;
};

struct ProjectFewUpSpec {
    ProjectMmaSpec project;
    MoeFewUpSpec few;

    friend constexpr bool operator==(const ProjectFewUpSpec&, const ProjectFewUpSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const ProjectFewUpSpec& s) {
    visit("project", s.project);
    visit("few", s.few);
}
constexpr ProjectMmaSmem plan_smem(const ProjectFewUpSpec& s) {
    const u32 project = plan_smem(s.project).bytes, few = plan_smem(s.few).bytes;
    return {project > few ? project : few};
}
constexpr u32 ctas_per_sm_of(const ProjectFewUpSpec& s) {
    const u32 project = ctas_per_sm_of(s.project), few = ctas_per_sm_of(s.few);
    return project < few ? project : few;
}
struct ProjectFewUpParams {
    ProjectMmaParams project;
    MoeFewUpParams few;
    u32 project_blocks;
};

}  // namespace deep_gemm
