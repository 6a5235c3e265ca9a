#include "op/gemm_kernel.h"

#include "jit/cache.h"

#include <vector>

namespace deep_gemm::op {

namespace {

jit::KernelId kernel_of(const GemmSpec& spec) {
    const bool fp8 = spec.ab == Format::fp8_e4m3;
    if (spec.swap_ab)
        return {fp8 ? "sm90_fp8_gemm_swap_ab" : "sm90_bf16_gemm_swap_ab",
                "deep_gemm/kernel/sm90_gemm_swap_ab.cuh"};
    return {fp8 ? "sm90_fp8_gemm_nt" : "sm90_bf16_gemm_nt", "deep_gemm/kernel/sm90_gemm.cuh"};
}

}  // namespace

plan::GemmProblem problem_of(std::string_view text) {
    plan::GemmProblem problem = plan::parse_problem(text);
    if (problem.num_sms == 0) problem.num_sms = settings().num_sms;
    return problem;
}

jit::KernelSource source_of(const GemmSpec& spec) {
    return jit::source_for<GemmParams>(kernel_of(spec), spec);
}

LoadedKernel load_gemm_kernel(driver::Device& device, const GemmSpec& spec) {
    jit::LoadedKernel loaded = jit::load(device, source_of(spec));
    return {.kernel = loaded.kernel, .keep_alive = std::move(loaded.module)};
}

void build_gemm_kernels(driver::Device& device, std::span<const GemmSpec> specs,
                        const WarmupProgress& progress) {
    std::vector<jit::KernelSource> sources;
    for (const GemmSpec& spec : specs) sources.push_back(source_of(spec));
    jit::warmup(device, sources, [&progress](const jit::Progress& step) {
        if (progress) progress(step.done, step.total, step.name);
    });
}

}  // namespace deep_gemm::op
