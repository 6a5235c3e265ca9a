// Loads of the small-batch kernels: weights, which are read once, and activations, which every block reads.
#pragma once

#include <deep_gemm/ptx/global.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm::ptx {

struct alignas(16) Words4 {
    u32 word[4];
};

/// %ctaid.y.
DG_DEVICE u32 block_index_y() {
    return blockIdx.y;
}
/// shfl.sync.bfly. Scope: warp. The value of lane `lane ^ mask`.
DG_DEVICE float shfl_xor_f32(float value, u32 mask) {
    return __shfl_xor_sync(kFullWarp, value, static_cast<int>(mask));
}

/// ld.global.nc.L1::no_allocate.v4: 16 bytes that nobody reads again and nobody writes meanwhile.
DG_DEVICE Words4 ld_stream_v4(const void* address) {
    Words4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "l"(address));
    return v;
}
/// The same of 8 bytes.
DG_DEVICE void ld_stream_v2(const void* address, u32& x, u32& y) {
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(x), "=r"(y) : "l"(address));
}
/// ld.global.nc.v4: 16 bytes that stay in L1.
DG_DEVICE Words4 ld_cached_v4(const void* address) {
    Words4 v;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "l"(address));
    return v;
}
/// ld.global.nc.v2.u32.
DG_DEVICE void ld_cached_v2(const void* address, u32& x, u32& y) {
    asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(x), "=r"(y) : "l"(address));
}
/// ld.global.nc of one number of 1, 2 or 4 bytes, zero-extended.
DG_DEVICE u32 ld_cached_u8(const void* address) {
    u32 value;
    asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(value) : "l"(address));
    return value;
}
DG_DEVICE u32 ld_cached_u16(const void* address) {
    u16 value;
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(value) : "l"(address));
    return value;
}
DG_DEVICE u32 ld_cached_u32(const void* address) {
    u32 value;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(value) : "l"(address));
    return value;
}
DG_DEVICE float ld_cached_f32(const void* address) {
    float value;
    asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(value) : "l"(address));
    return value;
}
/// cp.async.bulk.prefetch.L2 (sm_90 and newer): `bytes` from `address` are on their way to L2. Both are
/// multiples of 16. Scope: thread.
DG_DEVICE void prefetch_l2(const void* address, u32 bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes) : "memory");
}
/// prefetch.global.L2: the line that `address` is in is on its way to L2. A bulk prefetch takes its thread 60 ns;
/// this one instruction is as many lines as the warp has threads.
DG_DEVICE void prefetch_line(const void* address) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address) : "memory");
}
DG_DEVICE void st_global_u8(void* address, u32 value) {
    asm volatile("st.global.u8 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

/// cp.async.cg, 16 bytes past L1 into shared memory; only `bytes` are read, the rest becomes zeros. Visible
/// to the thread after cp_async_wait(), to its warp after sync_warp() as well.
DG_DEVICE void cp_async_16(SharedAddress destination, const void* source, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source), "r"(bytes)
                 : "memory");
}
/// The same of 4 or 8 bytes, which pass through L1, or of 16.
template <u32 Bytes>
DG_DEVICE void cp_async(SharedAddress destination, const void* source, u32 bytes) {
    if constexpr (Bytes == 16)
        cp_async_16(destination, source, bytes);
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(destination), "l"(source),
                     "n"(Bytes), "r"(bytes)
                     : "memory");
}
/// The same of a part, 0 to `Bytes` bytes, with nothing beyond them read: cp.async may read all of its size whatever it is
/// told to keep, which compute-sanitizer reports at the end of an allocation; of none it reads nothing. `Words` of a part are loaded at once.
template <u32 Bytes, u32 Words = Bytes / 4>
DG_DEVICE void cp_async_part(SharedAddress destination, const void* source, u32 bytes) {
    if (bytes == 0 || bytes == Bytes) return cp_async<Bytes>(destination, source, bytes);
#pragma unroll 1
    for (u32 first = 0; first < Bytes; first += Words * 4) {
        u32 word[Words] = {};
#pragma unroll
        for (u32 i = 0; i < Words * 4; ++i)
            if (first + i < bytes)
                word[i / 4] |= ld_cached_u8(static_cast<const u8*>(source) + first + i) << i % 4 * 8;
#pragma unroll
        for (u32 i = 0; i < Words; ++i) st_shared_u32(destination + first + i * 4, word[i]);
    }
}
/// cp.async.commit_group: what this thread has started since the last one becomes a group.
DG_DEVICE void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/// cp.async.wait_group: all but the latest `Pending` groups of this thread have landed.
template <u32 Pending>
DG_DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace deep_gemm::ptx
