#include "op/query_index.h"

#include "op/cluster_room.h"
#include "op/index_parts.h"
#include "op/project_staged.h"

#include <deep_gemm/spec/query_index.h>

#include <algorithm>

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kQueryIndex{"query_index", "deep_gemm/kernel/query_index.cuh"};

struct Joined {
    QueryIndexSpec spec;
    QueryIndexParams params;
    u32 grid, cluster;
    std::vector<driver::MemoryRange> memory;
};

std::optional<Joined> prepare(ModelChecks& checks, const QueryIndexArguments& a) {
    if (!takes_normed(a.norm)) return std::nullopt;
    const auto selection = prepare_index_select(checks, a.selection);
    if (!selection || !selection->room) return std::nullopt;
    const u32 ctas = selection->launch.params.ctas, index_blocks = selection->launch.grid;
    auto project = prepare_normed(checks, a.norm, {&a.matrix, 1}, staged_blocks(checks.device()));
    if (!project) return std::nullopt;
    Joined out{};
    out.spec = {project->spec, selection->launch.spec};
    const u32 room =
        cluster_room<QueryIndexParams>(checks.device(), kQueryIndex, out.spec, ctas, kProjectThreads);
    if (room * ctas <= index_blocks) return std::nullopt;
    // Blocks of the projection are all there at once beside the indexer's, and fill their clusters.
    const u32 blocks = std::min(room * ctas - index_blocks, project->grid / ctas * ctas);
    if (blocks == 0) return std::nullopt;
    out.params = {
        .project = project->params, .index = selection->launch.params, .index_blocks = index_blocks};
    out.grid = index_blocks + blocks, out.cluster = ctas;
    out.memory = std::move(project->memory);
    out.memory.insert(out.memory.end(), selection->launch.memory.begin(), selection->launch.memory.end());
    return out;
}

}  // namespace

bool query_index_takes(const QueryIndexArguments& a) {
    ModelChecks checks("query_index");
    return prepare(checks, a).has_value();
}

void query_index(const QueryIndexArguments& a) {
    ModelChecks checks("query_index");
    const auto joined = prepare(checks, a);
    DG_CHECK(joined.has_value(), internal, "query_index: no kernel serves these; ask query_index_takes()");
    launch(checks.device(), kQueryIndex, joined->spec, {joined->grid, kProjectThreads, joined->cluster},
           a.norm.stream, joined->params, joined->memory);
}

}  // namespace deep_gemm::op
