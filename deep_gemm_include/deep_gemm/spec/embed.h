// One row to every stream of a token: a row of the embedding table, or a value.
#pragma once

#include <deep_gemm/spec/view.h>

namespace deep_gemm {

constexpr u32 kEmbedThreads = 128;

struct EmbedSpec {
    Format value = Format::bf16;  // of the table, or of the value
    Format x = Format::fp32;
    bool gather = true;  // value is a table, its rows chosen by tokens
    bool accumulate = false;

    friend constexpr bool operator==(const EmbedSpec&, const EmbedSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const EmbedSpec& s) {
    visit("value", s.value);
    visit("x", s.x);
    visit("gather", s.gather);
    visit("accumulate", s.accumulate);
}

struct EmbedSmem {
    u32 bytes = 0;
};
constexpr EmbedSmem plan_smem(const EmbedSpec&) {
    return {};
}

struct EmbedParams {
    View value;         // [vocabulary or rows, d]
    View x;             // [rows, streams, d]
    const i32* tokens;  // [rows]
    u32 vocabulary, streams, d;
};

}  // namespace deep_gemm
