// attention_rows(), attention_heads() and gqa_rows(): small operations side by side in one launch.
#include "op/attention_parts.h"

#include <deep_gemm/spec/gqa_rows.h>

namespace deep_gemm::op {

namespace {

constexpr const char* kAttentionRowsHeader = "deep_gemm/kernel/attention_rows.cuh";
constexpr jit::KernelId kRows{"attention_rows", kAttentionRowsHeader},
    kHeads{"attention_heads", kAttentionRowsHeader}, kGqaRows{"gqa_rows", "deep_gemm/kernel/gqa_rows.cuh"};

}  // namespace

void attention_rows(const AttentionRowsArguments& a) {
    ModelChecks checks("attention_rows");
    const auto norm = prepare_norm(checks, a.norm);
    AttentionRowsSpec spec;
    spec.norm = norm.spec;
    AttentionRowsParams params{};
    params.norm = norm.params;
    Parts parts;
    params.norm_end = parts.add(norm);
    add_cache_rows(checks, a, spec, params, parts);
    if (parts.blocks == 0) return;
    launch(checks.device(), kRows, spec, {parts.blocks, kLatentThreads}, a.stream, params, parts.memory);
}

void attention_heads(const AttentionHeadsArguments& a) {
    ModelChecks checks("attention_heads");
    const auto query = prepare_rope(checks, a.query);
    AttentionHeadsSpec spec;
    spec.query = query.spec;
    AttentionHeadsParams params{};
    params.query = query.params;
    Parts parts;
    params.query_end = parts.add(query);
    if (a.index) {
        const auto index = prepare_index_query(checks, *a.index);
        spec.index = index.spec, spec.has_index = true;
        params.index = index.params;
        parts.add(index);
    }
    if (parts.blocks == 0) return;
    launch(checks.device(), kHeads, spec, {parts.blocks, kLatentThreads}, a.stream, params, parts.memory);
}

void gqa_rows(const GqaRowsArguments& a) {
    ModelChecks checks("gqa_rows");
    const auto query = prepare_rope(checks, a.query), key = prepare_rope(checks, a.key);
    const auto keys = prepare_cache_write(checks, a.keys), values = prepare_cache_write(checks, a.values);
    GqaRowsSpec spec{.query = query.spec, .key = key.spec, .value = values.spec};
    spec.key.rows = keys.spec.rows;
    GqaRowsParams params{.query = query.params,
                         .key = key.params,
                         .keys = keys.params,
                         .values = values.params,
                         .query_end = 0,
                         .key_end = 0};
    Parts parts;
    params.query_end = parts.add(query);
    params.key_end = parts.add(key);
    parts.memory.insert(parts.memory.end(), keys.memory.begin(), keys.memory.end());
    parts.add(values);
    if (parts.blocks == 0) return;
    launch(checks.device(), kGqaRows, spec, {parts.blocks, kLatentThreads}, a.stream, params, parts.memory);
}

}  // namespace deep_gemm::op
