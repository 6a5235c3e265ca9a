// y = x W^T on Hopper for many tokens, bf16 x and W of 8 or 4 bits. Weights come as they are stored, by TMA,
// and are decoded exactly to bf16 in registers, as operand A of wgmma, while the tensor core multiplies the
// ones before; tokens are operand B, 16 to 256 columns. Persistent and warp-specialised: a warp for each of
// two rings (weights, tokens) and one or two warpgroups of 64 rows that multiply.
//
// Order of the sum of one element (a function of W's layout and K): steps of 16 along K in turn, in the
// tensor core's fp32 accumulator. Blocks of K whose scales need more bits than bf16 has change the unit that
// the sum is kept in (tile/weight_scales.h). Launched by op/weight_gemm.cpp.
#pragma once

#include <deep_gemm/kernel/weight_roles.h>
#include <deep_gemm/kernel/weight_store.h>
#include <deep_gemm/tile/weight_fragment.h>
#include <deep_gemm/ptx/wgmma.h>
#include <deep_gemm/ptx/wgmma_rs_bf16_shapes.h>

namespace deep_gemm {
namespace sm90_weight_gemm_detail {

template <WeightGemmSpec S>
class Multiplier {
  public:
    DG_DEVICE Multiplier(const WeightGemmParams& params, tile::WeightSmem<S> smem, u32 warp)
        : params_(params), smem_(smem), warp_(warp) {}

    DG_DEVICE void run() {
        const u32 lane = ptx::lane_index(), matrix = kernel::matrix_of_warp<S>(warp_);
        quarter_ = lane % 4;
        tile_row_ = (warp_ * 16 + lane / 4) * kWeightTileBytes + lane / 4 * 16;
        sched::WeightBlocks<S> blocks(params_);
        for (sched::WeightBlock block; blocks.next(block);) {
            Sums sum;
            unit_[0] = unit_[1] = 1;
            const kernel::WeightPlace place = kernel::weight_place<S>(block, warp_);
            multiply(sum, tile::weight_rows_at<S>(params_, matrix, place.row));
            float(&all)[kCount] = reinterpret_cast<float(&)[kCount]>(sum);
            kernel::scale_sums<S>(params_, matrix, place, unit_, all);
            kernel::store_sums<S>(params_, place, smem_, warp_, all);
        }
    }

  private:
    static constexpr u32 kCount = weight_accumulators_of(S);
    static constexpr u32 kSteps = steps_of_run(S.w), kRuns = weight_stage_k_of(S.w) / (16 * kSteps);
    static constexpr u32 kRunsOfTile = kTokenTileK / (16 * kSteps);
    static constexpr u32 kRunsOfUnit =
        changes_units(S.w) ? row_of(S.w).block_k / (16 * kSteps) : kRuns + 1;  // beyond: never
    static_assert(kRuns % 2 == 0, "runs take turns with two sets of fragments");
    // Tokens are multiplied in parts, each a wgmma of its own: while the sums of one change their unit, the
    // tensor core has the others.
    static constexpr u32 kParts = weight_parts_of(S), kPartCount = kCount / kParts;
    using Sums = float[kParts][kPartCount];
    // Stages whose runs follow each other without a branch back. The compiler knows what is in flight between
    // them, and nothing of it from one turn to the next.
    static constexpr u32 kTurn = kParts == 1 || kRunsOfUnit == 1 ? 1 : kRuns <= kRunsOfUnit ? 4 : 2;
    // Few tokens: a run is decoded for so few products that reading it shows, and there are registers for it.
    static constexpr bool kFetchesAhead = S.block_m <= 128 && S.ctas_per_sm == 1;

    /// Waits for the next stage of weights, and gives the buffer of the stage before back: all of that has been
    /// decoded, and what it was decoded to has been handed to wgmma. A load that has been issued is not one
    /// that has read: a signal right behind it let the next TMA overtake it, on silicon and beside two CTAs'
    /// multicast.
    DG_DEVICE void take_weights() {
        ptx::mbarrier_wait(smem_.weights_full(weights_.stage), weights_.phase);
        ptx::sync_warp();
        if (holds_weights_ && ptx::lane_index() == 0) ptx::mbarrier_arrive(smem_.weights_empty(held_));
        held_ = weights_.stage;
        holds_weights_ = true;
        weights_.advance();
        if constexpr (tile::has_special_scales(S.w)) special_ = scales_.some_special();
    }

    /// Fetches this lane's share of run `run` of the stage that was taken last.
    DG_DEVICE void fetch(u32 run) { stored_.load(smem_.weights(held_) + tile_row_, quarter_, run); }

    /// Decodes run `run` of that stage, and fetches it where that was not done ahead. Where it begins a block,
    /// `ratio_` is what the sum must be multiplied by.
    DG_DEVICE void decode(u32 run, u32 (&fragments)[4 * kSteps]) {
        const u32 first = run * kSteps;
        if (!kFetchesAhead || run == 0) fetch(run);
        if (changes_units(S.w) ? run % kRunsOfUnit == 0 : row_of(S.w).block_k != 0 || run == 0) {
            const float before[2] = {unit_[0], unit_[1]};
            factors_.set(scales_, first, unit_);
            if constexpr (changes_units(S.w))
                for (u32 row = 0; row < 2; ++row) ratio_[row] = tile::quotient(before[row], unit_[row]);
        }
        tile::decode_run<S.w>(stored_, factors_, quarter_, fragments);
        if constexpr (row_of(S.w).element == Format::fp8_e4m3 && changes_units(S.w))
            factors_.add_multiplier(fragments);
        if constexpr (tile::has_special_scales(S.w)) {
            if (special_) [[unlikely]] {
                factors_.set_special(scales_, first);
                tile::decode_run<S.w>(stored_, factors_, quarter_, fragments);
                if constexpr (row_of(S.w).scale == ScaleType::ue8m0)
                    factors_.add_excess(scales_, first, fragments);
            }
        }
        ptx::wgmma_keep(fragments);  // decoded here, beside the wgmma in flight, not where it is used
    }

    /// Starts the wgmma of run `run` of a turn, and waits for those of the run before.
    DG_DEVICE void start(u32 run, bool first, Sums& sum, const u32 (&fragments)[4 * kSteps]) {
        const bool new_tile = run % kRunsOfTile == 0, new_unit = run % kRunsOfUnit == 0 && changes_units(S.w);
        if (new_tile) ptx::mbarrier_wait(smem_.tokens_full(tokens_.stage), tokens_.phase);
        const u64 tokens =
            ptx::wgmma_descriptor(smem_.tokens(tokens_.stage)) + run % kRunsOfTile * kSteps * 2;
#pragma unroll
        for (u32 part = 0; part < kParts; ++part) {
            if (new_unit) {
                if (run == 0 && part == 0) ptx::wgmma_wait<0>();
                if (run != 0) ptx::wgmma_wait<kParts - 1>();
                if (part == (run == 0 ? 0 : kParts - 1) && new_tile && !first)
                    kernel::release_tokens<S>(smem_, tokens_);
                ptx::wgmma_keep(sum[part]);
#pragma unroll
                for (u32 i = 0; i < kPartCount; ++i)
                    sum[part][i] = ptx::mul_rn(sum[part][i], ratio_[i / 2 % 2]);
            }
            ptx::wgmma_keep(sum[part]);
            ptx::wgmma_fence();
#pragma unroll
            for (u32 step = 0; step < kSteps; ++step)
                ptx::WgmmaRsBf16<S.block_m / kParts>::mma(
                    sum[part], fragments + 4 * step,
                    ptx::wgmma_step(tokens, step + part * (S.block_m / kParts * kBlockKBytes / 32)), 1);
            ptx::wgmma_commit();
        }
        if (!new_unit) {
            ptx::wgmma_wait<kParts>();
            if (new_tile && !first) kernel::release_tokens<S>(smem_, tokens_);
        }
        if ((run + 1) % kRunsOfTile == 0) tokens_.advance();
    }

    /// Stage `stage` of `stages`, `place` of its turn. Its first run is decoded; so is the next stage's.
    DG_DEVICE void multiply_stage(u32 place, u32 stage, u32 stages, const tile::WeightRows& rows, Sums& sum,
                                  u32 (&even)[4 * kSteps], u32 (&odd)[4 * kSteps]) {
        const bool more = stage + 1 < stages;
        tile::StageScales<S.w> next;
        next.template load<S.whole_scales>(rows, more ? stage + 1 : stage, params_.k);
#pragma unroll
        for (u32 run = 0; run < kRuns; run += 2) {
            const bool first = stage == 0 && run == 0;
            if (kFetchesAhead) fetch(run + 1);
            start(place * kRuns + run, first, sum, even);
            decode(run + 1, odd);
            if (kFetchesAhead && run + 2 < kRuns) fetch(run + 2);
            start(place * kRuns + run + 1, false, sum, odd);
            if (run + 2 < kRuns) {
                decode(run + 2, even);
            } else if (more) {
                scales_ = next;
                take_weights();
                decode(0, even);
            }
        }
    }

    /// All of K for 64 rows and the block's tokens.
    DG_DEVICE void multiply(Sums& sum, const tile::WeightRows& rows) {
#pragma unroll
        for (u32 i = 0; i < kCount; ++i) sum[i / kPartCount][i % kPartCount] = 0;
        const u32 stages = kernel::weight_stages_of<S>(params_);
        u32 even[4 * kSteps], odd[4 * kSteps];
        scales_.template load<S.whole_scales>(rows, 0, params_.k);
        take_weights();
        decode(0, even);
        u32 stage = 0;
        for (; stage + kTurn <= stages; stage += kTurn) {
#pragma unroll
            for (u32 i = 0; i < kTurn; ++i) multiply_stage(i, stage + i, stages, rows, sum, even, odd);
        }
        if constexpr (kTurn > 1)
            for (; stage < stages; ++stage) multiply_stage(0, stage, stages, rows, sum, even, odd);
        ptx::wgmma_wait<0>();
#pragma unroll
        for (auto& part : sum) ptx::wgmma_keep(part);
        kernel::release_tokens<S>(smem_, tokens_);
    }

    const WeightGemmParams& params_;
    tile::WeightSmem<S> smem_;
    u32 warp_, tile_row_ = 0, quarter_ = 0;
    pipe::Cursor<S.weight_stages> weights_;
    u32 held_ = 0;  // stage of weights that this warp has read and not given back
    bool holds_weights_ = false;
    pipe::Cursor<S.token_stages> tokens_;
    tile::WeightRun<S.w> stored_;
    tile::StageScales<S.w> scales_;
    tile::WeightFactors<S.w> factors_;
    bool special_ = false;  // whether some scale of the stage is no plain one
    float unit_[2], ratio_[2];
};

}  // namespace sm90_weight_gemm_detail

template <WeightGemmSpec S>
DG_KERNEL(threads_of(S), S.ctas_per_sm)
sm90_weight_gemm(DG_GRID_CONSTANT const WeightGemmParams p) {
    static_assert(why_illegal(S) == nullptr && S.x == Activation::bf16);
    kernel::run_weight_roles<S, sm90_weight_gemm_detail::Multiplier<S>>(p);
}

}  // namespace deep_gemm
