// TensorMap: the opaque 128 bytes a kernel hands to TMA. TensorMapDesc: what it says, as a value.
// A Device encodes one into the other; the emulator and libcuda use different bits behind the same type.
#pragma once

#include <deep_gemm/spec/format.h>

namespace deep_gemm {

struct alignas(64) TensorMap {
    u64 words[16];
};

enum class Swizzle : u8 { none, bytes_32, bytes_64, bytes_128 };

constexpr u32 kMaxTensorMapRank = 5;

// Dimension 0 is the contiguous one. strides_bytes[i] is the distance between neighbours of dimension i + 1.
struct TensorMapDesc {
    u64 address = 0;
    Format format = Format::none;
    u32 rank = 0;
    u64 dims[kMaxTensorMapRank] = {};
    u64 strides_bytes[kMaxTensorMapRank - 1] = {};
    u32 box[kMaxTensorMapRank] = {};
    Swizzle swizzle = Swizzle::none;
    bool l2_promote_256b = true;
};

}  // namespace deep_gemm
