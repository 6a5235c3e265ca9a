// Which kernel a spec of the small-batch family is, and its source text.
#pragma once

#include <deep_gemm/spec/gemv.h>

#include "jit/source.h"

namespace deep_gemm::op {

[[nodiscard]] inline jit::KernelId kernel_of(const GemvSpec& spec) {
    if (has_warp_rows(spec)) return {"gemv_q8_rows", "deep_gemm/kernel/gemv_q8_rows.cuh"};
    if (spec.resident && !is_q8(spec)) return {"gemv_resident", "deep_gemm/kernel/gemv_resident.cuh"};
    return is_q8(spec) ? jit::KernelId{"gemv_q8", "deep_gemm/kernel/gemv_q8.cuh"}
                       : jit::KernelId{"gemv", "deep_gemm/kernel/gemv.cuh"};
}

[[nodiscard]] inline jit::KernelSource source_of(const GemvSpec& spec) {
    return jit::source_for<GemvParams>(kernel_of(spec), spec);
}

}  // namespace deep_gemm::op
