// y = x W^T on Hopper with W and x of one type, which the tensor core takes as it is stored: bf16, fp16 or
// signed bytes. Both operands of wgmma come from shared memory; scales, if there are any, come last. What
// sm90_weight_gemm.cuh is around its multiplication: the same rings, roles, blocks and epilogue. Bytes are
// summed in int32, exactly: no order of a sum shows in the result. The others join the fp32 accumulator in
// steps of 16 along K. Launched by op/weight_gemm.cpp.
#pragma once

#include <deep_gemm/kernel/weight_roles.h>
#include <deep_gemm/kernel/weight_store.h>
#include <deep_gemm/ptx/wgmma.h>
#include <deep_gemm/ptx/wgmma_f16_shapes.h>
#include <deep_gemm/ptx/wgmma_int8_shapes.h>
#include <deep_gemm/ptx/wgmma_shapes.h>

namespace deep_gemm {
namespace sm90_stored_gemm_detail {

template <Activation X, u32 N>
struct Product {
    using Sum = float;
    using Mma = ptx::Wgmma<Format::bf16, N>;
};
template <u32 N>
struct Product<Activation::fp16, N> {
    using Sum = float;
    using Mma = ptx::WgmmaF16<N>;
};
template <u32 N>
struct Product<Activation::int8_row, N> {
    using Sum = i32;
    using Mma = ptx::WgmmaInt8<N>;
};

template <WeightGemmSpec S>
class Multiplier {
  public:
    DG_DEVICE Multiplier(const WeightGemmParams& params, tile::WeightSmem<S> smem, u32 warp)
        : params_(params), smem_(smem), warp_(warp) {}

    DG_DEVICE void run() {
        const u32 matrix = kernel::matrix_of_warp<S>(warp_);
        sched::WeightBlocks<S> blocks(params_);
        for (sched::WeightBlock block; blocks.next(block);) {
            Sum raw[kCount];
            multiply(raw);
            const kernel::WeightPlace place = kernel::weight_place<S>(block, warp_);
            if constexpr (S.x == Activation::int8_row) {
                float sum[kCount];
                kernel::scale_integers<S>(params_, matrix, place, raw, sum);
                kernel::store_sums<S>(params_, place, smem_, warp_, sum);
            } else {
                kernel::scale_sums<S>(params_, matrix, place, {1.0f, 1.0f}, raw);
                kernel::store_sums<S>(params_, place, smem_, warp_, raw);
            }
        }
    }

  private:
    static constexpr u32 kCount = weight_accumulators_of(S);
    using Sum = typename Product<S.x, S.block_m>::Sum;
    using Mma = typename Product<S.x, S.block_m>::Mma;

    /// This warp is done with the stages before the cursors'.
    DG_DEVICE void release() {
        const u32 before = (weights_.stage == 0 ? S.weight_stages : weights_.stage) - 1;
        kernel::release_tokens<S>(smem_, tokens_);
        if (ptx::lane_index() == 0) ptx::mbarrier_arrive(smem_.weights_empty(before));
    }

    DG_DEVICE void multiply(Sum (&sum)[kCount]) {
#pragma unroll
        for (u32 i = 0; i < kCount; ++i) sum[i] = 0;
        const u32 stages = kernel::weight_stages_of<S>(params_);
        for (u32 stage = 0; stage < stages; ++stage) {
            ptx::mbarrier_wait(smem_.weights_full(weights_.stage), weights_.phase);
            ptx::mbarrier_wait(smem_.tokens_full(tokens_.stage), tokens_.phase);
            const u64 weights = ptx::wgmma_descriptor(smem_.weights(weights_.stage) +
                                                      warp_ / 4 * kMmaRows * kWeightTileBytes);
            const u64 tokens = ptx::wgmma_descriptor(smem_.tokens(tokens_.stage));
            ptx::wgmma_keep(sum);
            ptx::wgmma_fence();
            Mma::template mma4<2, 2>(sum, weights, tokens, 1);
            ptx::wgmma_commit();
            ptx::wgmma_wait<1>();  // the stage before has been multiplied
            if (stage > 0) release();
            weights_.advance();
            tokens_.advance();
        }
        ptx::wgmma_wait<0>();
        ptx::wgmma_keep(sum);
        release();
    }

    const WeightGemmParams& params_;
    tile::WeightSmem<S> smem_;
    u32 warp_;
    pipe::Cursor<S.weight_stages> weights_;
    pipe::Cursor<S.token_stages> tokens_;
};

}  // namespace sm90_stored_gemm_detail

template <WeightGemmSpec S>
DG_KERNEL(threads_of(S), S.ctas_per_sm)
sm90_stored_gemm(DG_GRID_CONSTANT const WeightGemmParams p) {
    static_assert(why_illegal(S) == nullptr && multiplies_stored(S));
    kernel::run_weight_roles<S, sm90_stored_gemm_detail::Multiplier<S>>(p);
}

}  // namespace deep_gemm
