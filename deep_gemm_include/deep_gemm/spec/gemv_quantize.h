// Activations for the small-batch kernels: x [m, k] to narrow elements with a scale for each block of a row.
#pragma once

#include <deep_gemm/spec/quant.h>

namespace deep_gemm {

struct GemvQuantizeSpec {
    Format x = Format::bf16;
    Activation to = Activation::q8;
    bool dependent_launch = true;  // the architecture has programmatic dependent launch

    friend constexpr bool operator==(const GemvQuantizeSpec&, const GemvQuantizeSpec&) = default;
};

template <typename Visitor, typename Spec>
requires requires(Spec& s) {
    s.to;
}
constexpr void visit_fields(Visitor&& visit, Spec& s) {
    auto& [x, to, dependent_launch] = s;
    visit("x", x);
    visit("to", to);
    visit("dependent_launch", dependent_launch);
}

struct GemvQuantizeParams {
    const u8* x;    // [m, k], x_stride bytes apart
    u8* values;     // [m, values_stride]; q8: whole blocks, zeros beyond k
    float* scales;  // [m, scales_stride]
    u64 x_stride, values_stride, scales_stride;
    u32 m, k;
};

constexpr u32 kGemvQuantizeThreads = 256;  // a warp for each block of a row

struct GemvQuantizeSmemPlan {
    u32 bytes;
};
constexpr GemvQuantizeSmemPlan plan_smem(const GemvQuantizeSpec&) {
    return {0};
}

// nullptr, or one sentence.
constexpr const char* why_illegal(const GemvQuantizeSpec& s) {
    if (s.x != Format::bf16 && s.x != Format::fp16 && s.x != Format::fp32)
        return "x must be bf16, fp16 or fp32";
    if (block_k_of(s.to) == 0) return "activations are quantised to q8, fp8_128 or fp8_32";
    return nullptr;
}

}  // namespace deep_gemm
