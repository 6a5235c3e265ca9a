// Plain loads and stores of global memory, and the conversions of an epilogue.
#pragma once

#include <deep_gemm/ptx/base.h>

namespace deep_gemm::ptx {

DG_DEVICE i32 ld_global_s32(const i32* address) {
    i32 value;
    asm volatile("ld.global.s32 %0, [%1];" : "=r"(value) : "l"(address));
    return value;
}
DG_DEVICE UInt4 ld_global_v4_u32(const void* address) {
    UInt4 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
    return v;
}
DG_DEVICE Float2 ld_global_v2_f32(const void* address) {
    Float2 v;
    asm volatile("ld.global.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(address));
    return v;
}
DG_DEVICE u32 ld_global_u32(const void* address) {
    u32 value;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(value) : "l"(address));
    return value;
}
DG_DEVICE void st_global_u32(void* address, u32 value) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
/// atom.add, relaxed at GPU scope. Returns what was there.
DG_DEVICE u32 atomic_add_global(u32* address, u32 value) {
    u32 before;
    asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(address), "r"(value)
                 : "memory");
    return before;
}
DG_DEVICE float ld_global_f32(const void* address) {
    float value;
    asm volatile("ld.global.f32 %0, [%1];" : "=f"(value) : "l"(address));
    return value;
}
DG_DEVICE Float4 ld_global_v4_f32(const void* address) {
    Float4 v;
    asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(address));
    return v;
}
DG_DEVICE float ld_global_bf16(const void* address) {
    u16 bits;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(bits) : "l"(address));
    return __uint_as_float(static_cast<u32>(bits) << 16);
}
DG_DEVICE void st_global_f32(void* address, float value) {
    asm volatile("st.global.f32 [%0], %1;" ::"l"(address), "f"(value) : "memory");
}
DG_DEVICE void st_global_u16(void* address, u16 value) {
    asm volatile("st.global.u16 [%0], %1;" ::"l"(address), "h"(value) : "memory");
}
DG_DEVICE void st_global_v2_u32(void* address, u32 x, u32 y) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(address), "r"(x), "r"(y) : "memory");
}
DG_DEVICE void st_global_v2_f32(void* address, float x, float y) {
    asm volatile("st.global.v2.f32 [%0], {%1, %2};" ::"l"(address), "f"(x), "f"(y) : "memory");
}
DG_DEVICE void st_global_v4_f32(void* address, float x, float y, float z, float w) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(address), "f"(x), "f"(y), "f"(z), "f"(w)
                 : "memory");
}

/// cvt.rn.bf16x2.f32: `low` in bits 0 to 15. Round to nearest even.
DG_DEVICE u32 cvt_bf16x2(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

/// Nothing: a value that the compiler must compute here, not earlier or once for all. Hundreds of addresses
/// and indices, kept for later, fill the registers.
DG_DEVICE void pin(u32& value) {
    asm volatile("" : "+r"(value));
}
DG_DEVICE void pin(u64& value) {
    asm volatile("" : "+l"(value));
}

/// ld.global.u16: a plain load, for what this launch may also write.
DG_DEVICE u32 ld_global_u16(const void* address) {
    u16 value;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(value) : "l"(address));
    return value;
}

}  // namespace deep_gemm::ptx
