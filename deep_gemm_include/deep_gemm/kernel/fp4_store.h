// From accumulators to D in an FP4 GEMM: a thread holds two neighbouring columns of D (two rows of weights)
// for each of its tokens, so that pairs go straight to memory, to whatever row the token's result belongs.
#pragma once

#include <deep_gemm/kernel/fp4_load.h>
#include <deep_gemm/ptx/convert.h>

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

    /// What a partial sum of row r adds to the sum. With several runs the rows' scales differ between them,
    /// so they come in here; otherwise once at the end, as a token's only scale does.
    DG_DEVICE float promoted(float partial, float token_scale, u32 r) const {
        const float row_scale = r == 0 ? row_scales_.x : row_scales_.y;
        if constexpr (!scales_in_loop(S)) return S.split ? partial * row_scale : partial;
        return partial * (S.split ? token_scale * row_scale : token_scale);
    }
    /// A sum of row r with the scales that have not come in yet. Never one operation with the addition of C:
    /// both kernels round alike.
    DG_DEVICE float finished(float sum, float token_scale, u32 r) const {
        const float scaled = S.split ? sum : ptx::mul_rn(sum, r == 0 ? row_scales_.x : row_scales_.y);
        return S.per_token ? ptx::mul_rn(scaled, token_scale) : scaled;
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

/// The row pair and the tokens of a thread. Accumulator 4 j + 2 r + b belongs to weight row r of its pair and
/// token 8 j + 2 (lane % 4) + b.
template <Fp4GemmSpec S, u32 N>
class Fp4Rows : public Fp4RowPair<S> {
    using Pair = Fp4RowPair<S>;

  public:
    DG_DEVICE Fp4Rows(const Fp4GemmParams& params, const sched::Fp4Item& item, u32 warpgroup)
        : Pair(params, item, warpgroup) {
        if constexpr (kEarlyRows) {
#pragma unroll
            for (u32 i = 0; i < N / 4; ++i) {
                d_rows_[i] = d_row(token_of(i));
                if constexpr (S.per_token) scales_[i] = scale_of(token_of(i));
            }
        }
    }

    DG_DEVICE void store(const float (&sum)[N / 2]) const {
        if (this->column_ >= this->params_.n) return;
        const sched::Fp4Item& item = this->item_;
#pragma unroll
        for (u32 i = 0; i < N / 4; ++i) {
            const u32 token = token_of(i);
            if (token >= item.rows) continue;
            const u32 row = kEarlyRows ? d_rows_[i] : d_row(token);
            float first = 0, second = 0;
            if (token < item.count && this->in_a_group(row)) {
                const u32 at = i / 2 * 4 + i % 2;
                float scale = 1;
                if constexpr (S.per_token) scale = kEarlyRows ? scales_[i] : scale_of(token);
                first = this->finished(sum[at], scale, 0);
                second = this->finished(sum[at + 2], scale, 1);
            }
            store_pair(row, first, second);
        }
        if constexpr (Pair::kWritesZeros) {
            for (u32 token = N + ptx::lane_index() % 4; token < item.rows; token += 4)
                store_pair(d_row(token), 0, 0);
        }
    }

  private:
    static constexpr bool kEarlyRows = S.groups == GroupMode::gathered && N <= kFp4OverlapColumns;

    static DG_DEVICE u32 token_of(u32 i) {
        return i / 2 * 8 + ptx::lane_index() % 4 * 2 + i % 2;
    }

    DG_DEVICE u32 d_row(u32 token) const {
        const u32 slot = this->item_.first + token;
        if constexpr (S.groups == GroupMode::gathered) {
            if (this->params_.d_rows != nullptr && token < this->item_.count)
                return static_cast<u32>(ptx::ld_global_s32(this->params_.d_rows + slot));
        }
        return slot;
    }

    DG_DEVICE float scale_of(u32 token) const {
        if (token >= this->item_.count) return 0;
        u32 row = this->item_.first + token;
        if constexpr (S.groups == GroupMode::gathered) {
            if (this->params_.a_rows != nullptr)
                row = static_cast<u32>(ptx::ld_global_s32(this->params_.a_rows + row));
        }
        const u64 group = S.groups == GroupMode::masked ? this->item_.expert : 0;
        return ptx::ld_global_f32(this->params_.scale_a + group * this->params_.scale_a_stride_group +
                                  static_cast<u64>(row) * this->params_.scale_a_stride_m);
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

    u32 d_rows_[kEarlyRows ? N / 4 : 1];
    float scales_[kEarlyRows && S.per_token ? N / 4 : 1];
};

}  // namespace deep_gemm::kernel
