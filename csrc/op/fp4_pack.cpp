#include "op/fp4_pack.h"

#include "base/error.h"
#include "op/fp4_windows.h"
#include "op/nvfp4_rounding.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

namespace deep_gemm::op {

namespace {

class Packer {
  public:
    // `forms`: to choose from; all have groups of one size.
    Packer(const Fp4Shape& shape, std::span<const u8> codes, std::span<const u8> scales,
           std::span<const float> globals, std::span<const Fp4Form> forms)
        : shape_(shape),
          codes_(codes.data()),
          scales_(scales.data()),
          globals_(globals.data()),
          forms_(forms),
          group_(fp4_group_of(forms[0])),
          groups_(shape.k / group_),
          blocks_(fp4_row_blocks(shape.n)),
          used_(static_cast<size_t>(shape.experts) * shape.n) {}

    PackedFp4 pack() {
        scan();
        PackedFp4 packed;
        packed.shape = shape_;
        std::vector<std::vector<u32>> runs;
        for (const Fp4Form form : forms_) runs.push_back(runs_of_blocks(form));
        const Fp4Choice choice = choose_fp4_form(shape_, forms_, runs);
        packed.form = choice.form;
        packed.report.extra_runs = choice.extra_runs;
        packed.split = choice.extra_runs > 0;
        first_run_ = choice.first_run;
        report(packed.report);
        packed.blobs.resize(choice.blob_bytes);
        packed.row_scales.assign(static_cast<size_t>(first_run_.back()) * kFp4BlockRows, 1.0f);
        if (packed.split) packed.runs = choice.table();
        std::vector<NvRounding> rounding(first_run_.size() - 1);
        parallel(rounding.size(), [&](size_t block) { pack_block(packed, block, rounding[block]); });
        NvRounding sums;
        for (const NvRounding& block : rounding) sums.add(block);
        packed.report.worst_error = sums.worst;
        packed.report.rms_error = sums.weights > 0 ? std::sqrt(sums.squares / sums.weights) : 0;
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
        return codes_ + (row * groups_ + group) * (group_ / 2);
    }
    // Codes or scale: nothing of the group needs a place.
    bool is_zero(size_t row, u32 group) const {
        if (is_nvfp4(forms_[0]) && scales_[row * groups_ + group] == 0) return true;
        const u8* const codes = group_codes(row, group);
        u64 any = 0;
        for (u32 i = 0; i < group_ / 16; ++i) {
            u64 sixteen;
            std::memcpy(&sixteen, codes + i * 8, 8);
            any |= sixteen;
        }
        return (any & 0x7777777777777777) == 0;
    }

    void scan() {
        const size_t count = used_.size() * groups_;
        const u8* const bad =
            std::find_if(scales_, scales_ + count, [&](u8 scale) { return !fp4_is_scale(forms_[0], scale); });
        const size_t at = static_cast<size_t>(bad - scales_);
        if (at != count) refuse_fp4_scale(shape_, forms_[0], at, *bad);
        parallel(used_.size(), [&](size_t row) {
            for (u32 group = 0; group < groups_; ++group)
                if (!is_zero(row, group))
                    used_[row].set(fp4_key_of(forms_[0], scales_[row * groups_ + group]));
        });
    }

    void report(Fp4PackReport& report) const {
        report.rows = used_.size();
        const auto beyond = [&](Fp4Form form) {
            return static_cast<u64>(std::count_if(used_.begin(), used_.end(), [&](const ScaleKeys& used) {
                return windows_of(form, used).size() > 1;
            }));
        };
        for (const ScaleKeys& used : used_)
            report.widest = std::max(report.widest, octaves_of(forms_[0], used));
        if (is_nvfp4(forms_[0])) {
            report.rows_beyond_window = beyond(forms_[0]);
        } else {
            report.rows_beyond_e4m3 = beyond(Fp4Form::mx_e4m3);
            report.rows_beyond_e5m2 = beyond(Fp4Form::mx_e5m2);
        }
    }

    std::vector<u32> runs_of_blocks(Fp4Form form) const {
        std::vector<u32> counts(static_cast<size_t>(shape_.experts) * blocks_, 1);
        for (size_t row = 0; row < used_.size(); ++row) {
            u32& count = counts[row / shape_.n * blocks_ + row % shape_.n / kFp4BlockRows];
            count = std::max(count, static_cast<u32>(windows_of(form, used_[row]).size()));
        }
        return counts;
    }

    // The byte of scales where there are no weights.
    static u32 scale_of_nothing(Fp4Form form) {
        if (is_nvfp4(form)) return 0;
        return fp4_zero_offset_of(form) * (fp4_scale_bytes_of(form) == 1 ? 0x11 : 1);
    }

    void pack_block(PackedFp4& packed, size_t block, NvRounding& rounding) const {
        const Fp4Form form = packed.form;
        const u32 num_k = fp4_k_blocks(shape_.k), blob_bytes = fp4_blob_bytes_of(form);
        const size_t run_bytes = static_cast<size_t>(num_k) * blob_bytes;
        const u32 first_row = static_cast<u32>(block % blocks_) * kFp4BlockRows;
        u8* const blobs = packed.blobs.data() + first_run_[block] * run_bytes;
        // Everything zero, then the groups that are there.
        for (u32 run = 0; run < first_run_[block + 1] - first_run_[block]; ++run)
            for (u32 kb = 0; kb < num_k; ++kb)
                std::memset(blobs + run * run_bytes + kb * blob_bytes + kFp4CodeBytes,
                            static_cast<int>(scale_of_nothing(form)), blob_bytes - kFp4CodeBytes);
        for (u32 row = 0; row < kFp4BlockRows && first_row + row < shape_.n; ++row) {
            const size_t source = block / blocks_ * shape_.n + first_row + row;
            const float global = globals_ != nullptr ? globals_[source] : 1.0f;
            const std::vector<ScaleWindow> windows = windows_of(form, used_[source]);
            for (size_t run = 0; run < windows.size(); ++run) {
                const Fp4Placement placement =
                    fp4_placement(form, windows[run].low, windows[run].high, global);
                packed.row_scales[(first_run_[block] + run) * kFp4BlockRows + row] = placement.row_scale;
                pack_row(form, blobs + run * run_bytes, row, source, windows[run], placement.shift);
            }
            if (form == Fp4Form::nv_single) rounding.add(rounding_of(source), static_cast<double>(global));
        }
    }

    // The groups of a row that belong to `window`.
    void pack_row(Fp4Form form, u8* run, u32 row, size_t source, const ScaleWindow& window, i32 shift) const {
        const u32 of_blob = kFp4BlockK / group_;
        for (u32 group = 0; group < groups_; ++group) {
            if (is_zero(source, group)) continue;
            const u32 key = fp4_key_of(form, scales_[source * groups_ + group]);
            if (static_cast<i32>(key) < window.low || static_cast<i32>(key) > window.high) continue;
            const u8* const codes = group_codes(source, group);
            u8* const blob = run + group / of_blob * fp4_blob_bytes_of(form);
            fp4_store_scale(form, blob, row, group % of_blob, fp4_stored_scale(form, key, shift));
            u8* const words = blob + fp4_place(row, group % of_blob * group_).word * 4;
            for (u32 i = 0; i < group_ / 8; ++i) {
                u32 eight;  // the first code in the lowest nibble, as the host is little-endian
                std::memcpy(&eight, codes + i * 4, 4);
                eight = fp4_word(eight);
                std::memcpy(words + i * 4, &eight, 4);
            }
        }
    }

    // In units of the row's global scale.
    NvRounding rounding_of(size_t row) const {
        NvRounding sums;
        for (u32 group = 0; group < groups_; ++group)
            if (const u8 scale = scales_[row * groups_ + group])
                sums.add(nv_rounding_of(group_codes(row, group), scale));
        return sums;
    }

    Fp4Shape shape_;
    const u8* codes_;
    const u8* scales_;
    const float* globals_;  // null: ones
    std::span<const Fp4Form> forms_;
    u32 group_, groups_, blocks_;
    std::vector<ScaleKeys> used_;
    std::vector<u32> first_run_;  // of each (expert, block), and the end
};

}  // namespace

std::span<const Fp4Form> fp4_forms(bool nvfp4, std::optional<Fp4Form> form) {
    DG_CHECK(!form || is_nvfp4(*form) == nvfp4, value, "pack_fp4_weights: form is {}, expected {}",
             name_of(*form),
             nvfp4 ? "nv_single or nv_exact: a global scale is NVFP4's"
                   : "mx_e4m3 or mx_e5m2; NVFP4 weights come with a global scale");
    static_assert(kFp4Forms[0] == Fp4Form::mx_e4m3 && kFp4Forms[1] == Fp4Form::mx_e5m2);
    const std::span forms(kFp4Forms);
    if (!form && !nvfp4) return forms.first(2);
    return forms.subspan(static_cast<size_t>(form.value_or(Fp4Form::nv_single)), 1);
}

Fp4Choice choose_fp4_form(const Fp4Shape& shape, std::span<const Fp4Form> forms,
                          std::span<const std::vector<u32>> runs) {
    Fp4Choice best;
    for (size_t i = 0; i < forms.size(); ++i) {
        u64 sum = 0;
        for (const u32 count : runs[i]) sum += count;
        const u64 bytes = sum * fp4_k_blocks(shape.k) * fp4_blob_bytes_of(forms[i]);
        if (bytes >= best.blob_bytes) continue;
        best = {.form = forms[i], .blob_bytes = bytes, .extra_runs = sum - runs[i].size(), .first_run = {0}};
        DG_CHECK(sum < (1u << 24), value,
                 "pack_fp4_weights: {} blocks of 64 rows, expected below 2^24; pack fewer experts at a time",
                 sum);
        for (const u32 count : runs[i]) best.first_run.push_back(best.first_run.back() + count);
    }
    return best;
}

std::vector<u32> Fp4Choice::table() const {
    std::vector<u32> table;
    for (size_t i = 0; i + 1 < first_run.size(); ++i)
        table.push_back(first_run[i] << 8 | (first_run[i + 1] - first_run[i]));
    return table;
}

void refuse_fp4_scale(const Fp4Shape& shape, Fp4Form form, u64 index, u8 scale) {
    const u64 groups = shape.k / fp4_group_of(form);
    fail(ErrorKind::value,
         "pack_fp4_weights: the scale of expert {}, row {}, group {} is {} ({}), expected 0 to {}; repair "
         "the checkpoint",
         index / groups / shape.n, index / groups % shape.n, index % groups, scale,
         (scale & 0x7f) == 0x7f ? "NaN" : "a negative number", is_nvfp4(form) ? kNvLargestScale : 254);
}

void refuse_fp4_global(const Fp4Shape& shape, u64 row, float global) {
    fail(ErrorKind::value,
         "pack_fp4_weights: the global scale of expert {}, row {} is {}, expected 2^-100 to 2^100; it is 1 "
         "for a matrix of zeros",
         row / shape.n, row % shape.n, global);
}

PackedFp4 pack_fp4(const Fp4Shape& shape, std::span<const u8> codes, std::span<const u8> scales,
                   std::optional<Fp4Form> form, std::span<const float> globals) {
    const bool nvfp4 = !globals.empty();
    const std::span<const Fp4Form> forms = fp4_forms(nvfp4, form);
    const u32 group = fp4_group_of(forms[0]);
    DG_CHECK(shape.k > 0 && shape.k % group == 0, value,
             "pack_fp4_weights: k is {}, expected a positive multiple of {}; pad the weights with zeros",
             shape.k, group);
    const u64 rows = static_cast<u64>(shape.experts) * shape.n;
    DG_CHECK(
        codes.size() == rows * shape.k / 2 && scales.size() == rows * (shape.k / group), value,
        "pack_fp4_weights: {} bytes of codes and {} scales, expected {} and {}; pass those of one tensor",
        codes.size(), scales.size(), rows * shape.k / 2, rows * (shape.k / group));
    DG_CHECK(!nvfp4 || globals.size() == rows, value,
             "pack_fp4_weights: {} global scales, expected {}, one for each row; repeat them", globals.size(),
             rows);
    for (size_t row = 0; row < globals.size(); ++row)
        if (!(globals[row] >= kFp4SmallestGlobal && globals[row] <= kFp4LargestGlobal))
            refuse_fp4_global(shape, row, globals[row]);
    return Packer(shape, codes, scales, globals, forms).pack();
}

}  // namespace deep_gemm::op
