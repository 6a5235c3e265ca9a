// Asynchronous copies: TMA tiles, bulk groups, L2 eviction hints.
#pragma once

#include <deep_gemm/spec/tensor_map.h>
#include <deep_gemm/ptx/shared.h>

namespace deep_gemm::ptx {

/// createpolicy: what L2 should do with the lines a copy brings in.
DG_DEVICE u64 l2_evict_first() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
DG_DEVICE u64 l2_evict_last() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/// prefetch.tensormap: brings a map into the descriptor cache. `map` is in param or global memory.
DG_DEVICE void prefetch_tensor_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/// cp.async.bulk.tensor.3d, global to shared. Scope: one thread. Elements outside the tensor arrive as zeros
/// and count as delivered bytes of `barrier`.
DG_DEVICE void tma_load_3d(SharedAddress destination, const TensorMap& map, SharedAddress barrier, u32 x,
                           u32 y, u32 z, u64 l2_policy) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(destination),
        "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z), "l"(l2_policy)
        : "memory");
}
/// The same into every CTA of the cluster whose bit is set in `mask`, at the same offsets, signalling each
/// one's barrier.
DG_DEVICE void tma_load_3d_multicast(SharedAddress destination, const TensorMap& map, SharedAddress barrier,
                                     u32 x, u32 y, u32 z, u16 mask, u64 l2_policy) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
        ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6, %7;" ::"r"(destination),
        "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z), "h"(mask), "l"(l2_policy)
        : "memory");
}

/// cp.async.bulk, shared memory of this CTA to that of a CTA of the cluster (addresses from map_to_rank; the
/// barrier lies in the destination's CTA). Scope: one thread. `bytes` and both addresses are multiples of 16.
/// Reads through the async proxy: fence_proxy_async() after ordinary writes of the source.
DG_DEVICE void copy_to_cluster(SharedAddress mapped_destination, SharedAddress source, u32 bytes,
                               SharedAddress mapped_barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            mapped_destination),
        "r"(source), "r"(bytes), "r"(mapped_barrier)
        : "memory");
}

/// st.async: the store, then 4 or 16 bytes complete on the barrier (addresses from map_to_rank, in one CTA of the
/// cluster). Who has waited for the barrier sees the store. Scope: thread. No fence, unlike a cluster barrier.
DG_DEVICE void st_async_f32(SharedAddress mapped_destination, float value, SharedAddress mapped_barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
                     mapped_destination),
                 "f"(value), "r"(mapped_barrier)
                 : "memory");
}
DG_DEVICE void st_async_v4_f32(SharedAddress mapped_destination, const Float4& v,
                               SharedAddress mapped_barrier) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::
            "r"(mapped_destination),
        "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(mapped_barrier)
        : "memory");
}

/// cp.async.bulk, global to shared. Scope: one thread. `bytes`, both addresses: multiples of 16.
DG_DEVICE void bulk_load(SharedAddress destination, const void* source, u32 bytes, SharedAddress barrier,
                         u64 l2_policy) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1], %2, [%3], %4;" ::"r"(destination),
        "l"(source), "r"(bytes), "r"(barrier), "l"(l2_policy)
        : "memory");
}

/// cp.async.mbarrier.arrive.noinc: one of the arrivals the barrier counts on, made when all earlier cp.async
/// of this thread have landed.
DG_DEVICE void copy_async_arrive(SharedAddress barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
/// cp.async.wait_all: this thread's cp.async have landed. A thread may not exit before.
DG_DEVICE void copy_async_wait_all() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/// cp.async.bulk.tensor.3d, shared to global; elements outside the tensor are dropped.
DG_DEVICE void tma_store_3d(const TensorMap& map, SharedAddress source, u32 x, u32 y, u32 z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
        "r"(source), "r"(x), "r"(y), "r"(z)
        : "memory");
}
/// cp.async.bulk.commit_group: this thread's stores so far form one group.
DG_DEVICE void tma_store_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/// cp.async.bulk.wait_group.read: the sources of all but the newest `Pending` groups may be overwritten.
template <u32 Pending>
DG_DEVICE void tma_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}

}  // namespace deep_gemm::ptx
