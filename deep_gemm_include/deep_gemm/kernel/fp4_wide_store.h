// From accumulators to D in the wide FP4 GEMM. Each item comes with a table of the rows of D that its tokens go
// to (kernel/fp4_wide_load.h), so that nobody waits for an index between stores.
#pragma once

#include <deep_gemm/kernel/fp4_store.h>
#include <deep_gemm/kernel/fp4_wide_load.h>

namespace deep_gemm::kernel {

/// The row pair and the tokens of a thread. Accumulator 4 j + 2 r + b belongs to weight row r of its pair and
/// token 8 j + 2 (lane % 4) + b.
template <Fp4GemmSpec S>
class Fp4WideRows : public Fp4RowPair<S> {
    using Pair = Fp4RowPair<S>;

  public:
    using Pair::Pair;

    /// `table`: where each token of the item goes.
    template <u32 N>
    DG_DEVICE void store(ptx::SharedAddress table, const float (&sum)[N / 2]) const {
        if (this->column_ >= this->params_.n) return;
        const u32 first = ptx::lane_index() % 4 * 2, count = this->item_.rows;
#pragma unroll
        for (u32 j = 0; j < N / 8; j += kTogether) {
            u32 rows[2 * kTogether];
            ptx::Float2 values[2 * kTogether];
#pragma unroll
            for (u32 i = 0; i < 2 * kTogether; ++i) {
                const u32 at = (j + i / 2) * 4 + i % 2, token = (j + i / 2) * 8 + i % 2;
                rows[i] = row_of<N>(table, first, token);
                values[i] = {scaled(sum[at], this->row_scales_.x), scaled(sum[at + 2], this->row_scales_.y)};
                if constexpr (Pair::kWritesZeros) {
                    if (rows[i] & kFp4ZeroRow) values[i] = {0, 0};
                    rows[i] &= ~kFp4ZeroRow;
                }
            }
            if constexpr (S.accumulate) {
#pragma unroll
                for (u32 i = 0; i < 2 * kTogether; ++i) {
                    if (first + (j + i / 2) * 8 + i % 2 >= count) continue;
                    const ptx::Float2 c = this->load_c(this->element(rows[i]));
                    values[i].x += c.x;
                    values[i].y += c.y;
                }
            }
#pragma unroll
            for (u32 i = 0; i < 2 * kTogether; ++i) {
                if (first + (j + i / 2) * 8 + i % 2 < count)
                    this->store_d(this->element(rows[i]), values[i].x, values[i].y);
            }
        }
        if constexpr (Pair::kWritesZeros) store_zeros<N>(count);
    }

  private:
    static constexpr u32 kTogether = 2;  // eights of tokens whose loads of C are in flight at once

    static DG_DEVICE float scaled(float sum, float row_scale) { return S.split ? sum : sum * row_scale; }

    template <u32 N>
    DG_DEVICE u32 row_of(ptx::SharedAddress table, u32 first, u32 token) const {
        if constexpr (has_row_table(S)) return ptx::ld_shared_u32(table + (first + token) * 4);
        return this->item_.first + first + token;
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
