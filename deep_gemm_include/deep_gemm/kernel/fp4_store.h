// From accumulators to D in an FP4 GEMM: a thread holds two neighbouring columns of D (two rows of weights)
// for each of its tokens, so that pairs go straight to memory, to whatever row the token's result belongs.
#pragma once

#include <deep_gemm/spec/two_terms.h>
#include <deep_gemm/kernel/fp4_load.h>
#include <deep_gemm/ptx/convert.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm::kernel {

/// The two rows of weights (neighbouring columns of D) of a thread in one item, and their scales.
template <Fp4GemmSpec S>
class Fp4RowPair {
  public:
    DG_DEVICE Fp4RowPair(const Fp4GemmParams& params, const sched::Fp4Item& item, u32 warpgroup)
        : params_(params), item_(item), row_block_(item.n_block * S.warpgroups + warpgroup) {
        in_block_ = ptx::warp_index() % 4 * 16 + ptx::lane_index() / 4 * 2;
        column_ = row_block_ * kFp4BlockRows + in_block_;
        if (!S.split && item.count > 0) load_row_scales(0);
    }

    /// split: the scales of the rows in run `pass` of their block; 0 beyond its last.
    DG_DEVICE void begin_pass(u32 pass) {
        if constexpr (S.split) load_row_scales(pass);
    }

    /// The pair's block of rows has no run for this pass, which others of the item have: its zeros times an
    /// infinity would be NaN, for one batch and not for another.
    DG_DEVICE bool passes_by() const { return S.split && row_scales_.x == 0; }

    /// What a partial sum of row r adds to the sum. With several runs the rows' scales differ between them,
    /// so they come in here; otherwise once at the end, as a token's only scale does.
    DG_DEVICE float promoted(float partial, float token_scale, u32 r) const {
        const float row_scale = r == 0 ? row_scales_.x : row_scales_.y;
        if constexpr (!scales_in_loop(S)) return S.split ? partial * row_scale : partial;
        return partial * (S.split ? token_scale * row_scale : token_scale);
    }
    /// The same of a token's two terms, whose sums are neighbours; of this thread's columns those of tokens
    /// `first` + 4 j + lane % 4, j < count / 4.
    template <u32 count, u32 sums>
    DG_DEVICE void promote_terms(const float (&partial)[count], float (&sum)[sums], u32 first = 0) const {
        constexpr float kLowUnit = 1.0f / (1 << kLowTermShift);
#pragma unroll
        for (u32 i = 0; i < count; i += 2)
            sum[first / 2 + i / 2] +=
                promoted(ptx::fma_rn(partial[i + 1], kLowUnit, partial[i]), 1, i / 2 % 2);
    }
    /// A sum of row r with the scales that have not come in yet. Never one operation with the addition of C:
    /// both kernels round alike. The scale of two terms first: what it leaves is a sum of the token's products.
    DG_DEVICE float finished(float sum, float token_scale, u32 r) const {
        if constexpr (S.token_terms == 2) sum = ptx::mul_rn(sum, token_scale);
        const float scaled = S.split ? sum : ptx::mul_rn(sum, r == 0 ? row_scales_.x : row_scales_.y);
        return S.per_token && S.token_terms == 1 ? ptx::mul_rn(scaled, token_scale) : scaled;
    }

  protected:
    /// Element of D, or of C, in the first of the columns. They come in pairs: n is even, rows start at
    /// multiples of a pair.
    DG_DEVICE u64 element(u32 row) const {
        const u64 group = S.groups == GroupMode::masked ? item_.expert : 0;
        return group * params_.d_stride_group + static_cast<u64>(row) * params_.d_stride_m + column_;
    }
    DG_DEVICE ptx::Float2 load_c(u64 element) const {
        const u8* const c = static_cast<const u8*>(params_.c) + element * bytes_of(S.d);
        if constexpr (S.d == Format::bf16) return {ptx::ld_global_bf16(c), ptx::ld_global_bf16(c + 2)};
        return ptx::ld_global_v2_f32(c);
    }
    DG_DEVICE void store_d(u64 element, float first, float second) const {
        u8* const d = static_cast<u8*>(params_.d) + element * bytes_of(S.d);
        if constexpr (S.d == Format::bf16)
            ptx::st_global_u32(d, ptx::cvt_bf16x2(first, second));
        else
            ptx::st_global_v2_f32(d, first, second);
    }
    DG_DEVICE bool in_a_group(u32 row) const {
        if constexpr (S.groups != GroupMode::contiguous) return true;
        return static_cast<u32>(ptx::ld_global_s32(params_.group_layout + row)) < params_.num_groups;
    }

    static constexpr bool kWritesZeros = S.groups == GroupMode::contiguous || S.groups == GroupMode::psum;

    const Fp4GemmParams& params_;
    const sched::Fp4Item& item_;
    u32 row_block_, in_block_, column_;
    ptx::Float2 row_scales_ = {0, 0};

  private:
    DG_DEVICE void load_row_scales(u32 pass) {
        const bool inside = row_block_ < fp4_row_blocks(params_.n);
        const Fp4Runs runs = fp4_runs<S>(params_, item_.expert, inside ? row_block_ : 0);
        row_scales_ = {0, 0};
        if (inside && pass < runs.count)
            row_scales_ = ptx::ld_global_v2_f32(
                params_.row_scales + static_cast<u64>(runs.first + pass) * kFp4BlockRows + in_block_);
    }
};

/// The row pair and the tokens of a thread. Sum 4 j + 2 r + b belongs to weight row r of its pair and token
/// 8 j + 2 (lane % 4) + b; of two terms, sum 2 j + r to token 4 j + lane % 4.
template <Fp4GemmSpec S, u32 N>
class Fp4Rows : public Fp4RowPair<S> {
    using Pair = Fp4RowPair<S>;

  public:
    using Pair::Pair;

    /// `table`: where each token of the item goes; `scales`: per_token, its scale. Both have landed, if the
    /// item has tokens to compute.
    DG_DEVICE void store(ptx::SharedAddress table, ptx::SharedAddress scales,
                         const float (&sum)[N / 2]) const {
        if (this->column_ >= this->params_.n) return;
        if constexpr (S.token_terms == 2)
            store_sums_of_terms(table, scales, sum);
        else
            store_sums(table, scales, sum);
        if constexpr (Pair::kWritesZeros) {
            for (u32 token = N + ptx::lane_index() % 4; token < this->item_.rows; token += 4)
                store_pair(this->item_.first + token, 0, 0);
        }
    }

  private:
    DG_DEVICE void store_sums(ptx::SharedAddress table, ptx::SharedAddress scales,
                              const float (&sum)[N / 2]) const {
        const u32 first = ptx::lane_index() % 4 * 2;
#pragma unroll
        for (u32 j = 0; j < N / 8; ++j) {
            const u32 token = j * 8 + first;
            const ptx::UInt2 to = rows_of(table, token);
            ptx::Float2 scale = {1, 1};
            if constexpr (S.per_token) {
                if (this->item_.count > 0) scale = ptx::ld_shared_v2_f32(scales + token * 4);
            }
            store_one(token, to.x, scale.x, sum[j * 4], sum[j * 4 + 2]);
            store_one(token + 1, to.y, scale.y, sum[j * 4 + 1], sum[j * 4 + 3]);
        }
    }

    DG_DEVICE void store_sums_of_terms(ptx::SharedAddress table, ptx::SharedAddress scales,
                                       const float (&sum)[N / 2]) const {
#pragma unroll
        for (u32 j = 0; j < N / 4; ++j) {
            const u32 token = j * 4 + ptx::lane_index() % 4;
            u32 row = this->item_.first + token;
            if constexpr (has_row_table(S)) {
                if (this->params_.d_rows != nullptr) row = ptx::ld_shared_u32(table + token * 4);
            }
            const float scale = this->item_.count > 0 ? ptx::ld_shared_f32(scales + token * 4) : 1;
            store_one(token, row, scale, sum[j * 2], sum[j * 2 + 1]);
        }
    }

    /// Of two neighbouring tokens.
    DG_DEVICE ptx::UInt2 rows_of(ptx::SharedAddress table, u32 token) const {
        if constexpr (has_row_table(S)) {
            if (this->params_.d_rows != nullptr) return ptx::ld_shared_v2_u32(table + token * 4);
        }
        return {this->item_.first + token, this->item_.first + token + 1};
    }

    DG_DEVICE void store_one(u32 token, u32 row, float scale, float first, float second) const {
        if (token >= this->item_.rows) return;
        if constexpr (has_row_table(S)) {
            if (row >= this->params_.d_num_rows) return;
        }
        const bool computed = token < this->item_.count && this->in_a_group(row);
        store_pair(row, computed ? this->finished(first, scale, 0) : 0,
                   computed ? this->finished(second, scale, 1) : 0);
    }

    DG_DEVICE void store_pair(u32 row, float first, float second) const {
        const u64 element = this->element(row);
        if constexpr (S.accumulate) {
            const ptx::Float2 c = this->load_c(element);
            first += c.x;
            second += c.y;
        }
        this->store_d(element, first, second);
    }
};

}  // namespace deep_gemm::kernel
