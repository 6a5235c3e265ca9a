// RMS norm of rows, and token rows: embedding and the broadcast of one row to all streams.
#pragma once

#include <deep_gemm/spec/quantize.h>
#include <deep_gemm/spec/view.h>

namespace deep_gemm {

constexpr u32 kNormThreads = 128;

struct NormSpec {
    Format x = Format::fp32, y = Format::fp32;
    Format weight = Format::none;  // none: the plain norm
    bool narrow = false;           // also in a narrow form
    Recipe recipe = Recipe::fp8_128;
    ScaleRule rule = ScaleRule::up;

    friend constexpr bool operator==(const NormSpec&, const NormSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const NormSpec& s) {
    visit("x", s.x);
    visit("y", s.y);
    visit("weight", s.weight);
    visit("narrow", s.narrow);
    visit("recipe", s.recipe);
    visit("rule", s.rule);
}

struct NormSmem {
    u32 sums;  // a float a warp
    u32 bytes;
};
constexpr NormSmem plan_smem(const NormSpec&) {
    return {.sums = 0, .bytes = kNormThreads / 32 * 4};
}

struct NormParams {
    View x, y;           // [rows, inner, d]
    const void* weight;  // [d]
    u8* codes;           // [rows, d] or [rows, d / 2]
    void* scales;        // [rows, ..], of the recipe
    float* global;       // [rows], of NVFP4
    u32 inner, d;
    float eps;
};

}  // namespace deep_gemm
