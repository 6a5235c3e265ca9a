// What grouped-query attention does between its projections and itself, in one launch: norm and rotation of
// the query heads in place, the same of the key heads on their way to the cache, and the values' way there.
// The parts do not meet: each has a range of blocks.
#pragma once

#include <deep_gemm/spec/latent.h>

namespace deep_gemm {

struct GqaRowsSpec {
    LatentSpec query, key, value;  // key.rows, value.rows: of the caches

    friend constexpr bool operator==(const GqaRowsSpec&, const GqaRowsSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const GqaRowsSpec& s) {
    visit("query", s.query);
    visit("key", s.key);
    visit("value", s.value);
}
constexpr LatentSmem plan_smem(const GqaRowsSpec&) {
    return plan_smem(LatentSpec{});
}

struct GqaRowsParams {
    RopeParams query, key;          // key.y: nothing
    CacheWriteParams keys, values;  // keys.x: nothing
    u32 query_end, key_end;         // blocks of a part and those before it
};

}  // namespace deep_gemm
