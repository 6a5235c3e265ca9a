// From accumulators to D in the wide FP4 GEMM. Each item comes with a table of the rows of D that its tokens
// go to (kernel/fp4_wide_load.h), so that nobody waits for an index between stores. bf16 results pass through
// shared memory, 16 tokens at a time, so that a warpgroup writes whole lines: the 64 rows of weights that it
// has are 128 bytes of D for each token, of which a warp holds 32.
#pragma once

#include <deep_gemm/kernel/fp4_store.h>
#include <deep_gemm/kernel/fp4_wide_load.h>
#include <deep_gemm/ptx/predicated.h>
#include <deep_gemm/ptx/shared_words.h>

namespace deep_gemm::kernel {

/// The row pair and the tokens of a thread. Accumulator 4 j + 2 r + b belongs to weight row r of its pair and
/// token 8 j + 2 (lane % 4) + b.
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
        if constexpr (Pair::kWritesZeros) store_zeros(N, rows);
    }

    /// Whether D has room for the whole block, at addresses that vectors of 16 bytes reach.
    DG_DEVICE bool whole_lines() const {
        const Fp4GemmParams& p = this->params_;
        const u64 bits = reinterpret_cast<u64>(p.d) | p.d_stride_m * 2ull | p.d_stride_group * 2ull;
        return bits % 16 == 0 && (this->row_block_ + 1) * kFp4BlockRows <= p.n;
    }

    /// The same for whole_lines(), through `staging`, kFp4StagingBytes of the warpgroup's own: two buffers,
    /// one of which is filled while the other is read. Only of items with tokens. Scope: warpgroup.
    template <u32 N>
    DG_DEVICE void store_staged(ptx::SharedAddress table, ptx::SharedAddress scales,
                                ptx::SharedAddress staging, u32 warpgroup,
                                const float (&sum)[N / 2]) const {
        constexpr u32 kTurns = N / kTokens;
        const auto sync = [warpgroup] { ptx::named_barrier_sync(1 + warpgroup, kWarpgroup); };
        sync();  // all have read what was in staging before
        stage<N>(staging, scales, 0, sum);
#pragma unroll
        for (u32 turn = 0; turn < kTurns; ++turn) {
            sync();
            const u32 token = ptx::thread_index() % kWarpgroup / kPieces;
            const ptx::UInt4 piece = ptx::ld_shared_v4_u32(staging + turn % 2 * kBufferBytes +
                                                           place(token, ptx::lane_index() % kPieces));
            if (turn + 1 < kTurns) stage<N>(staging, scales, turn + 1, sum);
            store_piece(table, turn * kTokens + token, piece);
        }
        if constexpr (Pair::kWritesZeros) store_zeros(N, this->item_.rows);
    }

    /// An item without tokens: zeros.
    DG_DEVICE void store_nothing() const {
        if constexpr (Pair::kWritesZeros) store_zeros(0, this->item_.rows);
    }

  private:
    static constexpr u32 kTokens = 16, kPieces = 8;  // of a buffer; of 16 bytes, of a token
    static constexpr u32 kBufferBytes = kTokens * kPieces * 16;
    static_assert(2 * kBufferBytes == kFp4StagingBytes);

    /// Of piece `piece` of a buffer's token: pieces trade places so that neither the four tokens of a quad
    /// nor the eight pieces of a token meet in a bank.
    static DG_DEVICE u32 place(u32 token, u32 piece) {
        return token * (kPieces * 16) + ((piece ^ token % 8 / 2 * 2) * 16);
    }

    /// This thread's results for the tokens of a turn, into its buffer.
    template <u32 N>
    DG_DEVICE void stage(ptx::SharedAddress staging, ptx::SharedAddress scales, u32 turn,
                         const float (&sum)[N / 2]) const {
        const u32 first = ptx::lane_index() % 4 * 2;
        const ptx::SharedAddress to = staging + turn % 2 * kBufferBytes + this->in_block_ % 8 * 2;
#pragma unroll
        for (u32 eight = 0; eight < 2; ++eight) {
            const u32 j = turn * 2 + eight;
            ptx::Float2 scale = {1, 1};
            if constexpr (S.per_token) scale = ptx::ld_shared_v2_f32(scales + (j * 8 + first) * 4);
#pragma unroll
            for (u32 b = 0; b < 2; ++b) {
                const float of_token = b == 0 ? scale.x : scale.y;
                ptx::st_shared_u32(to + place(eight * 8 + first + b, this->in_block_ / 8),
                                   ptx::cvt_bf16x2(this->finished(sum[j * 4 + b], of_token, 0),
                                                   this->finished(sum[j * 4 + 2 + b], of_token, 1)));
            }
        }
    }

    /// Eight neighbouring columns of a token.
    DG_DEVICE void store_piece(ptx::SharedAddress table, u32 token, ptx::UInt4 piece) const {
        const Fp4GemmParams& p = this->params_;
        u32 row = this->item_.first + token;
        if constexpr (has_row_table(S)) row = ptx::ld_shared_u32(table + token * 4);
        bool wanted = token < this->item_.rows;
        if constexpr (S.groups == GroupMode::gathered) wanted = (row & kFp4ZeroRow) == 0;
        if constexpr (Pair::kWritesZeros) {
            if (row & kFp4ZeroRow) piece = {0, 0, 0, 0};
            row &= ~kFp4ZeroRow;
        }
        const u32 column = this->row_block_ * kFp4BlockRows + ptx::lane_index() % kPieces * 8;
        ptx::st_global_v4_u32_if(wanted, static_cast<u8*>(p.d) + this->element(row, column) * 2, piece);
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

    /// Tokens from `first` on: of no group. They are never gathered.
    DG_DEVICE void store_zeros(u32 first, u32 count) const {
        for (u32 token = first + ptx::lane_index() % 4; token < count; token += 4) {
            if (this->column_ >= this->params_.n) break;
            const u64 element = this->element(this->item_.first + token);
            ptx::Float2 c = {0, 0};
            if constexpr (S.accumulate) c = this->load_c(element);
            this->store_d(element, c.x, c.y);
        }
    }
};

}  // namespace deep_gemm::kernel
