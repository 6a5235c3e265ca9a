// Shared memory: addresses, loads and stores, matrix stores, distributed shared memory of a cluster.
#pragma once

#include <deep_gemm/ptx/base.h>

namespace deep_gemm::ptx {

/// A 32-bit address in the shared window of this CTA.
using SharedAddress = u32;

/// Start of dynamic shared memory. 1024-byte aligned: the 128-byte swizzle is a function of address bits 4
/// to 9.
DG_DEVICE SharedAddress dynamic_smem() {
    extern __shared__ __align__(1024) u8 dynamic_shared_memory[];
    return static_cast<SharedAddress>(__cvta_generic_to_shared(dynamic_shared_memory));
}

DG_DEVICE float ld_shared_f32(SharedAddress address) {
    float value;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address));
    return value;
}
DG_DEVICE Float2 ld_shared_v2_f32(SharedAddress address) {
    Float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address));
    return v;
}
DG_DEVICE Float4 ld_shared_v4_f32(SharedAddress address) {
    Float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address));
    return v;
}
DG_DEVICE u32 ld_shared_u8(SharedAddress address) {
    u32 value;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(value) : "r"(address));
    return value;
}
DG_DEVICE u32 ld_shared_u16(SharedAddress address) {
    u16 value;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(address));
    return value;
}
DG_DEVICE UInt2 ld_shared_v2_u32(SharedAddress address) {
    UInt2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
    return v;
}
DG_DEVICE UInt4 ld_shared_v4_u32(SharedAddress address) {
    UInt4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address));
    return v;
}
DG_DEVICE void st_shared_v2_u32(SharedAddress address, u32 x, u32 y) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(x), "r"(y) : "memory");
}
DG_DEVICE void st_shared_v4_u32(SharedAddress address, UInt4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
}
DG_DEVICE void st_shared_f32(SharedAddress address, float value) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}
DG_DEVICE void st_shared_v2_f32(SharedAddress address, float x, float y) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(x), "f"(y) : "memory");
}

/// stmatrix.x4: four 8x8 matrices of 16-bit elements. Lane l gives the address of row l % 8 of matrix l / 8;
/// lane l holds elements (l / 4, 2 * (l % 4) + {0, 1}) of each matrix, which is how wgmma leaves
/// accumulators.
DG_DEVICE void stmatrix_x4(SharedAddress row, u32 m0, u32 m1, u32 m2, u32 m3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(m0),
                 "r"(m1), "r"(m2), "r"(m3)
                 : "memory");
}

/// The same with .trans: what row l % 8 receives is column l % 8 of each matrix.
DG_DEVICE void stmatrix_x4_trans(SharedAddress row, u32 m0, u32 m1, u32 m2, u32 m3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(m0),
                 "r"(m1), "r"(m2), "r"(m3)
                 : "memory");
}

/// mapa: the address of the same location in CTA `rank` of the cluster.
DG_DEVICE SharedAddress map_to_rank(SharedAddress address, u32 rank) {
    SharedAddress mapped;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
    return mapped;
}

/// fence.proxy.async: makes this thread's generic writes to shared memory visible to TMA and wgmma; followed
/// by a barrier with the thread that starts the asynchronous operation.
DG_DEVICE void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace deep_gemm::ptx
