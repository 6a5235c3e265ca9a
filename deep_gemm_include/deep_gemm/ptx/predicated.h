// Stores under a predicate, where a branch around each of many would cost more than they do.
#pragma once

#include <deep_gemm/ptx/global.h>

namespace deep_gemm::ptx {

/// st.global, only where `wanted`.
DG_DEVICE void st_global_u32_if(bool wanted, void* address, u32 value) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.u32 p, %2, 0;\n"
        "@p st.global.u32 [%0], %1;\n"
        "}" ::"l"(address),
        "r"(value), "r"(static_cast<u32>(wanted))
        : "memory");
}
DG_DEVICE void st_global_v2_f32_if(bool wanted, void* address, float x, float y) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.u32 p, %3, 0;\n"
        "@p st.global.v2.f32 [%0], {%1, %2};\n"
        "}" ::"l"(address),
        "f"(x), "f"(y), "r"(static_cast<u32>(wanted))
        : "memory");
}

}  // namespace deep_gemm::ptx
