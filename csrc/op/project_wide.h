// Projections of many rows (spec/project_mma.h): what project() launches for them.
#pragma once

#include "driver/device.h"

#include <deep_gemm/spec/project_mma.h>

#include <span>

namespace deep_gemm::op {

// The parts of `params`, whose blocks are of kWideRows rows, by way of the workspace of the stream: x and w in
// it as 16-bit values, in the order of the products. x_groups: 1, or one for each part.
void project_wide(driver::Device& device, const ProjectMmaSpec& spec, const ProjectMmaParams& params,
                  u32 x_groups, void* stream, std::span<const driver::MemoryRange> memory);

}  // namespace deep_gemm::op
