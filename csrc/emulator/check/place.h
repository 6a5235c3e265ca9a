// Where a fault happened, as one line: kernel, CTA, warp, lane, the PTX line and, with -lineinfo, the source
// line.
#pragma once

#include "emulator/ir/op.h"

namespace deep_gemm::emulator {

struct Place {
    const Program* program = nullptr;
    u32 pc = 0;  // index of the op
    u32 cta[3] = {0, 0, 0};
    u32 warp = 0;
    i32 lane = -1;  // -1: the whole warp
};

// "kernel f, CTA (0,0,0), warp 3, lane 7, PTX line 120: st.shared.u32 [%r1], %r2; (gemm.cuh:63)"
[[nodiscard]] std::string describe(const Place& place);
// "PTX line 120: st.shared.u32 [%r1], %r2; (gemm.cuh:63)"
[[nodiscard]] std::string describe_line(const Program& program, u32 pc);

}  // namespace deep_gemm::emulator
