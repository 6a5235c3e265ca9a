// From KernelSource to a loaded kernel: memory, then bundles, then the cache folders, then NVRTC. Each kernel
// is built once however many threads and processes ask; the cache is an optimisation, so no failure of it
// fails a call.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "jit/artifact.h"
#include "jit/source.h"

namespace deep_gemm::jit {

struct LoadedKernel {
    const driver::Kernel* kernel = nullptr;
    std::shared_ptr<driver::Module> module;  // the kernel lives as long as it
    Origin origin = Origin::memory;
};

// The kernel on this device; loads and, if nowhere to be found, compiles it. Throws Error(compile) with the
// log, the saved source and the replay line.
[[nodiscard]] LoadedKernel load(driver::Device& device, const KernelSource& source);

// The image alone, without a device; nothing of it stays in memory.
[[nodiscard]] Artifact build(const KernelSource& source, const Target& target);

struct Progress {
    u32 done = 0, total = 0;
    const std::string& name;
    Origin origin;
    double seconds;
};
using ProgressCallback =
    std::function<void(const Progress&)>;  // calls do not overlap, but come from any thread

// Builds all in parallel (threads = 0: one per core), into the cache folder; with a device also loads them
// there. Failures do not stop the others; the first is thrown at the end.
void warmup(driver::Device& device, std::span<const KernelSource> sources,
            const ProgressCallback& progress = {}, u32 threads = 0);
[[nodiscard]] std::vector<Artifact> build_all(std::span<const KernelSource> sources, const Target& target,
                                              const ProgressCallback& progress = {}, u32 threads = 0);

// Bundles: one file with many images, found before any cache folder and without NVRTC.
void write_bundle(const std::string& path, std::span<const KernelSource> sources, const Target& target,
                  const ProgressCallback& progress = {}, u32 threads = 0);
u32 open_bundle(const std::string& path);  // for all later loads of the process; the number of kernels in it

}  // namespace deep_gemm::jit
