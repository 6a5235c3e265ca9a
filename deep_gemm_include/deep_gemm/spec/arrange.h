// Activations of an FP4 GEMM put in the order in which its wide kernel reads them: what the kernel is
// (ArrangeSpec) and what it is called with (ArrangeParams).
//
//   out     fp8_e4m3 [groups, rows, padded k]: rows by slot where a list gathers them, else as in A; of each
//           128 bytes word 4 * chunk + activation_word(w) is A's word w, chunk = activation_chunk(w)
//           (spec/fp4_weights.h); zeros beyond k
//   scales  fp32 [groups, scale_rows, scale_stride]: a row of them for 128 of K, zeros beyond k; or one row,
//   of
//           the tokens' only scales
//
// Rows that no product reads (slots of no entry, masked rows beyond a group's count) are left as they are.
#pragma once

#include <deep_gemm/spec/fp4_gemm.h>

namespace deep_gemm {

constexpr u32 kArrangeThreads = 256;
constexpr u32 kArrangeRows = 32;  // of a CTA
constexpr u32 kArrangeBlobs = 8;  // along K, of a CTA: one of the scales for each thread
static_assert(kArrangeRows * kArrangeBlobs == kArrangeThreads);

// Word of A's 128 bytes that becomes word `i` of chunk `chunk`.
constexpr u32 arranged_word(u32 chunk, u32 i) {
    return i * 8 + chunk;
}
constexpr bool arranged_word_agrees() {
    for (u32 word = 0; word < 32; ++word)
        if (arranged_word(activation_chunk(word), activation_word(word)) != word) return false;
    return true;
}
static_assert(arranged_word_agrees());

struct ArrangeSpec {
    GroupMode groups = GroupMode::dense;

    friend constexpr bool operator==(const ArrangeSpec&, const ArrangeSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const ArrangeSpec& s) {
    visit("groups", s.groups);
}

struct ArrangeSmem {
    u32 bytes = 0;
};
constexpr ArrangeSmem plan_smem(const ArrangeSpec&) {
    return {};
}

struct ArrangeParams {
    const u8* a;              // fp8_e4m3 [groups, rows of A, k] at the strides below
    const float* scale_a;     // [groups, rows of A, k / 128] or, with one scale row, [groups, rows of A]
    const i32* group_layout;  // masked: rows of each group; gathered: Fp4Entry[num_groups]
    const Fp4ListHead* list;  // gathered
    const i32* a_rows;        // gathered: row of A for each slot; null: the slot
    u8* out;
    float* scales;
    u64 a_stride_group, scale_a_stride_group;
    u32 a_stride_m, scale_a_stride_m, scale_a_stride_k, scale_stride, scale_rows;
    u32 rows, k, padded_k, num_groups;  // rows of one group of `out`; gathered: num_groups is the list's room
    u32 a_num_rows;                     // gathered: rows that a_rows may name; another reads row 0
};

// CTAs that arrange `rows` rows of a group.
constexpr u32 arrange_blocks_k(u32 padded_k) {
    return ceil_div(padded_k, kArrangeBlobs * kFp4BlockK);
}
constexpr u32 arrange_blocks_of_group(u32 rows, u32 padded_k) {
    return ceil_div(rows, kArrangeRows) * arrange_blocks_k(padded_k);
}

}  // namespace deep_gemm
