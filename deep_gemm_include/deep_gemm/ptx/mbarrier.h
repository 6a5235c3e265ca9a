// mbarrier: a phase completes when `count` arrivals and all expected bytes are in; then the parity flips.
#pragma once

#include <deep_gemm/ptx/shared.h>

namespace deep_gemm::ptx {

/// mbarrier.init. Scope: thread. `count` arrivals complete a phase.
DG_DEVICE void mbarrier_init(SharedAddress barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
/// fence.mbarrier_init: makes initialisations visible to the cluster and the async proxy. Then synchronise.
DG_DEVICE void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// mbarrier.arrive, release at CTA scope.
DG_DEVICE void mbarrier_arrive(SharedAddress barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// mbarrier.arrive.expect_tx: one arrival, and `bytes` more that asynchronous copies must deliver.
DG_DEVICE void mbarrier_arrive_expect_tx(SharedAddress barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
/// mbarrier.arrive on a barrier of any CTA of the cluster (address from map_to_rank). Orders nothing of this
/// thread for the other CTA: enough to hand back a buffer that was only read. Release at cluster scope would
/// cost a full fence.
DG_DEVICE void mbarrier_arrive_remote(SharedAddress mapped_barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(mapped_barrier) : "memory");
}

/// mbarrier.try_wait.parity. True once the phase with this parity has completed; may return false early.
DG_DEVICE bool mbarrier_try_wait(SharedAddress barrier, u32 parity) {
    u32 done;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    return done != 0;
}
DG_DEVICE void mbarrier_wait(SharedAddress barrier, u32 parity) {
    while (!mbarrier_try_wait(barrier, parity)) {
    }
}

}  // namespace deep_gemm::ptx
