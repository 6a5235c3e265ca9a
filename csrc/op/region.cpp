#include "op/region.h"

#include "op/tensor_check.h"

#include <algorithm>

namespace deep_gemm::op {

Region region_of(const TensorView& t) {
    Region region{.address = address_of(t), .bytes = bytes_spanned(t)};
    if (region.bytes == 0) return region;
    u64 packed = 1;  // elements that follow each other
    u32 outer = t.rank;
    for (; outer > 0 && (t.shape[outer - 1] == 1 || static_cast<u64>(t.strides[outer - 1]) == packed);
         --outer)
        packed *= static_cast<u64>(t.shape[outer - 1]);
    const auto several = [](i64 extent) { return extent > 1; };
    if (std::count_if(t.shape, t.shape + outer, several) != 1) return region;  // not in rows, or one row
    const u64 bytes = bytes_of(t.format);
    region.row_bytes = packed * bytes;
    region.stride_bytes = static_cast<u64>(t.strides[outer - 1]) * bytes;
    return region;
}

bool overlap(const Region& x, const Region& y) {
    if (x.bytes == 0 || y.bytes == 0) return false;
    if (x.address >= y.address + y.bytes || y.address >= x.address + x.bytes) return false;
    // Columns side by side in wider rows share none of their bytes.
    const u64 stride = x.stride_bytes;
    if (stride == 0 || stride != y.stride_bytes) return true;
    const u64 ahead = x.address >= y.address ? (x.address - y.address) % stride
                                             : stride - 1 - (y.address - x.address - 1) % stride;
    return ahead < y.row_bytes || ahead + x.row_bytes > stride;
}

}  // namespace deep_gemm::op
