// Loads of narrow elements and their exact conversion to fp32.
#pragma once

#include <deep_gemm/ptx/global.h>
#include <deep_gemm/ptx/narrow.h>

namespace deep_gemm::ptx {

struct Word2 {
    u32 x, y;
};

DG_DEVICE Word2 ld_global_v2_u32(const void* address) {
    Word2 v;
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address));
    return v;
}
DG_DEVICE u32 ld_global_u8(const void* address) {
    u32 value;
    asm volatile("ld.global.u8 %0, [%1];" : "=r"(value) : "l"(address));
    return value;
}

/// cvt.rn.f16x2.e4m3x2, then cvt.f32.f16: the two E4M3 in the low half; exact. Needs sm_89.
DG_DEVICE Float2 cvt_e4m3x2_f32(u32 pair) {
    Float2 v;
    asm("{\n"
        ".reg .b16 h, low, high;\n"
        ".reg .b32 halves;\n"
        "cvt.u16.u32 h, %2;\n"
        "cvt.rn.f16x2.e4m3x2 halves, h;\n"
        "mov.b32 {low, high}, halves;\n"
        "cvt.f32.f16 %0, low;\n"
        "cvt.f32.f16 %1, high;\n"
        "}"
        : "=f"(v.x), "=f"(v.y)
        : "r"(pair));
    return v;
}

}  // namespace deep_gemm::ptx
