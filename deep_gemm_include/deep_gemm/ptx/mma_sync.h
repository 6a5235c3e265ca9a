// mma.sync: the warp-wide product of a 16 x 16 and a 16 x 8 tile, on every architecture since sm_80.
#pragma once

#include <deep_gemm/ptx/base.h>

namespace deep_gemm::ptx {

/// mma.m16n8k16, row.col, fp32 += bf16 * bf16. Scope: warp. With g = lane / 4 and c = lane % 4:
/// a[0], a[1]: rows g and g + 8, columns 2c and 2c + 1; a[2], a[3]: the same rows, columns 2c + 8 and 2c + 9;
/// b0, b1: column g, rows 2c, 2c + 1 and 2c + 8, 2c + 9; d: rows g, g, g + 8, g + 8, columns 2c, 2c + 1, 2c,
/// 2c + 1. An element of d depends on its row of a and its column of b only.
DG_DEVICE void mma_m16n8k16_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// The same of f16 elements.
DG_DEVICE void mma_m16n8k16_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// mma.m16n8k32, row.col, s32 = s8 * s8 + c, exact. Scope: warp. With g = lane / 4 and c = lane % 4: a[0],
/// a[1]: rows g and g + 8, columns 4c to 4c + 3; a[2], a[3]: the same rows, columns 16 more; b0, b1: column
/// g, rows 4c to 4c + 3 and 16 more; d as above. Every element of c is `start`.
DG_DEVICE void mma_m16n8k32_s8(u32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, u32 start) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %10, %10, %10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(start));
}

}  // namespace deep_gemm::ptx
