// What a warp of the top-k kernel has: its scores' orders in shared memory, later only those that may be
// chosen.
#pragma once

#include <deep_gemm/spec/top_k.h>
#include <deep_gemm/tile/order.h>
#include <deep_gemm/ptx/narrow.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm::top_k_detail {

/// A warp's scores: neighbours, the first of them in shared memory. Loops stay short: straight-line code of a
/// kernel that runs for microseconds costs more to fetch than to run.
template <TopKSpec S>
class Scores {
  public:
    static constexpr u32 kHeld = S.held / S.warps;

    DG_DEVICE Scores(ptx::SharedAddress smem, const float* data, u32 begin, u32 end)
        : orders_(smem + plan_smem(S).orders + ptx::warp_index() * kHeld * 4),
          places_(smem + plan_smem(S).places + ptx::warp_index() * kHeld * 2),
          data_(data),
          begin_(begin),
          end_(end),
          kept_(end - begin < kHeld ? end - begin : kHeld),
          rest_(begin + kept_) {}

    /// `kept` scores that a warp has gathered in the upper half of its memory, in order; their places count
    /// from `begin`.
    DG_DEVICE Scores(ptx::SharedAddress smem, u32 begin, u32 kept) : Scores(smem, nullptr, begin, begin) {
        orders_ += kHalf * 4, places_ += kHalf * 2;
        end_ = rest_ = 0;
        kept_ = kept;
    }
    static constexpr u32 kHalf = kHeld / 2;
    static_assert(kScoresOfPeak == 16, "half a warp");

    DG_DEVICE u32 kept() const { return kept_; }
    DG_DEVICE void put(u32 at, u32 order, u32 place) const {
        ptx::st_shared_u32(orders_ + at * 4, order);
        ptx::st_shared_u16(places_ + at * 2, place);
    }

    /// Takes the warp's orders as they are in shared memory, where others have put them.
    DG_DEVICE void take() const {
#pragma unroll 1
        for (u32 i = ptx::lane_index(); i < kept_; i += 32) ptx::st_shared_u16(places_ + i * 2, i);
        ptx::sync_warp();
    }

    DG_DEVICE bool any_of_lane() const {
        return ptx::lane_index() < kept_;
    }

    /// Fills the warp's shared memory; the largest order a lane saw.
    DG_DEVICE u32 load() {
        constexpr u32 kBatch = 8;  // loads in flight
        u32 largest = 0;
        for (u32 first = ptx::lane_index(); first < kept_; first += kBatch * 32) {
            float v[kBatch];
#pragma unroll
            for (u32 j = 0; j < kBatch; ++j)
                v[j] = first + j * 32 < kept_ ? ptx::ld_global_f32(data_ + begin_ + first + j * 32) : 0.0f;
#pragma unroll
            for (u32 j = 0; j < kBatch; ++j) {
                if (first + j * 32 >= kept_) break;
                const u32 order = tile::order_of(v[j]);
                ptx::st_shared_u32(orders_ + (first + j * 32) * 4, order);
                largest = order > largest ? order : largest;
            }
        }
        ptx::sync_warp();
        return largest;
    }

    /// Forgets what is below `least`: the others move together, in their order.
    DG_DEVICE void keep(u32 least) {
        least_ = least;
        const u32 lane = ptx::lane_index(), held = kept_;
        kept_ = 0;
#pragma unroll 2
        for (u32 base = 0; base < held; base += 32) {
            const u32 order = base + lane < held ? ptx::ld_shared_u32(orders_ + (base + lane) * 4) : 0;
            const bool stays = base + lane < held && order >= least;
            const u32 mask = ptx::ballot(stays), at = kept_ + ptx::popc(mask & ((1u << lane) - 1));
            ptx::sync_warp();  // all have read what the first of them overwrites
            if (stays) {
                ptx::st_shared_u32(orders_ + at * 4, order);
                ptx::st_shared_u16(places_ + at * 2, base + lane);
            }
            kept_ += ptx::popc(mask);
        }
        ptx::sync_warp();
    }

    /// The peaks of the warp's scores, where they are kept: in the upper half of its memory.
    DG_DEVICE u32 peaks() const {
        return ceil_div(end_ - begin_, kScoresOfPeak);
    }

    /// Brings them from `data`; the largest a lane saw.
    DG_DEVICE u32 load_peaks(const u32* data) const {
        constexpr u32 kBatch = 8;  // loads in flight
        const u32 count = peaks();
        data += begin_ / kScoresOfPeak;
        u32 largest = 0;
#pragma unroll 1
        for (u32 first = ptx::lane_index(); first < count; first += kBatch * 32) {
            u32 v[kBatch];
#pragma unroll
            for (u32 j = 0; j < kBatch; ++j)
                v[j] = first + j * 32 < count ? ptx::ld_global_u32(data + first + j * 32) : 0;
#pragma unroll
            for (u32 j = 0; j < kBatch; ++j) {
                if (first + j * 32 >= count) break;
                ptx::st_shared_u32(orders_ + (kHalf + first + j * 32) * 4, v[j]);
                largest = v[j] > largest ? v[j] : largest;
            }
        }
        ptx::sync_warp();
        return largest;
    }

    /// Keeps what reaches `least`, of which only scores under a peak that does are read; whether there was
    /// room for it.
    DG_DEVICE bool collect(u32 least) {
        constexpr u32 kBatch = 8;  // loads in flight, of two peaks each
        const u32 lane = ptx::lane_index(), lower = (1u << lane) - 1, count = peaks();
        const ptx::SharedAddress list = places_ + kHalf * 2;
        u32 chosen = 0;
#pragma unroll 1
        for (u32 first = 0; first < count; first += 32) {
            const u32 peak = first + lane;
            const bool wanted = peak < count && ptx::ld_shared_u32(orders_ + (kHalf + peak) * 4) >= least;
            const u32 mask = ptx::ballot(wanted);
            if (wanted) ptx::st_shared_u16(list + (chosen + ptx::popc(mask & lower)) * 2, peak);
            chosen += ptx::popc(mask);
        }
        ptx::sync_warp();
        least_ = least, kept_ = 0, rest_ = end_;
#pragma unroll 1
        for (u32 first = 0; first < chosen; first += kBatch * 2) {
            float v[kBatch];
            u32 place[kBatch];
#pragma unroll
            for (u32 j = 0; j < kBatch; ++j) {
                const u32 at = first + j * 2 + lane / 16;
                place[j] = end_ - begin_;  // none
                if (at < chosen)
                    place[j] = ptx::ld_shared_u16(list + at * 2) * kScoresOfPeak + lane % kScoresOfPeak;
                v[j] = begin_ + place[j] < end_ ? ptx::ld_global_f32(data_ + begin_ + place[j]) : 0.0f;
            }
#pragma unroll
            for (u32 j = 0; j < kBatch; ++j) {
                const u32 order = tile::order_of(v[j]);
                const bool stays = begin_ + place[j] < end_ && order >= least;
                const u32 mask = ptx::ballot(stays), at = kept_ + ptx::popc(mask & lower);
                kept_ += ptx::popc(mask);
                if (kept_ > kHalf) return false;
                if (stays) put(at, order, place[j]);
            }
        }
        ptx::sync_warp();
        return true;
    }

    /// visit(order, there is such a score, index) in order of indices, for those that keep() left; the whole
    /// warp takes part. Indices only where they are asked for.
    template <bool WithIndex, typename Visit>
    DG_DEVICE void each(Visit&& visit) const {
        const u32 lane = ptx::lane_index();
#pragma unroll 1
        for (u32 i = lane; i - lane < kept_; i += 32) {
            const bool present = i < kept_;
            const u32 index = WithIndex && present ? begin_ + ptx::ld_shared_u16(places_ + i * 2) : 0;
            visit(present ? ptx::ld_shared_u32(orders_ + i * 4) : 0, present, index);
        }
#pragma unroll 1
        for (u32 i = rest_ + lane; i - lane < end_; i += 32) {
            const u32 order = i < end_ ? tile::order_of(ptx::ld_global_f32(data_ + i)) : 0;
            visit(order, i < end_ && order >= least_, i);
        }
    }

  private:
    ptx::SharedAddress orders_, places_;
    const float* data_;  // of the token
    u32 begin_, end_, kept_, rest_, least_ = 0;
};

}  // namespace deep_gemm::top_k_detail
