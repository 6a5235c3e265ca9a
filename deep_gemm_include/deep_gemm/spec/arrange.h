// Activations of an FP4 GEMM put in the order in which its wide kernel reads them: what the kernel is
// (ArrangeSpec) and what it is called with (ArrangeParams).
//
//   out     [groups, rows, padded k] of A's format: rows by slot where a list gathers them, else as in A; of
//           each 128 elements word 4 * chunk + activation_word(w) is A's word w, chunk = activation_chunk(w)
//           (spec/fp4_weights.h); zeros beyond k
//   scales  fp32 [groups, scale_rows, scale_stride]: a row of them for 128 of K, zeros beyond k; or one row,
//           of the tokens' only scales; none of bf16 tokens
//
// Rows that no product reads (slots of no entry, masked rows beyond a group's count) are left as they are.
#pragma once

#include <deep_gemm/spec/fp4_gemm.h>

namespace deep_gemm {

constexpr u32 kArrangeThreads = 256;
constexpr u32 kArrangeRows = 32;                // of a CTA
constexpr u32 kArrangeBytesK = 8 * kFp4BlockK;  // along K, of a CTA
// Of bytes: one of the scales for each thread.
static_assert(kArrangeRows * kArrangeBytesK / kFp4BlockK == kArrangeThreads);

// Word of A's 128 elements that becomes word `i` of chunk `chunk`.
constexpr u32 arranged_word(u32 chunk, u32 i, u32 element_bytes) {
    return i * 8 * element_bytes + chunk;
}
constexpr bool arranged_word_agrees(u32 element_bytes) {
    for (u32 word = 0; word < 32 * element_bytes; ++word)
        if (arranged_word(activation_chunk(word, element_bytes), activation_word(word, element_bytes),
                          element_bytes) != word)
            return false;
    return true;
}
static_assert(arranged_word_agrees(1) && arranged_word_agrees(2));

struct ArrangeSpec {
    GroupMode groups = GroupMode::dense;
    Format a = Format::fp8_e4m3;  // or bf16, without scales

    friend constexpr bool operator==(const ArrangeSpec&, const ArrangeSpec&) = default;
};
template <typename Visitor>
constexpr void visit_fields(Visitor&& visit, const ArrangeSpec& s) {
    visit("groups", s.groups);
    visit("a", s.a);
}

struct ArrangeSmem {
    u32 bytes = 0;
};
constexpr ArrangeSmem plan_smem(const ArrangeSpec&) {
    return {};
}

struct ArrangeParams {
    const u8* a;              // [groups, rows of A, k] at the strides below
    const float* scale_a;     // [groups, rows of A, k / 128] or, with one scale row, [groups, rows of A]
    const i32* group_layout;  // masked: rows of each group; gathered: Fp4Entry[num_groups]
    const Fp4ListHead* list;  // gathered
    const i32* a_rows;        // gathered: row of A for each slot; null: the slot
    u8* out;
    float* scales;
    u64 a_stride_group, scale_a_stride_group;  // in elements; those of a in bytes
    u32 a_stride_m, scale_a_stride_m, scale_a_stride_k, scale_stride, scale_rows;
    u32 rows, k, padded_k, num_groups;  // rows of one group of `out`; gathered: num_groups is the list's room
    u32 a_num_rows;                     // gathered: rows that a_rows may name; another reads row 0
};

// CTAs that arrange `rows` rows of a group.
constexpr u32 arrange_blocks_k(const ArrangeSpec& s, u32 padded_k) {
    return ceil_div(padded_k * bytes_of(s.a), kArrangeBytesK);
}
constexpr u32 arrange_blocks_of_group(const ArrangeSpec& s, u32 rows, u32 padded_k) {
    return ceil_div(rows, kArrangeRows) * arrange_blocks_k(s, padded_k);
}

}  // namespace deep_gemm
