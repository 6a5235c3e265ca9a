// Loaded images on CUDA: the module, its kernels, and the context they live in.
#pragma once

#include <mutex>
#include <string>
#include <span>
#include <unordered_map>
#include <vector>

#include "driver/cuda_api.h"
#include "driver/device.h"

namespace deep_gemm::driver {

// Makes a context current for a scope; does nothing where it already is (the common case). A thread that had
// none keeps it, as after any call of the CUDA runtime: its next call need not push and pop.
class CurrentContext {
  public:
    CurrentContext(const cuda::Api& api, cuda::Context context) : api_(api) {
        cuda::Context current = nullptr;
        api_.ctx_get_current(&current);
        if (current == context) return;
        api_.ctx_push_current(context);
        pushed_ = current != nullptr;
    }
    ~CurrentContext() {
        cuda::Context popped = nullptr;
        if (pushed_) api_.ctx_pop_current.raw(&popped);
    }
    CurrentContext(const CurrentContext&) = delete;
    CurrentContext& operator=(const CurrentContext&) = delete;

  private:
    const cuda::Api& api_;
    bool pushed_ = false;
};

// For a scope: what a capture of this thread's streams forbids by default, allocating and loading, is
// allowed. Neither becomes part of the graph, and both stay for as long as the process, so that a first call
// may be captured.
class AllowedInCapture {
  public:
    explicit AllowedInCapture(const cuda::Api& api) : api_(api) { api_.thread_exchange_capture_mode(&mode_); }
    ~AllowedInCapture() { api_.thread_exchange_capture_mode.raw(&mode_); }
    AllowedInCapture(const AllowedInCapture&) = delete;
    AllowedInCapture& operator=(const AllowedInCapture&) = delete;

  private:
    const cuda::Api& api_;
    cuda::StreamCaptureMode mode_ = cuda::kCaptureRelaxed;  // then what it was
};

constexpr size_t kMaxKernelParams = 64;

class CudaKernel final : public Kernel {
  public:
    CudaKernel(std::string name, cuda::Function function, KernelAttributes attributes,
               std::vector<size_t> param_offsets, size_t param_bytes)
        : name_(std::move(name)),
          function_(function),
          attributes_(attributes),
          param_offsets_(std::move(param_offsets)),
          param_bytes_(param_bytes) {}
    const std::string& name() const override { return name_; }
    KernelAttributes attributes() const override { return attributes_; }
    [[nodiscard]] cuda::Function function() const { return function_; }
    // Where each parameter lies in the buffer a launch is given, and how long that buffer is at least.
    [[nodiscard]] std::span<const size_t> param_offsets() const { return param_offsets_; }
    [[nodiscard]] size_t param_bytes() const { return param_bytes_; }

  private:
    std::string name_;
    cuda::Function function_;
    KernelAttributes attributes_;
    std::vector<size_t> param_offsets_;
    size_t param_bytes_;
};

class CudaModule final : public Module {
  public:
    // `constant_bank_params`: where kernel parameters start in the constant bank of this architecture.
    CudaModule(const cuda::Api& api, cuda::Context context, u32 max_smem_per_block,
               size_t constant_bank_params, cuda::ModuleHandle module)
        : api_(api),
          context_(context),
          max_smem_per_block_(max_smem_per_block),
          constant_bank_params_(constant_bank_params),
          module_(module) {}
    ~CudaModule() override;

    const Kernel& kernel(std::string_view lowered_name) override;

  private:
    [[nodiscard]] std::unique_ptr<CudaKernel> load(const std::string& name) const;

    const cuda::Api& api_;
    cuda::Context context_;
    u32 max_smem_per_block_;
    size_t constant_bank_params_;
    cuda::ModuleHandle module_;
    std::mutex mutex_;
    std::unordered_map<std::string, std::unique_ptr<CudaKernel>> kernels_;
};

}  // namespace deep_gemm::driver
