// The queries of attention beside the indexer of few tokens, whose own queries are there already: while some clusters
// choose (spec/index_few.h), the CTAs of all others project (spec/project_staged.h). The bits are those of both alone.
#pragma once

#include <deep_gemm/spec/index_few.h>
#include <deep_gemm/spec/project_staged.h>

namespace deep_gemm {

static_assert(kIndexFewThreads == kProjectThreads);

struct QueryIndexSpec {
    ProjectStagedSpec project;
    IndexFewSpec index;

    friend constexpr bool operator==(const QueryIndexSpec&, const QueryIndexSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const QueryIndexSpec& s) {
    visit("project", s.project);
    visit("index", s.index);
}
constexpr ProjectMmaSmem plan_smem(const QueryIndexSpec& s) {
    const u32 project = plan_smem(s.project).bytes, index = plan_smem(s.index).bytes;
    return {project > index ? project : index};
}

struct QueryIndexParams {
    ProjectStagedParams project;
    IndexFewParams index;
    u32 index_blocks;  // whole clusters, in front
};

}  // namespace deep_gemm
