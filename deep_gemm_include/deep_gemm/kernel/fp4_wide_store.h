// From accumulators to D in the wide FP4 GEMM. Each item comes with a table of the rows of D that its tokens
// go to (kernel/fp4_wide_load.h), so that nobody waits for an index between stores.
#pragma once

#include <deep_gemm/kernel/fp4_store.h>
#include <deep_gemm/kernel/fp4_wide_load.h>
#include <deep_gemm/ptx/predicated.h>

namespace deep_gemm::kernel {

/// The row pair and the tokens of a thread. Sum 4 j + 2 r + b belongs to weight row r of its pair and token
/// 8 j + 2 (lane % 4) + b; of two terms, sum 2 j + r to token 4 j + lane % 4.
template <Fp4GemmSpec S>
class Fp4WideRows : public Fp4RowPair<S> {
    using Pair = Fp4RowPair<S>;

  public:
    using Pair::Pair;

    /// `table`: where each token of the item goes; `scales`: per_token, its scale.
    template <u32 N>
    DG_DEVICE void store(ptx::SharedAddress table, ptx::SharedAddress scales,
                         const float (&sum)[N / 2]) const {
        if (this->column_ >= this->params_.n) return;
        const u32 rows = this->item_.rows;
        if constexpr (S.token_terms == 2)
            store_sums_of_terms<N>(table, scales, sum);
        else
            store_sums<N>(table, scales, sum);
        if constexpr (Pair::kWritesZeros) store_zeros<N>(rows);
    }

  private:
    template <u32 N>
    DG_DEVICE void store_sums(ptx::SharedAddress table, ptx::SharedAddress scales,
                              const float (&sum)[N / 2]) const {
        const u32 first = ptx::lane_index() % 4 * 2, rows = this->item_.rows;
#pragma unroll
        for (u32 j = 0; j < N / 8; ++j) {
            const u32 token = j * 8 + first;
            const ptx::UInt2 to = rows_of(table, token);
            ptx::Float2 scale = {1, 1};
            if constexpr (S.per_token) scale = ptx::ld_shared_v2_f32(scales + token * 4);
            store_one(token < rows, to.x, this->finished(sum[j * 4], scale.x, 0),
                      this->finished(sum[j * 4 + 2], scale.x, 1));
            store_one(token + 1 < rows, to.y, this->finished(sum[j * 4 + 1], scale.y, 0),
                      this->finished(sum[j * 4 + 3], scale.y, 1));
        }
    }

    template <u32 N>
    DG_DEVICE void store_sums_of_terms(ptx::SharedAddress table, ptx::SharedAddress scales,
                                       const float (&sum)[N / 2]) const {
#pragma unroll
        for (u32 j = 0; j < N / 4; ++j) {
            const u32 token = j * 4 + ptx::lane_index() % 4;
            u32 row = this->item_.first + token;
            if constexpr (has_row_table(S)) row = ptx::ld_shared_u32(table + token * 4);
            const float scale = ptx::ld_shared_f32(scales + token * 4);
            store_one(token < this->item_.rows, row, this->finished(sum[j * 2], scale, 0),
                      this->finished(sum[j * 2 + 1], scale, 1));
        }
    }

    DG_DEVICE ptx::UInt2 rows_of(ptx::SharedAddress table, u32 token) const {
        if constexpr (has_row_table(S)) return ptx::ld_shared_v2_u32(table + token * 4);
        return {this->item_.first + token, this->item_.first + token + 1};
    }

    DG_DEVICE void store_one(bool wanted, u32 row, float first, float second) const {
        if constexpr (S.groups == GroupMode::gathered) wanted = (row & kFp4ZeroRow) == 0;
        if constexpr (Pair::kWritesZeros) {
            if (row & kFp4ZeroRow) first = second = 0;
            row &= ~kFp4ZeroRow;
        }
        const u64 element = this->element(row);
        if constexpr (S.accumulate) {
            const ptx::Float2 c = wanted ? this->load_c(element) : ptx::Float2{0, 0};
            first += c.x;
            second += c.y;
        }
        u8* const d = static_cast<u8*>(this->params_.d) + element * bytes_of(S.d);
        if constexpr (S.d == Format::bf16)
            ptx::st_global_u32_if(wanted, d, ptx::cvt_bf16x2(first, second));
        else
            ptx::st_global_v2_f32_if(wanted, d, first, second);
    }

    /// Tokens beyond the columns: of no group. They are never gathered.
    template <u32 N>
    DG_DEVICE void store_zeros(u32 count) const {
        for (u32 token = N + ptx::lane_index() % 4; token < count; token += 4) {
            const u64 element = this->element(this->item_.first + token);
            ptx::Float2 c = {0, 0};
            if constexpr (S.accumulate) c = this->load_c(element);
            this->store_d(element, c.x, c.y);
        }
    }
};

}  // namespace deep_gemm::kernel
