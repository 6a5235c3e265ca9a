#include "op/overlap.h"

#include "base/error.h"

#include <algorithm>

namespace deep_gemm::op {

Region region_of(const Operand& o, Format format) {
    const u64 bytes = bytes_of(format);
    Region region{.address = o.address, .bytes = bytes_spanned(o, format)};
    const bool even = o.groups <= 1 || (o.stride_row > 0 && o.stride_group % o.stride_row == 0);
    if (o.stride_column != 1 || o.rows <= 1 || !even) return region;
    region.row_bytes = o.columns * bytes;
    region.stride_bytes = o.stride_row * bytes;
    return region;
}

bool groups_overlap(const Operand& o) {
    if (o.groups <= 1 || o.elements_spanned() == 0) return false;
    const bool in_turn = o.stride_group >= (o.rows - 1) * o.stride_row + o.columns;
    const bool interleaved = o.stride_group >= o.columns &&
                             (o.rows == 1 || o.stride_row >= (o.groups - 1) * o.stride_group + o.columns);
    return !in_turn && !interleaved;
}

void check_groups_of_d(const char* operation, const Operand& d) {
    DG_CHECK(
        !groups_overlap(d), value,
        "{}: groups of d are {} elements apart and rows {}, expected groups that do not overlap: at least {} "
        "apart, or interleaved, with rows at least {} apart; allocate d contiguous",
        operation, d.stride_group, d.stride_row, (d.rows - 1) * d.stride_row + d.columns,
        (d.groups - 1) * std::max(d.stride_group, d.columns) + d.columns);
}

void check_apart(const char* operation, const Region& d, const char* name, const Region& input) {
    DG_CHECK(
        !overlap(d, input), value,
        "{}: d is the {} bytes from {:#x}, which overlap {}, the {} bytes from {:#x}; expected a d of its "
        "own: pass another tensor as d",
        operation, d.bytes, d.address, name, input.bytes, input.address);
}

}  // namespace deep_gemm::op
