#include "driver/tensor_map_check.h"

#include "base/error.h"

namespace deep_gemm::driver {

namespace {

constexpr u64 kMaxDim = u64{1} << 32;
constexpr u64 kMaxStride = u64{1} << 40;
constexpr u32 kMaxBox = 256;
constexpr u32 kAlignment = 16;

void check_dims(const TensorMapDesc& desc) {
    for (u32 i = 0; i < desc.rank; ++i) {
        DG_CHECK(desc.dims[i] >= 1 && desc.dims[i] <= kMaxDim, value,
                 "tensor map: dims[{}] = {}, expected 1 to 2^32; skip the launch when a tensor is empty", i,
                 desc.dims[i]);
        DG_CHECK(desc.box[i] >= 1 && desc.box[i] <= kMaxBox, value,
                 "tensor map: box[{}] = {}, expected 1 to {}; load a larger tile in several boxes", i,
                 desc.box[i], kMaxBox);
    }
}

void check_strides(const TensorMapDesc& desc) {
    u64 extent = ceil_div(desc.dims[0] * bits_of(desc.format),
                          u64{8});  // bytes that one step of the next dimension spans
    for (u32 i = 0; i + 1 < desc.rank; ++i) {
        const u64 stride = desc.strides_bytes[i];
        DG_CHECK(stride % kAlignment == 0, value,
                 "tensor map: strides_bytes[{}] = {}, expected a multiple of {}; pad the rows of the tensor",
                 i, stride, kAlignment);
        DG_CHECK(stride < kMaxStride, value,
                 "tensor map: strides_bytes[{}] = {}, expected less than 2^40; split the tensor", i, stride);
        DG_CHECK(i > 0 || stride >= extent, value,
                 "tensor map: strides_bytes[0] = {}, expected at least the {} bytes of one row; rows must "
                 "not overlap",
                 stride, extent);
    }
}

void check_box(const TensorMapDesc& desc) {
    const u32 inner_bits = desc.box[0] * bits_of(desc.format);
    DG_CHECK(inner_bits % (8 * kAlignment) == 0, value,
             "tensor map: box[0] = {} x {} is {} bits, expected a multiple of {} bytes; widen the box",
             desc.box[0], name_of(desc.format), inner_bits, kAlignment);
    const u32 span = swizzle_span_bytes(desc.swizzle);
    DG_CHECK(
        desc.swizzle == Swizzle::none || inner_bits / 8 <= span, value,
        "tensor map: box[0] = {} x {} is {} bytes, expected at most the swizzle span of {}; narrow the box",
        desc.box[0], name_of(desc.format), inner_bits / 8, span);
}

}  // namespace

void check_tensor_map(const TensorMapDesc& desc) {
    DG_CHECK(desc.format != Format::none && static_cast<u32>(desc.format) <= static_cast<u32>(Format::int32),
             value, "tensor map: format {}, expected one of spec/format.h; set TensorMapDesc::format",
             static_cast<u32>(desc.format));
    DG_CHECK(static_cast<u32>(desc.swizzle) <= static_cast<u32>(Swizzle::bytes_128), value,
             "tensor map: swizzle {}, expected none, bytes_32, bytes_64 or bytes_128; pass one of them",
             static_cast<u32>(desc.swizzle));
    DG_CHECK(desc.rank >= 1 && desc.rank <= kMaxTensorMapRank, value,
             "tensor map: rank {}, expected 1 to {}; fold dimensions", desc.rank, kMaxTensorMapRank);
    DG_CHECK(desc.address != 0 && desc.address % kAlignment == 0, value,
             "tensor map: address {:#x}, expected non-null and a multiple of {}; align the tensor's data",
             desc.address, kAlignment);
    DG_CHECK(desc.format != Format::fp4_e2m1 || desc.dims[0] % 2 == 0, value,
             "tensor map: dims[0] = {} of fp4_e2m1, expected an even number; pad the row", desc.dims[0]);
    check_dims(desc);
    check_strides(desc);
    check_box(desc);
}

}  // namespace deep_gemm::driver
