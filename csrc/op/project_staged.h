// Projections of few rows that are normed and rounded on the way (spec/project_staged.h), alone or as part of a launch
// with other operations. The rules of op/model_ops.h hold.
#pragma once

#include "op/launch.h"
#include "op/model_check.h"
#include "op/norm.h"
#include "op/project.h"

#include <deep_gemm/spec/project_staged.h>

#include <optional>

namespace deep_gemm::op {

// y = add + f(x) w^T for matrices that meet the same x.
//   x         bf16 [t, k]
//   weight    normed: real [k] or absent. Like w and w_scale, no launch may write it meanwhile
//   matrices  fp8_e4m3 [n, k] with scales of 128 x 128; they agree in formats
//   add       as for project(), of a single matrix; or absent
struct StagedArguments {
    StagedInput input = StagedInput::rows;
    TensorView x, weight = {};
    std::span<const ProjectMatrix> matrices;
    TensorView add = {};
    float eps = 0;
};
// For at most `blocks` blocks of threads. Nothing where there is no kernel: for more than three rows, or where k is not
// a multiple of 1024 (at most 8192, normed 1024), n not one of 16, or rows of x or w do not start at multiples of 16 bytes.
[[nodiscard]] std::optional<Prepared<ProjectStagedSpec, ProjectStagedParams>> prepare_staged(
    ModelChecks& checks, const StagedArguments& arguments, u32 blocks);
// The same of an RMS norm whose FP8 form is all that is wanted of it. takes_normed(): whether that is the form, and the
// rows are few.
[[nodiscard]] bool takes_normed(const RmsNormArguments& norm);
[[nodiscard]] std::optional<Prepared<ProjectStagedSpec, ProjectStagedParams>> prepare_normed(
    ModelChecks& checks, const RmsNormArguments& norm, std::span<const ProjectMatrix> matrices, u32 blocks);
// Of all SMs.
[[nodiscard]] u32 staged_blocks(const Device& device);
void launch_staged(Device& device, const Prepared<ProjectStagedSpec, ProjectStagedParams>& prepared,
                   void* stream);

}  // namespace deep_gemm::op
