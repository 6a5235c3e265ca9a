// FP8 or bf16 activations times packed FP4 weights on Hopper, for many tokens of an expert. As in the kernel
// for few (sm90_fp4_gemm_swap_ab.cuh) weights are the 64-row side of wgmma and come from registers; here an
// item has up to 256 tokens, in the order that kernel/arrange.cuh gave them, so that TMA brings each tile
// once for all CTAs of a cluster. Bound by the tensor cores: two to four warpgroups take turns, and while one
// of them multiplies the other promotes and decodes. Sums are added in the order of the other kernel: a row's
// result is the same, but with fast accumulation. Launched by op/fp4_gemm.cpp.
#pragma once

#include <deep_gemm/kernel/fp4_wide_store.h>
#include <deep_gemm/tile/fp4_decode.h>
#include <deep_gemm/tile/fp4_decode_bf16.h>
#include <deep_gemm/ptx/wgmma.h>
#include <deep_gemm/ptx/wgmma_rs_bf16_shapes.h>
#include <deep_gemm/ptx/wgmma_rs_shapes.h>

namespace deep_gemm {
namespace sm90_fp4_gemm_wide_detail {

template <Fp4GemmSpec S>
class Multiplier {
  public:
    DG_DEVICE Multiplier(const Fp4GemmParams& params, tile::Fp4Smem<S> smem, u32 warpgroup)
        : params_(params), smem_(smem), warpgroup_(warpgroup), thread_(ptx::thread_index() % kWarpgroup) {}

    DG_DEVICE void run() {
        sched::Fp4Item item;
        while (kernel::read_item<S>(smem_, slot_.stage, slot_.phase, item)) {
            dispatch<columns_of(1)>(item);
            kernel::release_item<S>(smem_, slot_.stage);
            slot_.advance();
        }
    }

  private:
    static constexpr u32 kHalves = 2;

    static constexpr u32 columns_of(u32 tokens) { return fp4_columns_of(S, tokens); }
    template <u32 N>
    static constexpr u32 kColumnsOf = N* S.token_terms;  // of an item with up to N tokens

    template <u32 N>
    DG_DEVICE void dispatch(const sched::Fp4Item& item) {
        if constexpr (N < S.block_m) {
            if (item.count > N) return dispatch<columns_of(N + 1)>(item);
        }
        run_item<N>(item);
    }

    template <u32 N>
    DG_DEVICE void run_item(const sched::Fp4Item& item) {
        kernel::Fp4WideRows<S> rows(params_, item, warpgroup_);
        float sum[N / 2];
#pragma unroll
        for (u32 i = 0; i < N / 2; ++i) sum[i] = 0;
        if (item.count > 0) {
            for (u32 pass = 0; pass < kernel::fp4_passes<S>(params_, item); ++pass) {
                rows.begin_pass(pass);
                if constexpr (S.copies_only)
                    pass_by();
                else if constexpr (S.fast_accumulation)
                    accumulate_in_tensor_core<N>(sum);
                else if constexpr (in_two_parts(S))
                    accumulate_parts<N>(sum, rows);
                else if constexpr (S.fragment_sets == 2)
                    accumulate_rolling<N>(sum, rows);
                else
                    accumulate<N>(sum, rows);
            }
        }
        rows.template store<N>(smem_.rows(slot_.stage), smem_.token_scales(slot_.stage), sum);
    }

    DG_DEVICE void wait_full() {
        ptx::mbarrier_wait(smem_.full(cursor_.stage), cursor_.phase);
    }

    template <u32 part = 0>
    DG_DEVICE void decode(u32 (&fragments)[16]) {
        const ptx::SharedAddress blob = smem_.blob(cursor_.stage, warpgroup_, 0);
        if constexpr (has_bf16_tokens(S))
            tile::decode_half<S, part>(blob, thread_, fragments);
        else
            tile::decode_blob<S, part>(smem_, blob, thread_, fragments);
        ptx::wgmma_keep(fragments);  // decoded here, beside the wgmma in flight, not where it is used
    }

    /// Starts the four wgmma of a blob, or of one of its parts, with one half of the item's columns.
    template <u32 N, u32 part = 0>
    DG_DEVICE void start(u32 stage, u32 half, float (&partial)[N / 4], const u32 (&fragments)[16]) {
        const u32 tile = has_bf16_tokens(S) ? part * (S.block_m * kFp4BlockK) : 0;
        const u64 tokens = ptx::wgmma_descriptor(smem_.tokens(stage, 0) + tile + half * (N / 2 * kFp4BlockK));
        // The first half's sums were read: copies of them belong before the fence.
        if constexpr (part == 0) ptx::wgmma_keep(partial);
        ptx::wgmma_fence();
#pragma unroll
        for (u32 step = 0; step < 4; ++step) {
            const bool more = step > 0 || part > 0;
            if constexpr (has_bf16_tokens(S))
                ptx::WgmmaRsBf16<N / 2>::mma(partial, fragments + 4 * step, ptx::wgmma_step(tokens, step),
                                             more);
            else
                ptx::WgmmaRs<decoded_of(S.form), N / 2>::mma(partial, fragments + 4 * step,
                                                             ptx::wgmma_step(tokens, step), more);
        }
        ptx::wgmma_commit();
    }

    /// Adds finished sums, those of columns from `column` on, with their scales.
    template <u32 count, u32 column, u32 sums>
    DG_DEVICE void promote(u32 stage, float (&partial)[count], float (&sum)[sums],
                           const kernel::Fp4WideRows<S>& rows) {
        const ptx::SharedAddress scales = smem_.scales(stage, 0) + (column + thread_ % 4 * 2) * 4;
        ptx::wgmma_keep(partial);
        if (rows.passes_by()) return;
        if constexpr (S.token_terms == 2) return rows.promote_terms(partial, sum, column / 2);
#pragma unroll
        for (u32 i = 0; i < count; i += 4) {
            ptx::Float2 scale = {1, 1};
            if constexpr (scales_in_loop(S)) scale = ptx::ld_shared_v2_f32(scales + i * 2 * 4);
            float* const to = sum + column / 2 + i;
            to[0] += rows.promoted(partial[i], scale.x, 0);
            to[1] += rows.promoted(partial[i + 1], scale.y, 0);
            to[2] += rows.promoted(partial[i + 2], scale.x, 1);
            to[3] += rows.promoted(partial[i + 3], scale.y, 1);
        }
    }

    /// Starts the four wgmma of a blob with the columns from `first` on, two for each of a thread's sums.
    /// `between` runs behind the second: a warp that issues one waits until the tensor core takes its
    /// fragments, and then has time until it needs the next.
    template <u32 first, bool busy = true, u32 count, typename Between>
    DG_DEVICE void start_columns(u32 stage, float (&partial)[count], const u32 (&fragments)[16],
                                 Between&& between) {
        constexpr u32 kBetween = 2;
        const u64 tokens = ptx::wgmma_descriptor(smem_.tokens(stage, 0) + first * kFp4BlockK);
        ptx::wgmma_keep(partial);
        ptx::wgmma_fence();
#pragma unroll
        for (u32 step = 0; step < 4; ++step) {
            if (busy && step == kBetween) {
                between();
                ptx::wgmma_fence();
            }
            ptx::WgmmaRs<decoded_of(S.form), 2 * count>::mma(partial, fragments + 4 * step,
                                                             ptx::wgmma_step(tokens, step), step > 0);
        }
        ptx::wgmma_commit();
    }
    template <u32 first, u32 count>
    DG_DEVICE void start_columns(u32 stage, float (&partial)[count], const u32 (&fragments)[16]) {
        start_columns<first, false>(stage, partial, fragments, [] {});
    }

    /// Waits for them and promotes.
    template <u32 first, u32 count, u32 sums>
    DG_DEVICE void finish_columns(u32 stage, float (&partial)[count], float (&sum)[sums],
                                  const kernel::Fp4WideRows<S>& rows) {
        ptx::wgmma_wait<0>();
        promote<count, first>(stage, partial, sum, rows);
    }

    /// Waits for the wgmma of one half of the columns and promotes.
    template <u32 N, u32 half>
    DG_DEVICE void finish(u32 stage, float (&partial)[N / 4], float (&sum)[N / 2],
                          const kernel::Fp4WideRows<S>& rows) {
        ptx::wgmma_wait<0>();
        promote<N / 4, half*(N / 2)>(stage, partial, sum, rows);
    }

    /// This warp is done with a stage, whose tokens any CTA of the cluster may have sent.
    DG_DEVICE void release(u32 stage) {
        ptx::sync_warp();
        const u32 lane = ptx::lane_index();
        if constexpr (S.cluster == 1) {
            if (lane == 0) ptx::mbarrier_arrive(smem_.empty(stage));
        } else {
            if (lane < S.cluster) ptx::mbarrier_arrive_remote(ptx::map_to_rank(smem_.empty(stage), lane));
        }
    }

    /// One blob with one set of fragments: its columns in two halves where all sums do not fit in twice.
    template <u32 N>
    DG_DEVICE void multiply(u32 stage, const u32 (&fragments)[16], float (&sum)[N / 2],
                            const kernel::Fp4WideRows<S>& rows) {
        constexpr u32 kOthers = 52 + (scales_in_loop(S) ? 4 : 0) + (S.split ? 8 : 0);  // found by building
        constexpr u32 kAll = kColumnsOf<N>, kRegisters = kAll / 2 + N / 2 + kOthers;
        constexpr u32 kColumns = kAll <= 32 || kRegisters <= fp4_math_registers_of(S) ? kAll : kAll / 2;
        float partial[kColumns / 2];
        start_columns<0>(stage, partial, fragments);
        finish_columns<0>(stage, partial, sum, rows);
        if constexpr (kColumns < kAll) {
            start_columns<kColumns>(stage, partial, fragments);
            finish_columns<kColumns>(stage, partial, sum, rows);
        }
        release(stage);
    }

    /// Chunks of an item's columns, each with sums of its own in the tensor core. Chunk c has columns
    /// chunk_begin(c) to chunk_begin(c + 1) - 1; even ones are as wide as each other, and odd ones.
    template <u32 N>
    static constexpr u32 kChunks = kColumnsOf<N> > 128 ? 4 : 2;
    template <u32 N>
    static constexpr u32 chunk_begin(u32 c) {
        return ceil_div(kColumnsOf<N> / 8 * c, kChunks<N>) * 8;
    }
    template <u32 N, u32 c>
    static constexpr u32 kChunkSums = (chunk_begin<N>(c + 1) - chunk_begin<N>(c)) / 2;

    template <u32 N, u32 c, typename Between>
    DG_DEVICE void start_chunk(u32 stage, float (&partial)[kChunkSums<N, c>], const u32 (&fragments)[16],
                               Between&& between) {
        start_columns<chunk_begin<N>(c)>(stage, partial, fragments, between);
    }
    template <u32 N, u32 c>
    DG_DEVICE void start_chunk(u32 stage, float (&partial)[kChunkSums<N, c>], const u32 (&fragments)[16]) {
        start_columns<chunk_begin<N>(c)>(stage, partial, fragments);
    }

    template <u32 N, u32 c>
    DG_DEVICE void promote_chunk(u32 stage, float (&partial)[kChunkSums<N, c>], float (&sum)[N / 2],
                                 const kernel::Fp4WideRows<S>& rows) {
        promote<kChunkSums<N, c>, chunk_begin<N>(c)>(stage, partial, sum, rows);
    }

    /// The chunks of a blob, the first of which multiplies already: before one is promoted the next one is
    /// on its way, and behind the last the first of the next blob, in the same pair. The next blob, of this
    /// pair or of one more, is decoded between.
    template <u32 N, bool same_pair>
    DG_DEVICE void roll(const u32 (&fragments)[16], u32 (&next)[16], float (&even)[kChunkSums<N, 0>],
                        float (&odd)[kChunkSums<N, 1>], float (&sum)[N / 2],
                        const kernel::Fp4WideRows<S>& rows, bool more) {
        const u32 stage = cursor_.stage;
        cursor_.advance();
        constexpr u32 kLast = kChunks<N> - 1;
        start_chunk<N, 1>(stage, odd, fragments, [&] {
            if (!same_pair && !more) return;
            wait_full();
            decode(next);
        });
        ptx::wgmma_wait<1>();
        promote_chunk<N, 0>(stage, even, sum, rows);
        if constexpr (kLast == 3) {
            start_chunk<N, 2>(stage, even, fragments);
            ptx::wgmma_wait<1>();
            promote_chunk<N, 1>(stage, odd, sum, rows);
            start_chunk<N, 3>(stage, odd, fragments);
            ptx::wgmma_wait<1>();
            promote_chunk<N, 2>(stage, even, sum, rows);
        }
        if constexpr (same_pair) start_chunk<N, 0>(cursor_.stage, even, next);
        ptx::wgmma_wait<same_pair>();
        promote_chunk<N, kLast>(stage, odd, sum, rows);
        release(stage);
    }

    /// Two sets of fragments, two chunks of sums: the tensor core has the next chunk's work while one is
    /// promoted and the next blob decoded. Blobs come in pairs, between which no chunk is on its way:
    /// ptxas would wait for each (C7514).
    template <u32 N>
    DG_DEVICE void accumulate_rolling(float (&sum)[N / 2], const kernel::Fp4WideRows<S>& rows) {
        u32 first[16], second[16];
        wait_full();
        decode(first);
        for (u32 pairs = fp4_k_blocks(params_.k) / 2; pairs > 0; --pairs) {
            float even[kChunkSums<N, 0>], odd[kChunkSums<N, 1>];
            start_chunk<N, 0>(cursor_.stage, even, first);
            roll<N, true>(first, second, even, odd, sum, rows, true);
            roll<N, false>(second, first, even, odd, sum, rows, pairs > 1);
        }
    }

    /// Blobs in two parts: the second is decoded while the first multiplies, and the next blob's first while
    /// the second does.
    template <u32 N>
    DG_DEVICE void accumulate_parts(float (&sum)[N / 2], const kernel::Fp4WideRows<S>& rows) {
        u32 first[16], second[16];
        wait_full();
        decode(first);
        for (u32 blobs = fp4_k_blocks(params_.k); blobs > 0; --blobs) {
            float partial[N / 4];
            const u32 stage = cursor_.stage;
            start<N>(stage, 0, partial, first);
            decode<1>(second);
            start<N, 1>(stage, 0, partial, second);
            finish<N, 0>(stage, partial, sum, rows);
            start<N>(stage, 1, partial, first);
            start<N, 1>(stage, 1, partial, second);
            ptx::wgmma_wait<1>();  // the first part's fragments are free
            cursor_.advance();
            if (blobs > 1) {
                wait_full();
                decode(first);
            }
            finish<N, 1>(stage, partial, sum, rows);
            release(stage);
        }
    }

    template <u32 N>
    DG_DEVICE void accumulate(float (&sum)[N / 2], const kernel::Fp4WideRows<S>& rows) {
        u32 fragments[16];
        for (u32 blobs = fp4_k_blocks(params_.k); blobs > 0; --blobs, cursor_.advance()) {
            wait_full();
            decode(fragments);
            multiply<N>(cursor_.stage, fragments, sum, rows);
        }
    }

    /// One of the four wgmma of a blob with all of the item's columns, on top of the sum.
    template <u32 N>
    DG_DEVICE void add(u32 stage, float (&sum)[N / 2], const u32 (&fragments)[16], u32 step) {
        const u64 tokens = ptx::wgmma_descriptor(smem_.tokens(stage, 0));
        ptx::WgmmaRs<decoded_of(S.form), N>::mma(sum, fragments + 4 * step, ptx::wgmma_step(tokens, step), 1);
    }

    /// Starts a blob behind the one before it, whose stage is then given back, and decodes the next one
    /// between its wgmma: a warp that issues one waits until the tensor core takes its fragments.
    template <u32 N, bool first = false>
    DG_DEVICE void add_and_decode(float (&sum)[N / 2], const u32 (&fragments)[16], u32 (&next)[16]) {
        const u32 stage = cursor_.stage;
        cursor_.advance();
        wait_full();
        const tile::BlobCodes codes =
            tile::load_codes<S>(smem_, smem_.blob(cursor_.stage, warpgroup_, 0), thread_);
        ptx::wgmma_fence();
        add<N>(stage, sum, fragments, 0);
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>();  // the blob before is done: `next` was its fragments
        if constexpr (!first) release((stage == 0 ? S.stages : stage) - 1);
#pragma unroll
        for (u32 step = 0; step < 4; ++step) {
            tile::decode_step(codes, step, next);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) ptx::pin(next[4 * step + i]);
            if (step == 3) break;
            ptx::wgmma_fence();
            add<N>(stage, sum, fragments, step + 1);
            if (step == 2) ptx::wgmma_commit();
        }
    }

    /// fast_accumulation: the sum never leaves the tensor core, which has the next blob's work before it is
    /// done with one's. Blobs come in pairs.
    template <u32 N>
    DG_DEVICE void accumulate_in_tensor_core(float (&sum)[N / 2]) {
        u32 even[16], odd[16];
        wait_full();
        decode(even);
        ptx::wgmma_keep(sum);
        add_and_decode<N, true>(sum, even, odd);
        for (u32 pairs = fp4_k_blocks(params_.k) / 2; pairs > 1; --pairs) {
            add_and_decode<N>(sum, odd, even);
            add_and_decode<N>(sum, even, odd);
        }
        const u32 last = cursor_.stage;
        ptx::wgmma_fence();
#pragma unroll
        for (u32 step = 0; step < 4; ++step) add<N>(last, sum, odd, step);
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>();
        release((last == 0 ? S.stages : last) - 1);
        ptx::wgmma_wait<0>();
        ptx::wgmma_keep(sum);
        release(last);
        cursor_.advance();
    }

    /// copies_only: every stage is received and given back.
    DG_DEVICE void pass_by() {
        for (u32 blobs = fp4_k_blocks(params_.k); blobs > 0; --blobs, cursor_.advance()) {
            wait_full();
            release(cursor_.stage);
        }
    }

    const Fp4GemmParams& params_;
    tile::Fp4Smem<S> smem_;
    u32 warpgroup_, thread_;
    pipe::Cursor<S.stages> cursor_;
    pipe::Cursor<kFp4ItemSlots> slot_;
};

template <Fp4GemmSpec S>
DG_DEVICE void run(const Fp4WideParams& p) {
    static_assert(why_illegal(S) == nullptr && S.wide);
    const tile::Fp4Smem<S> smem{ptx::dynamic_smem()};
    const u32 warp = ptx::warp_index(), loader = S.warpgroups * 4;
    ptx::grid_dependency_launch();
    tile::write_magnitudes<S>(smem, ptx::thread_index());
    if (warp == loader && ptx::elect_one()) {
        ptx::prefetch_tensor_map(p.tokens);
        for (u32 stage = 0; stage < S.stages; ++stage) {
            ptx::mbarrier_init(smem.full(stage), scales_in_loop(S) ? 2 + ptx::kWarpThreads : 2);
            ptx::mbarrier_init(smem.empty(stage), 4 * S.warpgroups * S.cluster);
        }
        for (u32 slot = 0; slot < kFp4ItemSlots; ++slot) {
            ptx::mbarrier_init(smem.item_full(slot), 1);
            ptx::mbarrier_init(smem.item_empty(slot), 4 * S.warpgroups + (scales_in_loop(S) ? 3 : 2));
        }
        ptx::fence_mbarrier_init();
    }
    if constexpr (S.cluster > 1)
        ptx::cluster_sync();
    else
        ptx::sync_threads();
    ptx::grid_dependency_wait();

    if (warp >= loader) {
        ptx::setmaxnreg_dec<fp4_loader_registers_of(S)>();
        if (warp == loader) kernel::find_wide_items<S>(p, smem);
        if (warp == loader + 1) kernel::load_wide_items<S>(p, smem);
        if (warp == loader + 2) kernel::load_wide_weights<S>(p, smem);
        if (scales_in_loop(S) && warp == loader + 3) kernel::load_wide_scales<S>(p, smem);
    } else {
        ptx::setmaxnreg_inc<fp4_math_registers_of(S)>();
        Multiplier<S>(p.gemm, smem, warp / 4).run();
    }
    // Others of the cluster may still send tokens here or give a stage back.
    if constexpr (S.cluster > 1) ptx::cluster_sync();
}

}  // namespace sm90_fp4_gemm_wide_detail

template <Fp4GemmSpec S>
DG_KERNEL(threads_of(S), 1)
sm90_fp8_fp4_gemm_wide(DG_GRID_CONSTANT const Fp4WideParams p) {
    sm90_fp4_gemm_wide_detail::run<S>(p);
}

}  // namespace deep_gemm
