// Element formats. One row per format: everything else asks the row (bits, name, whether it is a scale).
#pragma once

#include <deep_gemm/spec/types.h>

namespace deep_gemm {

enum class Format : u8 {
    none,
    fp32,
    fp16,
    bf16,
    fp8_e4m3,  // finite only: 0x7f / 0xff are NaN, largest 448
    fp8_e5m2,
    fp8_ue8m0,  // power-of-two scale, 0xff is NaN
    fp4_e2m1,   // two per byte, low nibble first
    int8,
    int32,
};

struct FormatRow {
    const char* name;
    u32 bits;
};

constexpr FormatRow row_of(Format format) {
    switch (format) {
        case Format::fp32: return {"fp32", 32};
        case Format::fp16: return {"fp16", 16};
        case Format::bf16: return {"bf16", 16};
        case Format::fp8_e4m3: return {"fp8_e4m3", 8};
        case Format::fp8_e5m2: return {"fp8_e5m2", 8};
        case Format::fp8_ue8m0: return {"fp8_ue8m0", 8};
        case Format::fp4_e2m1: return {"fp4_e2m1", 4};
        case Format::int8: return {"int8", 8};
        case Format::int32: return {"int32", 32};
        case Format::none: break;
    }
    return {"none", 0};
}

constexpr const char* name_of(Format format) {
    return row_of(format).name;
}
constexpr u32 bits_of(Format format) {
    return row_of(format).bits;
}
constexpr u32 bytes_of(Format format) {
    return row_of(format).bits / 8;
}

}  // namespace deep_gemm
