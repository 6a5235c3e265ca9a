// From accumulators to D for the kernel whose tokens are rows of wgmma: blank invalid rows, add C, convert,
// stage in shared memory in 128-byte swizzled columns, store by TMA (which drops what lies outside D). C
// comes by TMA into the staging buffer, in the order in which D leaves it.
//
//   accumulator i of lane l, warp w of the warpgroup:   row 16 w + l / 4 + 8 * (i / 2 % 2)
//                                                       column 8 * (i / 4) + 2 * (l % 4) + i % 2
//   staging of one 64-row wave: [columns / atom][64 rows][128 bytes], 16-byte chunk c of row r at c ^ (r % 8)
#pragma once

#include <deep_gemm/sched/gemm_blocks.h>
#include <deep_gemm/tile/gemm_smem.h>
#include <deep_gemm/ptx/copy.h>
#include <deep_gemm/ptx/ldmatrix.h>
#include <deep_gemm/ptx/narrow.h>

namespace deep_gemm::kernel {

template <GemmSpec S>
DG_DEVICE bool row_is_valid(const GemmParams& p, const sched::Block& block, u32 row) {
    if constexpr (S.groups == GroupMode::contiguous)
        return row < p.m && static_cast<u32>(ptx::ld_global_s32(p.group_layout + row)) < p.num_groups;
    return row < block.rows_end;
}

/// Groups of a thread's two rows of a 64-row wave, for contiguous groups; the other modes keep no register
/// for it. Loaded a block before they are used: a load in flight cannot pass the entry of the
/// multiplication's loop.
template <GemmSpec S>
struct WaveGroups {
    u32 group[S.groups == GroupMode::contiguous ? 2 : 1];

    DG_DEVICE void load(const GemmParams& p, u32 first_row) {
        if constexpr (S.groups == GroupMode::contiguous) {
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                const u32 row = wave_row(first_row, half);
                group[half] =
                    static_cast<u32>(ptx::ld_global_s32(p.group_layout + (row < p.m ? row : p.m - 1)));
            }
        }
    }
    DG_DEVICE bool valid(const GemmParams& p, const sched::Block& block, u32 row, u32 half) const {
        if constexpr (S.groups == GroupMode::contiguous) return group[half] < p.num_groups;
        return S.groups == GroupMode::dense || row < block.rows_end;
    }
    static DG_DEVICE u32 wave_row(u32 first_row, u32 half) {
        return first_row + ptx::warp_index() % 4 * 16 + ptx::lane_index() / 4 + half * 8;
    }
};

/// Zeroes rows that belong to no group, for one 64-row wave that starts at `first_row`.
template <GemmSpec S, u32 Count>
DG_DEVICE void blank_wave(const GemmParams& p, const sched::Block& block, u32 first_row,
                          const WaveGroups<S>& groups, float (&sum)[Count]) {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const bool valid = groups.valid(p, block, groups.wave_row(first_row, half), half);
#pragma unroll
        for (u32 i = half * 2; i < Count; i += 4) {
            if (!valid) sum[i] = sum[i + 1] = 0;
        }
    }
}

/// Adds the C of a thread's elements at i, i + 1, ..., bf16: what stage_wave() writes to `at`.
template <u32 Count>
DG_DEVICE void add_eight(float (&sum)[Count], u32 i, ptx::SharedAddress at) {
    u32 c[4];
    ptx::ldmatrix_x4(c, at);
#pragma unroll
    for (u32 j = 0; j < 8; ++j) sum[i + j] += j % 2 == 0 ? ptx::bf16_low(c[j / 2]) : ptx::bf16_high(c[j / 2]);
}

/// Writes one 64-row wave into its staging buffer, over C, which it adds: a thread's elements of both are the
/// same.
template <GemmSpec S, u32 Count>
DG_DEVICE void stage_wave(ptx::SharedAddress staging, float (&sum)[Count]) {
    constexpr u32 kAtomBytes = 64 * 128;
    const u32 lane = ptx::lane_index(), warp = ptx::warp_index() % 4;
    if constexpr (S.d == Format::bf16) {
        const u32 row = warp * 16 + lane % 16;
#pragma unroll
        for (u32 i = 0; i < Count; i += 8) {  // 16 columns: two chunks of 8
            const u32 chunk = i / 4 + lane / 16;
            const ptx::SharedAddress at =
                staging + chunk / 8 * kAtomBytes + row * 128 + ((chunk % 8) ^ (row % 8)) * 16;
            if constexpr (S.accumulate) add_eight(sum, i, at);
            ptx::stmatrix_x4(at, ptx::cvt_bf16x2(sum[i], sum[i + 1]), ptx::cvt_bf16x2(sum[i + 2], sum[i + 3]),
                             ptx::cvt_bf16x2(sum[i + 4], sum[i + 5]),
                             ptx::cvt_bf16x2(sum[i + 6], sum[i + 7]));
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < Count; i += 2) {
            const u32 row = warp * 16 + lane / 4 + (i / 2 % 2) * 8;
            const u32 column = i / 4 * 8 + (lane % 4) * 2, chunk = column / 4;
            const ptx::SharedAddress at = staging + chunk / 8 * kAtomBytes + row * 128 +
                                          ((chunk % 8) ^ (row % 8)) * 16 + column % 4 * 4;
            if constexpr (S.accumulate) {
                const ptx::Float2 c = ptx::ld_shared_v2_f32(at);
                sum[i] += c.x;
                sum[i + 1] += c.y;
            }
            ptx::st_shared_v2_f32(at, sum[i], sum[i + 1]);
        }
    }
}

/// One thread: brings the C of a warpgroup's `waves` into their staging buffers; `full` completes when it is
/// there, with zeros for what lies outside C.
template <GemmSpec S>
DG_DEVICE void load_c_waves(const GemmParams& p, const sched::Block& block, u32 first_row, u32 waves,
                            ptx::SharedAddress staging, ptx::SharedAddress full) {
    constexpr u32 kAtomBytes = 64 * 128, kAtomColumns = 128 / bytes_of(S.d),
                  kAtoms = S.block_n / kAtomColumns;
    ptx::mbarrier_arrive_expect_tx(full, waves * kAtoms * kAtomBytes);
    const u64 policy = ptx::l2_evict_first();  // read once
    for (u32 wave = 0; wave < waves; ++wave)
        for (u32 atom = 0; atom < kAtoms; ++atom)
            ptx::tma_load_3d(staging + (wave * kAtoms + atom) * kAtomBytes, p.c, full,
                             block.n + atom * kAtomColumns, first_row + wave * kMmaRows, block.a_group,
                             policy);
}

/// One thread: sends a staged wave to D.
template <GemmSpec S>
DG_DEVICE void store_wave(const GemmParams& p, const sched::Block& block, u32 first_row,
                          ptx::SharedAddress staging) {
    constexpr u32 kAtomBytes = 64 * 128, kAtomColumns = 128 / bytes_of(S.d);
#pragma unroll
    for (u32 atom = 0; atom < S.block_n / kAtomColumns; ++atom) {
        const u32 column = block.n + atom * kAtomColumns;
        if (column < p.n)
            ptx::tma_store_3d(p.d, staging + atom * kAtomBytes, column, first_row, block.a_group);
    }
}

}  // namespace deep_gemm::kernel
