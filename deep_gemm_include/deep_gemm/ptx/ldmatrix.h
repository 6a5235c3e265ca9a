// ldmatrix: 8 x 8 tiles of 16-bit elements from shared memory, as mma.sync takes them.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-instructions-ldmatrix
#pragma once

#include <deep_gemm/ptx/base.h>

namespace deep_gemm::ptx {

/// Four tiles; lanes 8 i to 8 i + 7 give the addresses of the rows of tile i, each at a multiple of 16 bytes.
/// d[i]: elements 2 (lane % 4) and the next of row lane / 4 of tile i. Scope: warp.
DG_DEVICE void ldmatrix_x4(u32 (&d)[4], SharedAddress row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(row)
                 : "memory");
}
/// The same of transposed tiles: d[i] has elements of column lane / 4, rows 2 (lane % 4) and the next.
DG_DEVICE void ldmatrix_x4_trans(u32 (&d)[4], SharedAddress row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(row)
                 : "memory");
}

}  // namespace deep_gemm::ptx
