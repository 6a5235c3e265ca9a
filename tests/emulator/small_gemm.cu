// The smallest kernel with every asynchronous ingredient: one warp loads E4M3 tiles by TMA into a ring of stages, one
// warpgroup multiplies them and stores fp32 tiles by TMA. Subject of the injected bugs: each replaces one marked line.
#include <deep_gemm/ptx/copy.h>
#include <deep_gemm/ptx/mbarrier.h>
#include <deep_gemm/ptx/wgmma.h>

using namespace deep_gemm;
using namespace deep_gemm::ptx;

constexpr u32 kStages = 3, kTile = 64, kKBytes = 128, kTileBytes = kTile * kKBytes;
constexpr u32 kB = kStages * kTileBytes, kD = 2 * kB, kFull = kD + kTile * kTile * 4, kEmpty = kFull + 8 * kStages;

struct Params {
    TensorMap a, b, d;
    u64 num_k;
};

extern "C" __global__ void __launch_bounds__(160) small_gemm(__grid_constant__ const Params p) {
    const u32 smem = dynamic_smem(), warp = warp_index(), lane = lane_index();
    const u32 full = smem + kFull, empty = smem + kEmpty;
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < kStages; ++stage) {
            mbarrier_init(full + 8 * stage, 1);
            mbarrier_init(empty + 8 * stage, 4);
        }
        fence_mbarrier_init();
    }
    sync_threads();  // barriers are visible
    if (warp == 4) {
        if (!elect_one()) return;
        for (u32 k = 0; k < p.num_k; ++k) {
            const u32 stage = k % kStages, phase = k / kStages & 1;
            mbarrier_wait(empty + 8 * stage, phase ^ 1);
            mbarrier_arrive_expect_tx(full + 8 * stage, 2 * kTileBytes);
            tma_load_3d(smem + stage * kTileBytes, p.a, full + 8 * stage, k * kKBytes, blockIdx.y * kTile, 0, l2_evict_last());
            tma_load_3d(smem + kB + stage * kTileBytes, p.b, full + 8 * stage, k * kKBytes, blockIdx.x * kTile, 0, l2_evict_last());
        }
        return;
    }
    float d[32];
    for (u32 k = 0; k < p.num_k; ++k) {
        const u32 stage = k % kStages, phase = k / kStages & 1;
        mbarrier_wait(full + 8 * stage, phase);
        const u64 a = wgmma_descriptor(smem + stage * kTileBytes), b = wgmma_descriptor(smem + kB + stage * kTileBytes);
        wgmma_fence();
        Wgmma<Format::fp8_e4m3, 64>::mma4<2, 2>(d, a, b, k != 0);
        wgmma_commit();
        wgmma_wait<0>();  // before release
        if (lane == 0) mbarrier_arrive(empty + 8 * stage);
    }
    for (u32 i = 0; i < 32; i += 2) {
        const u32 row = 16 * warp + lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (lane % 4);
        st_shared_v2_f32(smem + kD + (row * kTile + column) * 4, d[i], d[i + 1]);
    }
    fence_proxy_async();  // before the store
    named_barrier_sync(1, 128);
    if (threadIdx.x == 0) {
        tma_store_3d(p.d, smem + kD, blockIdx.x * kTile, blockIdx.y * kTile, 0);
        tma_store_commit();
        tma_store_wait_read<0>();
    }
}
