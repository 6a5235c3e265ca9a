#include "op/group_layout.h"

namespace deep_gemm::op {

namespace {

// 128 rows share a matrix: that of the first of them.
void check_contiguous(const GroupLayout& layout) {
    const auto is_group = [&layout](i32 value) {
        return value >= 0 && static_cast<u32>(value) < layout.num_groups;
    };
    for (u32 row = 0; row < layout.m; ++row) {
        const u32 first = row / kGroupAlignment * kGroupAlignment;
        DG_CHECK(
            !is_group(layout.values[row]) || layout.values[row] == layout.values[first], value,
            "m_grouped_gemm: grouped_layout gives row {} to group {} and row {} to group {}; expected groups "
            "that start at multiples of {} rows: pad each group with rows of -1",
            first, layout.values[first], row, layout.values[row], kGroupAlignment);
    }
}

void check_prefix_sums(const GroupLayout& layout) {
    i32 previous = 0;
    for (u32 group = 0; group < layout.num_groups; ++group) {
        const i32 end = layout.values[group];
        DG_CHECK(
            end >= 0 && static_cast<u32>(end) <= layout.m, value,
            "m_grouped_gemm: grouped_layout ends group {} at row {}, expected 0 to {}, the rows of a; pass "
            "the end row of each group, padding of earlier groups included",
            group, end, layout.m);
        const u32 start = align_up(static_cast<u32>(previous), kGroupAlignment);
        DG_CHECK(
            end == previous || static_cast<u32>(end) >= start, value,
            "m_grouped_gemm: grouped_layout ends group {} at row {} and group {} at row {}, expected the end "
            "of the group before, for no rows, or at least {}: groups start at multiples of {} rows",
            group - 1, previous, group, end, start, kGroupAlignment);
        previous = end;
    }
}

void check_counts(const GroupLayout& layout) {
    for (u32 group = 0; group < layout.num_groups; ++group) {
        const i32 rows = layout.values[group];
        DG_CHECK(
            rows >= 0 && static_cast<u32>(rows) <= layout.m, value,
            "m_grouped_gemm: masked_m gives group {} {} rows, expected 0 to {}, the rows that each group has "
            "in a; pass the number of valid rows, or tensors with room for more",
            group, rows, layout.m);
    }
}

}  // namespace

void check_layout(GroupMode groups, const GroupLayout& layout) {
    if (groups == GroupMode::contiguous) check_contiguous(layout);
    if (groups == GroupMode::psum) check_prefix_sums(layout);
    if (groups == GroupMode::masked) check_counts(layout);
}

}  // namespace deep_gemm::op
