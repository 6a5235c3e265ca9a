#include "op/fp4_pack.h"

#include "base/error.h"

#include <algorithm>
#include <bitset>
#include <cmath>
#include <cstring>
#include <thread>

namespace deep_gemm::op {

namespace {

constexpr u32 kUe8m0Bias = 127;
constexpr u32 kGroupBytes = kFp4Group / 2;
constexpr Fp4Form kForms[] = {Fp4Form::mx_e4m3, Fp4Form::mx_e5m2};

using Exponents = std::bitset<256>;  // UE8M0 values that a row's non-zero groups use

// A stretch of exponents that one run of a row holds: [low, high], both used.
struct Window {
    i32 low, high;
};

bool is_zero(const u8* group) {
    for (u32 i = 0; i < kGroupBytes; ++i)
        if (group[i] & 0x77) return false;
    return true;
}

// From the top down, so that a row with few exponents has one window.
std::vector<Window> windows_of(const Exponents& used, u32 width) {
    std::vector<Window> windows;
    for (i32 e = 255; e >= 0; --e) {
        if (!used[static_cast<size_t>(e)]) continue;
        if (windows.empty() || windows.back().high - e >= static_cast<i32>(width))
            windows.push_back({e, e});
        else
            windows.back().low = e;
    }
    return windows;
}

// The window sits in the middle of what the form holds, where e4m3 and e5m2 are normal, unless row_scale
// would leave fp32.
i32 lowest_offset(Fp4Form form, const Window& window) {
    const i32 room = static_cast<i32>(fp4_exponents_of(form)) - 1 - (window.high - window.low);
    const i32 to_scale = static_cast<i32>(fp4_bias_of(form)) - static_cast<i32>(kUe8m0Bias);
    return std::clamp(room / 2, std::max(0, window.low + to_scale - 127),
                      std::min(room, window.low + to_scale + 126));
}

class Packer {
  public:
    Packer(const Fp4Shape& shape, std::span<const u8> codes, std::span<const u8> scales)
        : shape_(shape),
          codes_(codes.data()),
          scales_(scales.data()),
          groups_(shape.k / kFp4Group),
          blocks_(fp4_row_blocks(shape.n)),
          used_(static_cast<size_t>(shape.experts) * shape.n) {}

    PackedFp4 pack(std::optional<Fp4Form> forced) {
        scan();
        PackedFp4 packed;
        packed.shape = shape_;
        u64 best = ~u64{0};
        for (const Fp4Form form : kForms) {
            if (forced && form != *forced) continue;
            const std::vector<u32> counts = runs_of_blocks(form);
            u64 runs = 0;
            for (const u32 count : counts) runs += count;
            const u64 bytes = runs * fp4_k_blocks(shape_.k) * fp4_blob_bytes_of(form);
            if (bytes >= best) continue;
            best = bytes;
            packed.form = form;
            packed.report.extra_runs = runs - counts.size();
            first_run_.assign(1, 0);
            for (const u32 count : counts) first_run_.push_back(first_run_.back() + count);
        }
        packed.split = packed.report.extra_runs > 0;
        DG_CHECK(first_run_.back() < (1u << 24), value,
                 "pack_fp4_weights: {} blocks of 64 rows, expected below 2^24", first_run_.back());
        report(packed.report);
        packed.blobs.resize(best);
        packed.row_scales.assign(static_cast<size_t>(first_run_.back()) * kFp4BlockRows, 1.0f);
        if (packed.split)
            for (size_t i = 0; i + 1 < first_run_.size(); ++i)
                packed.runs.push_back(first_run_[i] << 8 | (first_run_[i + 1] - first_run_[i]));
        parallel(first_run_.size() - 1, [&](size_t block) { pack_block(packed, block); });
        return packed;
    }

  private:
    template <typename F>
    static void parallel(size_t count, F&& work) {
        const size_t workers =
            std::min<size_t>(count / 64 + 1, std::max(1u, std::thread::hardware_concurrency()));
        std::vector<std::thread> threads;
        const auto part = [&](size_t worker) {
            for (size_t i = count * worker / workers; i < count * (worker + 1) / workers; ++i) work(i);
        };
        for (size_t worker = 1; worker < workers; ++worker) threads.emplace_back(part, worker);
        part(0);
        for (std::thread& thread : threads) thread.join();
    }

    const u8* group_codes(size_t row, u32 group) const {
        return codes_ + (row * groups_ + group) * kGroupBytes;
    }

    void scan() {
        const u8* nan = std::find(scales_, scales_ + used_.size() * groups_, u8{255});
        const size_t at = static_cast<size_t>(nan - scales_);
        DG_CHECK(
            at == used_.size() * groups_, value,
            "pack_fp4_weights: the scale of expert {}, row {}, group {} is 255 (NaN), expected 0 to 254; "
            "repair the checkpoint",
            at / groups_ / shape_.n, at / groups_ % shape_.n, at % groups_);
        parallel(used_.size(), [&](size_t row) {
            for (u32 group = 0; group < groups_; ++group)
                if (!is_zero(group_codes(row, group))) used_[row].set(scales_[row * groups_ + group]);
        });
    }

    void report(Fp4PackReport& report) const {
        report.rows = used_.size();
        for (const Exponents& used : used_) {
            if (used.none()) continue;
            const std::vector<Window> whole = windows_of(used, 256);
            const u32 width = static_cast<u32>(whole[0].high - whole[0].low + 1);
            report.widest = std::max(report.widest, width);
            report.rows_beyond_e4m3 += width > fp4_exponents_of(Fp4Form::mx_e4m3);
            report.rows_beyond_e5m2 += width > fp4_exponents_of(Fp4Form::mx_e5m2);
        }
    }

    std::vector<u32> runs_of_blocks(Fp4Form form) const {
        std::vector<u32> counts(static_cast<size_t>(shape_.experts) * blocks_, 1);
        for (size_t row = 0; row < used_.size(); ++row) {
            u32& count = counts[row / shape_.n * blocks_ + row % shape_.n / kFp4BlockRows];
            count = std::max(count, static_cast<u32>(windows_of(used_[row], fp4_exponents_of(form)).size()));
        }
        return counts;
    }

    void pack_block(PackedFp4& packed, size_t block) const {
        const Fp4Form form = packed.form;
        const u32 num_k = fp4_k_blocks(shape_.k), blob_bytes = fp4_blob_bytes_of(form);
        const size_t run_bytes = static_cast<size_t>(num_k) * blob_bytes;
        const u32 first_row = static_cast<u32>(block % blocks_) * kFp4BlockRows;
        u8* const blobs = packed.blobs.data() + first_run_[block] * run_bytes;
        // Everything zero, then the groups that are there.
        for (u32 run = 0; run < first_run_[block + 1] - first_run_[block]; ++run)
            for (u32 kb = 0; kb < num_k; ++kb) {
                const u32 zero = fp4_zero_offset_of(form);
                std::memset(blobs + run * run_bytes + kb * blob_bytes + kFp4CodeBytes,
                            static_cast<int>(fp4_offset_bytes_of(form) == 1 ? zero * 0x11 : zero),
                            blob_bytes - kFp4CodeBytes);
            }
        for (u32 row = 0; row < kFp4BlockRows && first_row + row < shape_.n; ++row) {
            const size_t source = block / blocks_ * shape_.n + first_row + row;
            const std::vector<Window> windows = windows_of(used_[source], fp4_exponents_of(form));
            for (size_t run = 0; run < windows.size(); ++run) {
                const i32 offset = lowest_offset(form, windows[run]);
                packed.row_scales[(first_run_[block] + run) * kFp4BlockRows + row] =
                    std::ldexp(1.0f, windows[run].low - offset + static_cast<i32>(fp4_bias_of(form)) -
                                         static_cast<i32>(kUe8m0Bias));
                pack_row(form, blobs + run * run_bytes, row, source, windows[run], offset);
            }
        }
    }

    // The groups of a row that belong to `window`.
    void pack_row(Fp4Form form, u8* run, u32 row, size_t source, const Window& window, i32 lowest) const {
        for (u32 group = 0; group < groups_; ++group) {
            const i32 exponent = scales_[source * groups_ + group];
            const u8* codes = group_codes(source, group);
            if (exponent < window.low || exponent > window.high || is_zero(codes)) continue;
            u8* const blob = run + group / 4 * fp4_blob_bytes_of(form);
            const Fp4OffsetPlace at = fp4_offset_place(form, row, group % 4);
            const u32 mask = fp4_offset_bytes_of(form) == 1 ? 0xfu : 0xffu;
            const u32 offset = static_cast<u32>(exponent - window.low + lowest);
            blob[at.byte] = static_cast<u8>((blob[at.byte] & ~(mask << at.bit)) | offset << at.bit);
            u32 words[4] = {};
            const u32 first = group % 4 * kFp4Group;
            for (u32 i = 0; i < kFp4Group; ++i) {
                const u32 code = codes[i / 2] >> (i % 2 * 4) & 0xf;
                const Fp4Place place = fp4_place(row, first + i);
                words[i / 8] |= (code & 7) << place.magnitude_bit | (code >> 3) << place.sign_bit;
            }
            std::memcpy(blob + fp4_place(row, first).word * 4, words, sizeof words);
        }
    }

    Fp4Shape shape_;
    const u8* codes_;
    const u8* scales_;
    u32 groups_, blocks_;
    std::vector<Exponents> used_;
    std::vector<u32> first_run_;  // of each (expert, block), and the end
};

}  // namespace

PackedFp4 pack_fp4(const Fp4Shape& shape, std::span<const u8> codes, std::span<const u8> scales,
                   std::optional<Fp4Form> form) {
    DG_CHECK(shape.k % kFp4Group == 0, value, "pack_fp4_weights: k is {}, expected a multiple of {}", shape.k,
             kFp4Group);
    const u64 rows = static_cast<u64>(shape.experts) * shape.n;
    DG_CHECK(codes.size() == rows * shape.k / 2 && scales.size() == rows * (shape.k / kFp4Group), value,
             "pack_fp4_weights: {} bytes of codes and {} scales, expected {} and {}", codes.size(),
             scales.size(), rows * shape.k / 2, rows * (shape.k / kFp4Group));
    return Packer(shape, codes, scales).pack(form);
}

}  // namespace deep_gemm::op
