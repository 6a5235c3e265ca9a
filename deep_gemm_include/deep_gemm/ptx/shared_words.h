// Integers in shared memory.
#pragma once

#include <deep_gemm/ptx/shared.h>

namespace deep_gemm::ptx {

DG_DEVICE u32 ld_shared_u32(SharedAddress address) {
    u32 value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}
DG_DEVICE void st_shared_u32(SharedAddress address, u32 value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
DG_DEVICE void st_shared_u16(SharedAddress address, u32 value) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(static_cast<u16>(value)) : "memory");
}
DG_DEVICE u64 ld_shared_u64(SharedAddress address) {
    u64 value;
    asm volatile("ld.shared.u64 %0, [%1];" : "=l"(value) : "r"(address) : "memory");
    return value;
}
DG_DEVICE void st_shared_u64(SharedAddress address, u64 value) {
    asm volatile("st.shared.u64 [%0], %1;" ::"r"(address), "l"(value) : "memory");
}
DG_DEVICE void st_shared_v4_f32(SharedAddress address, float x, float y, float z, float w) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(x), "f"(y), "f"(z), "f"(w)
                 : "memory");
}
/// ld.shared::cluster: from any CTA of the cluster; the address is map_to_rank's.
DG_DEVICE float ld_cluster_f32(SharedAddress address) {
    float value;
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
    return value;
}
DG_DEVICE u32 ld_cluster_u32(SharedAddress address) {
    u32 value;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}
DG_DEVICE u32 ld_cluster_u16(SharedAddress address) {
    u16 value;
    asm volatile("ld.shared::cluster.u16 %0, [%1];" : "=h"(value) : "r"(address) : "memory");
    return value;
}
DG_DEVICE UInt2 ld_cluster_v2_u32(SharedAddress address) {
    UInt2 v;
    asm volatile("ld.shared::cluster.v2.u32 {%0, %1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "r"(address)
                 : "memory");
    return v;
}
DG_DEVICE Float4 ld_cluster_v4_f32(SharedAddress address) {
    Float4 v;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}
/// st.shared::cluster: to any CTA of the cluster, which has started.
DG_DEVICE void st_cluster_u32(SharedAddress address, u32 value) {
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
DG_DEVICE void st_cluster_v2_u32(SharedAddress address, u32 x, u32 y) {
    asm volatile("st.shared::cluster.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(x), "r"(y) : "memory");
}
/// red.shared.add: sums of integers do not depend on the order.
DG_DEVICE void red_shared_add_u32(SharedAddress address, u32 value) {
    asm volatile("red.shared.add.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
DG_DEVICE void red_shared_add_u64(SharedAddress address, u64 value) {
    asm volatile("red.shared.add.u64 [%0], %1;" ::"r"(address), "l"(value) : "memory");
}

}  // namespace deep_gemm::ptx
