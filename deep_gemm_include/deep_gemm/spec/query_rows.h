// What needs the projections of a block's input, in one launch with the projections of the low-rank query, whose norm
// each block of threads does for itself: the queries' blocks, and in front of them those of the token's cache row and
// of the compressors. The bits are those of attention_rows and of the projections after it.
#pragma once

#include <deep_gemm/spec/attention_rows.h>
#include <deep_gemm/spec/project_staged.h>

namespace deep_gemm {

static_assert(kLatentThreads <= kProjectThreads);

struct QueryRowsSpec {
    ProjectStagedSpec project;
    LatentSpec write;
    CompressorSpec main, index;
    bool has_main = false, has_index = false;

    friend constexpr bool operator==(const QueryRowsSpec&, const QueryRowsSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const QueryRowsSpec& s) {
    visit("project", s.project);
    visit("write", s.write);
    visit("main", s.main);
    visit("index", s.index);
    visit("has_main", s.has_main);
    visit("has_index", s.has_index);
}
constexpr ProjectMmaSmem plan_smem(const QueryRowsSpec& s) {
    const u32 project = plan_smem(s.project).bytes, rows = plan_smem(s.write).bytes;
    return {project > rows ? project : rows};
}

struct QueryRowsParams {
    ProjectStagedParams project;
    LatentWriteParams write;
    CompressorParams main, index;
    u32 write_end, main_end, rows_end;  // blocks of a part and those before it
};

}  // namespace deep_gemm
