#include "driver/cuda_module.h"

namespace deep_gemm::driver {

namespace {

constexpr u32 kClusterGenerationSmem = 200 * 1024;  // GPUs with clusters of 16 have more than this

u32 attribute(const cuda::Api& api, cuda::Function function, cuda::FunctionAttribute which) {
    int value = 0;
    api.func_get_attribute(&value, which, function);
    return static_cast<u32>(value);
}

}  // namespace

CudaModule::~CudaModule() {
    // At process exit the driver may be gone already; there is nothing left to unload then.
    if (api_.ctx_push_current.raw(context_) != cuda::kSuccess) return;
    api_.module_unload.raw(module_);
    cuda::Context popped = nullptr;
    api_.ctx_pop_current.raw(&popped);
}

const Kernel& CudaModule::kernel(std::string_view lowered_name) {
    const std::lock_guard lock(mutex_);
    std::string name(lowered_name);
    if (const auto found = kernels_.find(name); found != kernels_.end()) return *found->second;
    auto kernel = load(name);
    return *kernels_.emplace(std::move(name), std::move(kernel)).first->second;
}

std::unique_ptr<CudaKernel> CudaModule::load(const std::string& name) const {
    const CurrentContext scope(api_, context_);
    cuda::Function function = nullptr;
    api_.module_get_function(&function, module_, name.c_str());
    const KernelAttributes attributes{.num_registers = attribute(api_, function, cuda::kNumRegs),
                                      .local_bytes = attribute(api_, function, cuda::kLocalSizeBytes),
                                      .static_smem_bytes = attribute(api_, function, cuda::kSharedSizeBytes)};
    // Once per kernel, not once per launch.
    api_.func_set_attribute(function, cuda::kMaxDynamicSharedSizeBytes,
                            static_cast<int>(max_smem_per_block_ - attributes.static_smem_bytes));
    if (max_smem_per_block_ > kClusterGenerationSmem)
        api_.func_set_attribute(function, cuda::kNonPortableClusterSizeAllowed, 1);
    // NOTE: parameters are handed over one by one. Passed as one buffer, a struct that is aligned to 64 bytes (it holds
    // tensor maps) arrives shifted: the driver does not add the padding the kernel expects before it.
    std::vector<size_t> offsets;
    size_t offset = 0, bytes = 0, end = 0;
    while (offsets.size() < kMaxKernelParams &&
           api_.func_get_param_info.raw(function, offsets.size(), &offset, &bytes) == cuda::kSuccess) {
        offsets.push_back(offset);
        end = offset + bytes;
    }
    return std::make_unique<CudaKernel>(name, function, attributes, std::move(offsets), end);
}

}  // namespace deep_gemm::driver
