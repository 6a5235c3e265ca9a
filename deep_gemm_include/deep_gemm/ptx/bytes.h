// Bytes of registers.
#pragma once

#include <deep_gemm/ptx/base.h>

namespace deep_gemm::ptx {

/// prmt with all four bits of a selector: byte i of the result is the byte of {b, a} that bits 4 i to 4 i + 2
/// of `selector` number, a's first, or eight copies of its sign where bit 4 i + 3 is set. permute_bytes()
/// ignores that bit.
DG_DEVICE u32 permute_bytes_or_signs(u32 a, u32 b, u32 selector) {
    u32 result;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
    return result;
}

}  // namespace deep_gemm::ptx
