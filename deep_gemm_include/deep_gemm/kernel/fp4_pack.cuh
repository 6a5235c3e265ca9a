// Packs FP4 weights of a checkpoint for the kernels that read them: spec/fp4_pack.h. A CTA has a block of 64
// rows, its warpgroups take the 128-wide pieces of K in turn. Thread t of a warpgroup handles what thread t
// of the kernels will decode: 32 elements of two neighbouring rows, so that codes and scales are stored
// without any exchange. Bound by memory; the second reading goes backwards, from what is in L2 for certain.
// Called by op/fp4_pack_device.cpp.
#pragma once

#include <deep_gemm/kernel/fp4_pack_rows.h>
#include <deep_gemm/ptx/narrow.h>
#include <deep_gemm/ptx/stream.h>

namespace deep_gemm {
namespace fp4_pack_detail {

template <Fp4PackSpec S>
class Block {
  public:
    DG_DEVICE Block(const Fp4PackParams& params, u32 block)
        : p_(params),
          block_(block),
          expert_(block / fp4_row_blocks(params.n)),
          first_row_(block % fp4_row_blocks(params.n) * kFp4BlockRows) {
#pragma unroll
        for (u32 odd = 0; odd < 2; ++odd) {
            globals_[odd] = 1;
            if (p_.globals != nullptr && there(odd))
                globals_[odd] = ptx::ld_global_f32(p_.globals + expert_ * p_.globals_stride_expert +
                                                   (first_row_ + row_ + odd) * p_.globals_stride_row);
        }
    }

    DG_DEVICE void run() {
        scan([&](const Piece& piece, u32 odd, u32 blob) { note(piece, odd, blob); });
        publish();
        ptx::sync_threads();
        // The warps that have a row of 16 in other warpgroups see the same ranges.
        const Range range = range_of_row();
        const bool wide = range.wide<F>();
        if (ptx::ballot(wide) != 0) publish_keys();
        ptx::sync_threads();
        Keys keys = keys_of_row(range, wide);
        if (warpgroup_ == 0) report_rows(keys);
        write(keys);
        ptx::sync_threads();
        if (ptx::thread_index() == 0) store_record(record());
    }

  private:
    static constexpr Fp4Form F = S.form;
    static constexpr Fp4PackSmem kPlan = plan_smem(S);
    static constexpr u32 kGroup = fp4_group_of(F), kGroups = kFp4ThreadK / kGroup, kWords = 4 / kGroups;
    static constexpr u32 kAhead = 2;  // blobs whose loads are in flight
    static constexpr bool kRounds = F == Fp4Form::nv_single;

    /// What a thread has of a row's 32 elements; zeros where there are none.
    struct Piece {
        u32 words[kGroups][kWords] = {};
        u32 scales[kGroups] = {};

        DG_DEVICE bool zero(u32 group) const {
            u32 any = 0;
#pragma unroll
            for (u32 i = 0; i < kWords; ++i) any |= words[group][i];
            return (any & kMagnitudes) == 0 || (is_nvfp4(F) && scales[group] == 0);
        }
    };

    DG_DEVICE bool there(u32 odd) const {
        return first_row_ + row_ + odd < p_.n;
    }
    DG_DEVICE u32 k_of(u32 blob) const {
        return blob * kFp4BlockK + quarter_ * kFp4ThreadK;
    }

    DG_DEVICE void load(Piece& piece, u32 odd, u32 blob) const {
        piece = {};
        const u32 k = k_of(blob);
        if (!there(odd) || k >= p_.k) return;
        const u64 row = static_cast<u64>(expert_) * p_.n + first_row_ + row_ + odd;
        const u8* const codes = p_.codes + row * (p_.k / 2) + k / 2;
        const u8* const scales = p_.scales + row * (p_.k / kGroup) + k / kGroup;
        if constexpr (kGroups == 1) {
            const ptx::Words4 four = ptx::ld_stream_v4(codes);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) piece.words[0][i] = four.word[i];
            piece.scales[0] = ptx::ld_cached_u8(scales);
        } else {
#pragma unroll
            for (u32 group = 0; group < kGroups; ++group) {
                if (k + group * kGroup >= p_.k) break;
                ptx::ld_stream_v2(codes + group * 8, piece.words[group][0], piece.words[group][1]);
                piece.scales[group] = ptx::ld_cached_u8(scales + group);
            }
        }
    }

    DG_DEVICE void note(const Piece& piece, u32 odd, u32 blob) {
#pragma unroll
        for (u32 group = 0; group < kGroups; ++group) {
            const u32 scale = piece.scales[group];
            if (!fp4_is_scale(F, scale)) {
                const u32 index = (row_ + odd) * (p_.k / kGroup) + k_of(blob) / kGroup + group;
                bad_ = index < bad_ ? index : bad_;
            } else if (!piece.zero(group)) {
                ranges_[odd].add(fp4_key_of(F, scale));
                if constexpr (kRounds) rounding_[odd].add(piece.words[group], scale);
            }
        }
    }

    template <typename Visit>
    DG_DEVICE void scan(Visit&& visit) const {
        const u32 blobs = fp4_k_blocks(p_.k);
        for (u32 first = warpgroup_; first < blobs; first += kAhead * kFp4PackWarpgroups) {
            Piece pieces[kAhead][2];
#pragma unroll
            for (u32 i = 0; i < 2 * kAhead; ++i)
                load(pieces[i / 2][i % 2], i % 2, first + i / 2 * kFp4PackWarpgroups);
#pragma unroll
            for (u32 i = 0; i < 2 * kAhead; ++i)
                visit(pieces[i / 2][i % 2], i % 2, first + i / 2 * kFp4PackWarpgroups);
        }
    }

    DG_DEVICE ptx::SharedAddress range_at(u32 warpgroup, u32 row) const {
        return smem_ + kPlan.ranges + (warpgroup * kFp4BlockRows + row) * 8;
    }
    DG_DEVICE ptx::SharedAddress keys_at(u32 warpgroup, u32 row) const {
        return smem_ + kPlan.keys + (warpgroup * kFp4BlockRows + row) * kFp4KeyWords * 4;
    }
    DG_DEVICE ptx::SharedAddress bad_at(u32 warp) const {
        return smem_ + kPlan.bad + warp * 8;
    }
    DG_DEVICE ptx::SharedAddress sums_at(u32 warp) const {
        return smem_ + kPlan.sums + warp * 16;
    }
    DG_DEVICE ptx::SharedAddress rows_at(u32 warp) const {
        return smem_ + kPlan.rows + warp * kFp4RowWords * 4;
    }

    /// What this warp found, to shared memory.
    DG_DEVICE void publish() {
#pragma unroll
        for (u32 odd = 0; odd < 2; ++odd) {
            Range& range = ranges_[odd];
#pragma unroll
            for (u32 mask = 1; mask < 4; mask *= 2)
                range.add(Range{static_cast<i32>(ptx::shfl_bfly_u32(static_cast<u32>(range.low), mask)),
                                static_cast<i32>(ptx::shfl_bfly_u32(static_cast<u32>(range.high), mask))});
            if (quarter_ == odd)
                ptx::st_shared_v2_u32(range_at(warpgroup_, row_ + odd), static_cast<u32>(range.low),
                                      static_cast<u32>(range.high));
        }
        const u32 warp = ptx::thread_index() / ptx::kWarpThreads, bad = warp_min(bad_);
        u32 mantissas = 0;
        double squares = 0, weights = 0;
        if constexpr (kRounds) {
#pragma unroll
            for (u32 odd = 0; odd < 2; ++odd) {
                const double global = globals_[odd];
                mantissas |= rounding_[odd].mantissas;
                squares += rounding_[odd].squares * kSquaresUnit * global * global;
                weights += rounding_[odd].weights * kWeightsUnit * global * global;
            }
#pragma unroll
            for (u32 mask = 16; mask > 0; mask /= 2) mantissas |= ptx::shfl_bfly_u32(mantissas, mask);
            squares = warp_sum(squares);
            weights = warp_sum(weights);
        }
        if (ptx::lane_index() != 0) return;
        ptx::st_shared_b32(bad_at(warp), bad);
        ptx::st_shared_b32(bad_at(warp) + 4, mantissas);
        ptx::st_shared_u64(sums_at(warp), __builtin_bit_cast(u64, squares));
        ptx::st_shared_u64(sums_at(warp) + 8, __builtin_bit_cast(u64, weights));
    }

    /// This thread's row is one of its two: an even thread of four has the even one.
    DG_DEVICE u32 odd() const {
        return quarter_ % 2;
    }
    DG_DEVICE Range range_of_row() const {
        Range range;
#pragma unroll
        for (u32 group = 0; group < kFp4PackWarpgroups; ++group) {
            const ptx::UInt2 v = ptx::ld_shared_v2_u32(range_at(group, row_ + odd()));
            range.add(Range{static_cast<i32>(v.x), static_cast<i32>(v.y)});
        }
        return range;
    }
    /// Which keys this warp's rows use, to shared memory: another reading.
    DG_DEVICE void publish_keys() const {
        Keys used[2];
        scan([&](const Piece& piece, u32 odd, u32) {
#pragma unroll
            for (u32 group = 0; group < kGroups; ++group)
                if (fp4_is_scale(F, piece.scales[group]) && !piece.zero(group))
                    used[odd].set(fp4_key_of(F, piece.scales[group]));
        });
#pragma unroll
        for (u32 odd = 0; odd < 2; ++odd)
#pragma unroll
            for (u32 i = 0; i < kFp4KeyWords; ++i) {
                u32 word = used[odd].words[i];
                word |= ptx::shfl_bfly_u32(word, 1);
                word |= ptx::shfl_bfly_u32(word, 2);
                if (quarter_ == odd) ptx::st_shared_b32(keys_at(warpgroup_, row_ + odd) + i * 4, word);
            }
    }
    /// All that it uses where one window may not hold them; else the ends alone, which make the same window.
    DG_DEVICE Keys keys_of_row(const Range& range, bool wide) const {
        Keys keys;
        if (!wide) {
            if (range.high >= 0)
                keys.set(static_cast<u32>(range.low)), keys.set(static_cast<u32>(range.high));
            return keys;
        }
#pragma unroll
        for (u32 group = 0; group < kFp4PackWarpgroups; ++group)
#pragma unroll
            for (u32 i = 0; i < kFp4KeyWords; ++i)
                keys.words[i] |= ptx::ld_shared_b32(keys_at(group, row_ + odd()) + i * 4);
        return keys;
    }

    /// Scope: the first warpgroup, which has all rows.
    DG_DEVICE void report_rows(const Keys& keys) const {
        const bool counts = quarter_ < 2 && there(odd());
        const u32 windows = count_windows<F>(keys);
        u32 first = windows, second = 0;
        if constexpr (!is_nvfp4(F)) {
            constexpr Fp4Form kOther = F == Fp4Form::mx_e4m3 ? Fp4Form::mx_e5m2 : Fp4Form::mx_e4m3;
            const u32 others = count_windows<kOther>(keys);
            first = F == Fp4Form::mx_e4m3 ? windows : others;
            second = F == Fp4Form::mx_e4m3 ? others : windows;
        }
        const i32 highest = keys.highest();
        const u32 octaves =
            highest < 0
                ? 0
                : static_cast<u32>(fp4_octave_of(F, highest) - fp4_octave_of(F, keys.lowest_from(0)) + 1);
        const float global = odd() == 0 ? globals_[0] : globals_[1];
        const bool fits = global >= kFp4SmallestGlobal && global <= kFp4LargestGlobal;
        const u32 words[kFp4RowWords] = {
            warp_max(first > 1 ? first : 1),
            warp_max(second > 1 ? second : 1),
            ptx::count_bits(ptx::ballot(counts && first > 1)),
            ptx::count_bits(ptx::ballot(counts && second > 1)),
            warp_max(octaves),
            warp_min(counts && !fits ? row_ + odd() : kFp4NoneBad),
        };
        if (ptx::lane_index() != 0) return;
#pragma unroll
        for (u32 i = 0; i < kFp4RowWords; ++i)
            ptx::st_shared_b32(rows_at(ptx::thread_index() / ptx::kWarpThreads) + i * 4, words[i]);
    }

    DG_DEVICE void write(Keys& keys) const {
        const u32 entry = p_.runs != nullptr ? ptx::ld_global_u32(p_.runs + block_) : block_ << 8 | 1;
        const u32 first_run = entry >> 8, count = entry & kFp4MaxRuns, blobs = fp4_k_blocks(p_.k);
        const float global = odd() == 0 ? globals_[0] : globals_[1];
        for (u32 run = first_run; run < first_run + count; ++run) {
            const Window mine = pop<F>(keys);
            Fp4Placement place{};
            if (mine.high >= 0) place = fp4_placement(F, mine.low, mine.high, global);
            if (warpgroup_ == 0 && quarter_ < 2)
                ptx::st_global_f32(p_.row_scales + static_cast<u64>(run) * kFp4BlockRows + row_ + odd(),
                                   place.row_scale);
            Window windows[2];
            i32 shifts[2];
#pragma unroll
            for (u32 i = 0; i < 2; ++i) {
                const u32 source = (ptx::lane_index() & ~3u) + i;
                const auto from = [&](i32 value) {
                    return static_cast<i32>(ptx::shfl_idx(static_cast<u32>(value), source));
                };
                windows[i] = {from(mine.low), from(mine.high)};
                shifts[i] = from(place.shift);
            }
            u8* const out = p_.blobs + static_cast<u64>(run) * blobs * fp4_blob_bytes_of(F);
            const u32 turns = ceil_div(blobs, kAhead * kFp4PackWarpgroups);
            for (u32 turn = turns; turn-- > 0;) {
                const u32 first = turn * kAhead * kFp4PackWarpgroups + warpgroup_;
                Piece pieces[kAhead][2];
#pragma unroll
                for (u32 i = 0; i < 2 * kAhead; ++i)
                    load(pieces[i / 2][i % 2], i % 2, first + i / 2 * kFp4PackWarpgroups);
#pragma unroll
                for (u32 i = 0; i < kAhead; ++i)
                    if (const u32 blob = first + i * kFp4PackWarpgroups; blob < blobs)
                        store(out + static_cast<u64>(blob) * fp4_blob_bytes_of(F), pieces[i], windows,
                              shifts);
            }
        }
    }

    DG_DEVICE void store(u8* blob, const Piece (&pieces)[2], const Window (&windows)[2],
                         const i32 (&shifts)[2]) const {
        u32 stored[4] = {};
#pragma unroll
        for (u32 odd = 0; odd < 2; ++odd) {
            u32 words[4];
#pragma unroll
            for (u32 group = 0; group < kGroups; ++group) {
                u32& scale = stored[odd * kGroups + group];
                scale = is_nvfp4(F) ? 0 : fp4_zero_offset_of(F);
                bool inside = false;
                if (!pieces[odd].zero(group)) {
                    const u32 key = fp4_key_of(F, pieces[odd].scales[group]);
                    inside = static_cast<i32>(key) >= windows[odd].low &&
                             static_cast<i32>(key) <= windows[odd].high;
                    if (inside) scale = fp4_stored_scale(F, key, shifts[odd]);
                }
#pragma unroll
                for (u32 i = 0; i < kWords; ++i)
                    words[group * kWords + i] = inside ? fp4_word(pieces[odd].words[group][i]) : 0;
            }
            ptx::st_global_v4_u32(blob + odd * kFp4OddRows + thread_ * 16, words[0], words[1], words[2],
                                  words[3]);
        }
        const u32 bytes = fp4_thread_scales(F, stored);
        if constexpr (F == Fp4Form::mx_e4m3)
            ptx::st_global_b8(blob + kFp4CodeBytes + thread_, bytes);
        else
            ptx::st_global_u16(blob + kFp4CodeBytes + 2 * thread_, static_cast<u16>(bytes));
        if constexpr (is_nvfp4(F)) ptx::st_global_b8(blob + kNvThirdBytes + thread_, bytes >> 16);
    }

    /// Scope: one thread, after all others have published.
    DG_DEVICE Fp4PackRecord record() const {
        Fp4PackRecord all{};
        all.bad_scale = all.bad_global = kFp4NoneBad;
        for (u32 warp = 0; warp < kFp4PackWarps; ++warp) {
            const u32 bad = ptx::ld_shared_b32(bad_at(warp));
            all.bad_scale = bad < all.bad_scale ? bad : all.bad_scale;
            all.mantissas |= ptx::ld_shared_b32(bad_at(warp) + 4);
            all.squares += __builtin_bit_cast(double, ptx::ld_shared_u64(sums_at(warp)));
            all.weights += __builtin_bit_cast(double, ptx::ld_shared_u64(sums_at(warp) + 8));
        }
        const auto at_least = [](u32& value, u32 other) { value = other > value ? other : value; };
        for (u32 warp = 0; warp < 4; ++warp) {
            for (u32 i = 0; i < 2; ++i) {
                at_least(all.runs[i], ptx::ld_shared_b32(rows_at(warp) + i * 4));
                all.rows_beyond[i] += ptx::ld_shared_b32(rows_at(warp) + 8 + i * 4);
            }
            at_least(all.widest, ptx::ld_shared_b32(rows_at(warp) + 16));
            const u32 bad = ptx::ld_shared_b32(rows_at(warp) + 20);
            all.bad_global = bad < all.bad_global ? bad : all.bad_global;
        }
        return all;
    }
    DG_DEVICE void store_record(const Fp4PackRecord& r) const {
        Fp4PackRecord* const out = p_.records + block_;
        ptx::st_global_v4_u32(out, r.runs[0], r.runs[1], r.rows_beyond[0], r.rows_beyond[1]);
        ptx::st_global_v4_u32(&out->widest, r.widest, r.bad_scale, r.bad_global, r.mantissas);
        const u64 squares = __builtin_bit_cast(u64, r.squares), weights = __builtin_bit_cast(u64, r.weights);
        ptx::st_global_v4_u32(&out->squares, static_cast<u32>(squares), static_cast<u32>(squares >> 32),
                              static_cast<u32>(weights), static_cast<u32>(weights >> 32));
    }

    const Fp4PackParams& p_;
    const ptx::SharedAddress smem_ = ptx::dynamic_smem();
    const u32 block_, expert_, first_row_;
    const u32 warpgroup_ = ptx::thread_index() / ptx::kWarpgroupThreads;
    const u32 thread_ = ptx::thread_index() % ptx::kWarpgroupThreads;
    const u32 quarter_ = thread_ % 4, row_ = thread_ / 4 * 2;  // the even row of this thread, in the block
    float globals_[2];
    Range ranges_[2];
    Rounding rounding_[2];
    u32 bad_ = kFp4NoneBad;
};

}  // namespace fp4_pack_detail

template <Fp4PackSpec S>
DG_KERNEL(kFp4PackThreads, 3)
fp4_pack(DG_GRID_CONSTANT const Fp4PackParams p) {
    ptx::grid_dependency_launch();
    ptx::grid_dependency_wait();
    fp4_pack_detail::Block<S>(p, ptx::block_index()).run();
}

}  // namespace deep_gemm
