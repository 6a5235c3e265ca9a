// RMS norm of four columns of a row: the squares that are added up, in their order, and what they become.
#pragma once

#include <deep_gemm/tile/real.h>
#include <deep_gemm/ptx/math.h>

namespace deep_gemm::tile {

/// `sum` and the squares of four columns.
DG_DEVICE float add_squares(const Float4& v, float sum) {
    sum = ptx::fma_rn_f32(v.x, v.x, sum);
    sum = ptx::fma_rn_f32(v.y, v.y, sum);
    sum = ptx::fma_rn_f32(v.z, v.z, sum);
    return ptx::fma_rn_f32(v.w, v.w, sum);
}
/// What the norm of d columns scales them by.
DG_DEVICE float norm_factor(float squares, u32 d, float eps) {
    return 1.0f / ptx::sqrt_rn_f32(squares / static_cast<float>(d) + eps);
}
DG_DEVICE Float4 times(const Float4& v, float factor) {
    return {v.x * factor, v.y * factor, v.z * factor, v.w * factor};
}
DG_DEVICE Float4 times(const Float4& v, const Float4& w) {
    return {v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w};
}

}  // namespace deep_gemm::tile
