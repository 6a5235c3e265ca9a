// Who am I, and how do threads of a CTA meet. One instruction = one function; the only folder with CUDA
// builtins or inline assembly. Names spell the instruction; comments give scope and what the instruction
// orders.
#pragma once

#include <deep_gemm/spec/types.h>

#define DG_DEVICE __device__ __forceinline__
#define DG_KERNEL(threads, ctas_per_sm) __global__ void __launch_bounds__(threads, ctas_per_sm)
#define DG_GRID_CONSTANT __grid_constant__

namespace deep_gemm::ptx {

struct Float2 {
    float x, y;
};
struct alignas(16) Float4 {
    float x, y, z, w;
};

struct UInt2 {
    u32 x, y;
};
struct alignas(16) UInt4 {
    u32 x, y, z, w;
};

constexpr u32 kWarpThreads = 32;
constexpr u32 kWarpgroupThreads = 128;
constexpr u32 kFullWarp = 0xffffffffu;

DG_DEVICE u32 thread_index() {
    return threadIdx.x;
}
DG_DEVICE u32 block_index() {
    return blockIdx.x;
}
/// %nctaid.x: blocks.
DG_DEVICE u32 grid_size() {
    return gridDim.x;
}
DG_DEVICE u32 lane_index() {
    return threadIdx.x % kWarpThreads;
}

/// High word of a * b.
DG_DEVICE u32 multiply_high(u32 a, u32 b) {
    return __umulhi(a, b);
}

/// shfl.sync.idx. Scope: warp. The value lane `source` holds; makes a value provably uniform for the
/// compiler.
DG_DEVICE u32 shfl_idx(u32 value, u32 source) {
    return __shfl_sync(kFullWarp, value, source);
}
/// shfl.sync.up. Scope: warp. Lanes below `delta` keep their own value.
DG_DEVICE u32 shfl_up(u32 value, u32 delta) {
    return __shfl_up_sync(kFullWarp, value, delta);
}
/// The same of floats, all of whose bits come through.
DG_DEVICE float shfl_idx_f32(float value, u32 source) {
    return __shfl_sync(kFullWarp, value, source);
}
DG_DEVICE float shfl_up_f32(float value, u32 delta) {
    return __shfl_up_sync(kFullWarp, value, delta);
}
/// redux.sync.max: the largest over the warp, in all lanes. Scope: warp.
DG_DEVICE u32 warp_max_u32(u32 value) {
    return __reduce_max_sync(kFullWarp, value);
}
/// vote.sync.ballot. Scope: warp.
DG_DEVICE u32 ballot(bool predicate) {
    return __ballot_sync(kFullWarp, predicate);
}
/// Index of the lowest set bit; `mask` must not be 0.
DG_DEVICE u32 lowest_bit(u32 mask) {
    return static_cast<u32>(__ffs(static_cast<int>(mask)) - 1);
}

/// lop3 of two constants, which fills their registers once: (value & mask) | bits.
DG_DEVICE u32 and_or(u32 value, u32 mask, u32 bits) {
    u32 result;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(value), "r"(mask), "r"(bits));
    return result;
}
/// prmt: byte i of the result is the byte of {b, a} that bits 4 i to 4 i + 2 of `selector` number, a's first.
DG_DEVICE u32 permute_bytes(u32 a, u32 b, u32 selector) {
    return __byte_perm(a, b, selector);
}
/// Index of the highest set bit; `mask` must not be 0.
DG_DEVICE u32 highest_bit(u32 mask) {
    return 31 - static_cast<u32>(__clz(static_cast<int>(mask)));
}

DG_DEVICE u32 warp_index() {
    return shfl_idx(threadIdx.x / kWarpThreads, 0);
}

/// elect.sync. Scope: warp, converged. True in exactly one lane.
DG_DEVICE bool elect_one() {
    u32 elected;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "elect.sync _|p, 0xffffffff;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(elected));
    return elected != 0;
}

/// %cluster_ctarank: position of this CTA in its cluster.
DG_DEVICE u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/// bar.sync over the whole CTA. Orders generic-proxy accesses of its threads.
DG_DEVICE void sync_threads() {
    __syncthreads();
}
DG_DEVICE void sync_warp() {
    __syncwarp();
}

/// bar.sync id, threads: a named barrier for a subset of warps. `id` 0 is sync_threads().
DG_DEVICE void named_barrier_sync(u32 id, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// barrier.cluster.arrive, release. Scope: every thread of every CTA of the cluster, each followed by
/// cluster_wait().
DG_DEVICE void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
/// barrier.cluster.arrive, relaxed: orders nothing but what a fence before it did, and costs no fence itself.
DG_DEVICE void cluster_arrive_relaxed() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
/// barrier.cluster.wait, acquire: all threads of the cluster have arrived, with their earlier writes visible.
DG_DEVICE void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
DG_DEVICE void cluster_sync() {
    cluster_arrive();
    cluster_wait();
}

/// setmaxnreg. Scope: warpgroup. Moves registers between roles; the pool is what the launch gave the CTA.
template <u32 Registers>
DG_DEVICE void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <u32 Registers>
DG_DEVICE void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}

/// griddepcontrol.wait: blocks until the preceding grid of the stream has finished and its writes are
/// visible. Every read or write of global memory that another kernel may touch comes after it.
DG_DEVICE void grid_dependency_wait() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}
/// griddepcontrol.launch_dependents: the next grid of the stream may be scheduled when all CTAs have said so.
DG_DEVICE void grid_dependency_launch() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace deep_gemm::ptx
