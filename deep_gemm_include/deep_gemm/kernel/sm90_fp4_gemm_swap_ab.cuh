// FP8 or bf16 activations times packed FP4 weights on Hopper. Weights are the 64-row side of wgmma and come
// from registers, decoded to the tokens' width while the previous blob multiplies (spec/fp4_weights.h);
// tokens are the short side, 8 to 128 columns chosen for each work item. The tensor core's short accumulator
// is promoted to fp32 every 128 along K, with the scale of each token. Bound by the weight stream for few
// tokens: what matters is the bytes in flight. The order of a sum depends on K alone, so a row's result does
// not depend on the rows beside it. Launched by op/fp4_gemm.cpp.
#pragma once

#include <deep_gemm/kernel/fp4_load.h>
#include <deep_gemm/kernel/fp4_store.h>
#include <deep_gemm/tile/fp4_decode.h>
#include <deep_gemm/tile/fp4_decode_bf16.h>
#include <deep_gemm/ptx/wgmma.h>
#include <deep_gemm/ptx/wgmma_rs_bf16_shapes.h>
#include <deep_gemm/ptx/wgmma_rs_shapes.h>

namespace deep_gemm {
namespace sm90_fp4_gemm_swap_ab_detail {

template <Fp4GemmSpec S>
class Multiplier {
  public:
    DG_DEVICE Multiplier(const Fp4GemmParams& params, tile::Fp4Smem<S> smem, u32 warpgroup)
        : params_(params), smem_(smem), warpgroup_(warpgroup), thread_(ptx::thread_index() % kWarpgroup) {}

    DG_DEVICE void run() {
        sched::Fp4Item item;
        while (kernel::read_item<S>(smem_, slot_.stage, slot_.phase, item)) {
            dispatch<fp4_columns_of(S, 1)>(item);
            kernel::release_item<S>(smem_, slot_.stage);
            slot_.advance();
        }
    }

  private:
    static constexpr u32 kGroups = fp4_groups_of(S), kColumns = fp4_columns_per_token(S);

    /// Calls run_item() with the number of tokens that the columns which serve the item have room for.
    template <u32 N>
    DG_DEVICE void dispatch(const sched::Fp4Item& item) {
        if constexpr (N < S.block_m) {
            if (item.count > N) return dispatch<fp4_columns_of(S, N + 1)>(item);
        }
        run_item<N>(item);
    }

    template <u32 N>
    DG_DEVICE void run_item(const sched::Fp4Item& item) {
        kernel::Fp4Rows<S, N> rows(params_, item, warpgroup_);
        float sum[N / 2];
#pragma unroll
        for (u32 i = 0; i < N / 2; ++i) sum[i] = 0;
        if (item.count > 0) {
            for (u32 pass = 0; pass < kernel::fp4_passes<S>(params_, item); ++pass) {
                rows.begin_pass(pass);
                if constexpr (S.copies_only)
                    pass_by();
                else if constexpr (in_two_parts(S))
                    accumulate_parts<N>(sum, rows);
                else if constexpr (overlaps(S, N))
                    accumulate_overlapped<N>(sum, rows);
                else
                    accumulate<N>(sum, rows);
            }
        }
        rows.store(smem_.rows(slot_.stage), smem_.token_scales(slot_.stage), sum);
    }

    /// The cursor's stage. Where items choose among several loops the compiler does not see that it is the
    /// same in all lanes: pipe::Cursor::uniform_stage().
    DG_DEVICE u32 uniform_stage() const {
        if constexpr (fp4_columns_of(S, 1) == S.block_m) return cursor_.stage;
        return cursor_.uniform_stage();
    }

    /// The stage at the cursor has landed; what cp.async wrote there is visible to wgmma.
    DG_DEVICE void wait_full() {
        ptx::mbarrier_wait(smem_.full(cursor_.stage), cursor_.phase);
        ptx::fence_proxy_async();
    }

    template <u32 part = 0>
    DG_DEVICE void decode(u32 stage, u32 kb, u32 (&fragments)[16]) {
        const ptx::SharedAddress blob = smem_.blob(stage, warpgroup_, kb);
        if constexpr (has_bf16_tokens(S))
            tile::decode_half<S, part>(blob, thread_, fragments);
        else
            tile::decode_blob<S, part>(smem_, blob, thread_, fragments);
        ptx::wgmma_keep(fragments);  // decoded here, beside the wgmma in flight, not where it is used
    }

    /// Starts the four wgmma of a blob, or of one of its parts.
    template <u32 N, u32 part = 0>
    DG_DEVICE void start(u32 stage, u32 kb, float (&partial)[kColumns * N / 2], const u32 (&fragments)[16]) {
        const u32 half = has_bf16_tokens(S) ? part * S.block_m * kFp4BlockK : 0;
        const u64 tokens = ptx::wgmma_descriptor(smem_.tokens(stage, kb) + half);
        if constexpr (part == 0) ptx::wgmma_keep(partial);  // its registers are its own before the fence
        ptx::wgmma_fence();
#pragma unroll
        for (u32 step = 0; step < 4; ++step) {
            const bool more = step > 0 || part > 0;
            if constexpr (has_bf16_tokens(S))
                ptx::WgmmaRsBf16<N>::mma(partial, fragments + 4 * step, tokens + 2 * step, more);
            else
                ptx::WgmmaRs<decoded_of(S.form), kColumns * N>::mma(partial, fragments + 4 * step,
                                                                    tokens + 2 * step, more);
        }
        ptx::wgmma_commit();
    }

    /// Waits for them, gives the stage back after its last blob, and promotes.
    template <u32 N>
    DG_DEVICE void finish(u32 stage, u32 kb, float (&partial)[kColumns * N / 2], float (&sum)[N / 2],
                          const kernel::Fp4Rows<S, N>& rows) {
        constexpr bool kEarly = !scales_in_loop(S) || N * kGroups <= kFp4EarlyScaleColumns;
        float scales[N / 4];
        if constexpr (kEarly) load_scales<N>(stage, kb, 0, scales);
        ptx::wgmma_wait<0>();
        ptx::wgmma_keep(partial);
        if constexpr (kEarly && kGroups == 1) release(stage, kb);
        if (!rows.passes_by()) {
            if constexpr (S.token_terms == 2) return rows.promote_terms(partial, sum);
#pragma unroll
            for (u32 group = 0; group < kGroups; ++group) {
                if (!kEarly || group > 0) load_scales<N>(stage, kb, group, scales);
#pragma unroll
                for (u32 i = 0; i < N / 2; ++i)
                    sum[i] += rows.promoted(partial[(i / 4 * kGroups + group) * 4 + i % 4],
                                            scales[i / 4 * 2 + i % 2], i / 2 % 2);
            }
        }
        if constexpr (!kEarly || kGroups > 1) release(stage, kb);
    }

    /// After its last blob this warp is done with a stage.
    DG_DEVICE void release(u32 stage, u32 kb) {
        if (kb != S.k_blocks - 1) return;
        ptx::sync_warp();
        if (ptx::lane_index() == 0) ptx::mbarrier_arrive(smem_.empty(stage));
    }

    /// Those of this thread's columns 8 j + 2 (lane % 4) + {0, 1}.
    template <u32 N>
    DG_DEVICE void load_scales(u32 stage, u32 kb, u32 group, float (&scales)[N / 4]) {
        if constexpr (!scales_in_loop(S)) return;
        const ptx::SharedAddress at = smem_.scales(stage, kb, group) + thread_ % 4 * N;
        if constexpr (N % 16 == 0) {
#pragma unroll
            for (u32 i = 0; i < N / 4; i += 4) {
                const ptx::Float4 v = ptx::ld_shared_v4_f32(at + i * 4);
                scales[i] = v.x, scales[i + 1] = v.y, scales[i + 2] = v.z, scales[i + 3] = v.w;
            }
        } else {
#pragma unroll
            for (u32 i = 0; i < N / 4; i += 2) {
                const ptx::Float2 v = ptx::ld_shared_v2_f32(at + i * 4);
                scales[i] = v.x, scales[i + 1] = v.y;
            }
        }
    }

    /// Two sets of fragments: a blob is decoded while the one before it multiplies. Blobs come in pairs.
    template <u32 N>
    DG_DEVICE void accumulate_overlapped(float (&sum)[N / 2], const kernel::Fp4Rows<S, N>& rows) {
        float partial[kColumns * N / 2];
        u32 even[16], odd[16];
        wait_full();
        decode(cursor_.stage, 0, even);
        for (u32 pairs = fp4_k_blocks(params_.k) / 2; pairs > 0; --pairs) {
            const u32 stage = uniform_stage();
            constexpr u32 kOdd = S.k_blocks - 1;
            start<N>(stage, 0, partial, even);
            if constexpr (S.k_blocks == 1) {
                cursor_.advance();
                wait_full();
            }
            const u32 odd_stage = S.k_blocks == 1 ? uniform_stage() : stage;
            decode(odd_stage, kOdd, odd);
            finish<N>(stage, 0, partial, sum, rows);
            start<N>(odd_stage, kOdd, partial, odd);
            cursor_.advance();
            if (pairs > 1) {
                wait_full();
                decode(cursor_.stage, 0, even);
            }
            finish<N>(odd_stage, kOdd, partial, sum, rows);
        }
    }

    /// Blobs in two parts: the second is decoded while the first multiplies, and the next blob's first while
    /// the second does.
    template <u32 N>
    DG_DEVICE void accumulate_parts(float (&sum)[N / 2], const kernel::Fp4Rows<S, N>& rows) {
        float partial[kColumns * N / 2];
        u32 first[16], second[16];
        wait_full();
        decode(cursor_.stage, 0, first);
        for (u32 stages = fp4_k_blocks(params_.k) / S.k_blocks; stages > 0; --stages) {
            const u32 stage = uniform_stage();
#pragma unroll
            for (u32 kb = 0; kb < S.k_blocks; ++kb) {
                start<N>(stage, kb, partial, first);
                decode<1>(stage, kb, second);
                start<N, 1>(stage, kb, partial, second);
                ptx::wgmma_wait<1>();
                if (kb + 1 < S.k_blocks) {
                    decode(stage, kb + 1, first);
                } else {
                    cursor_.advance();
                    if (stages > 1) {
                        wait_full();
                        decode(cursor_.stage, 0, first);
                    }
                }
                finish<N>(stage, kb, partial, sum, rows);
            }
        }
    }

    template <u32 N>
    DG_DEVICE void accumulate(float (&sum)[N / 2], const kernel::Fp4Rows<S, N>& rows) {
        float partial[kColumns * N / 2];
        u32 fragments[16];
        for (u32 stages = fp4_k_blocks(params_.k) / S.k_blocks; stages > 0; --stages, cursor_.advance()) {
            const u32 stage = uniform_stage();
            wait_full();
#pragma unroll
            for (u32 kb = 0; kb < S.k_blocks; ++kb) {
                decode(stage, kb, fragments);
                start<N>(stage, kb, partial, fragments);
                finish<N>(stage, kb, partial, sum, rows);
            }
        }
    }

    /// copies_only: every stage is received and given back.
    DG_DEVICE void pass_by() {
        for (u32 stages = fp4_k_blocks(params_.k) / S.k_blocks; stages > 0; --stages, cursor_.advance()) {
            ptx::mbarrier_wait(smem_.full(cursor_.stage), cursor_.phase);
            release(cursor_.stage, S.k_blocks - 1);
        }
    }

    const Fp4GemmParams& params_;
    tile::Fp4Smem<S> smem_;
    u32 warpgroup_, thread_;
    pipe::Cursor<S.stages> cursor_;
    pipe::Cursor<kFp4ItemSlots> slot_;
};

/// The kernel before writes the tokens' terms and nothing else that is read here, and lets this one start once
/// all before itself have ended: who brings weights does not wait for it. (A queue's counter must not move early.)
template <Fp4GemmSpec S>
constexpr bool kTokensComeLast = S.token_terms == 2 && !S.queue;

template <Fp4GemmSpec S>
DG_DEVICE void run(const Fp4GemmParams& p) {
    static_assert(why_illegal(S) == nullptr);
    // A shuffle of what all lanes have: the compiler then keeps descriptors in uniform registers.
    const tile::Fp4Smem<S> smem{ptx::shfl_idx(ptx::dynamic_smem(), 0)};
    const u32 warp = ptx::warp_index(), loader = S.warpgroups * 4;
    ptx::grid_dependency_launch();
    if (warp == loader) {
        // The list of work is on its way while the others set up.
        if constexpr (!kTokensComeLast<S>) ptx::grid_dependency_wait();
        sched::Fp4Items<S> items(p);
        ptx::sync_threads();
        kernel::load_weights<S>(p, smem, items);
        return;
    }
    tile::write_magnitudes<S>(smem, ptx::thread_index());
    if constexpr (S.by_32) kernel::clear_tokens<S>(smem);
    if (warp == 0 && ptx::elect_one()) {
        for (u32 stage = 0; stage < S.stages; ++stage) {
            ptx::mbarrier_init(smem.full(stage), 1 + 32 * S.load_warps);
            ptx::mbarrier_init(smem.empty(stage), 4 * S.warpgroups);
        }
        for (u32 slot = 0; slot < kFp4ItemSlots; ++slot) {
            ptx::mbarrier_init(smem.item_full(slot), 1);
            ptx::mbarrier_init(smem.item_empty(slot), 4 * S.warpgroups + S.load_warps);
        }
        ptx::fence_mbarrier_init();
    }
    ptx::sync_threads();
    ptx::grid_dependency_wait();
    if (warp < loader)
        Multiplier<S>(p, smem, warp / 4).run();
    else
        kernel::TokenLoader<S>(p, smem, warp - loader - 1).run();
}

}  // namespace sm90_fp4_gemm_swap_ab_detail

template <Fp4GemmSpec S>
DG_KERNEL(threads_of(S), S.ctas_per_sm)
sm90_fp8_fp4_gemm_swap_ab(DG_GRID_CONSTANT const Fp4GemmParams p) {
    sm90_fp4_gemm_swap_ab_detail::run<S>(p);
}

}  // namespace deep_gemm
