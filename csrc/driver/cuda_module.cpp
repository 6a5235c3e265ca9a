#include "driver/cuda_module.h"

namespace deep_gemm::driver {

namespace {

constexpr u32 kClusterGenerationSmem = 200 * 1024;  // GPUs with clusters of 16 have more than this

u32 attribute(const cuda::Api& api, cuda::Function function, cuda::FunctionAttribute which) {
    int value = 0;
    api.func_get_attribute(&value, which, function);
    return static_cast<u32>(value);
}

struct ParamLayout {
    std::vector<size_t> offsets;
    size_t bytes = 0;
};

// Where the parameters of a kernel lie in a launch's buffer, which is laid out like a C struct from offset 0.
// The driver tells offsets in the constant bank, where parameters start at `bank_base`: not a multiple of 64,
// so a struct that holds tensor maps (64-byte aligned) is shifted there, and the buffer cannot be handed over
// as it is. Alignments are read off the gaps; a parameter of a multiple of 64 bytes that lies on one is taken
// to be 64-byte aligned.
ParamLayout param_layout(const cuda::Api& api, cuda::Function function, size_t bank_base) {
    constexpr size_t kMapAlignment = 64;
    ParamLayout layout;
    size_t offset = 0, bytes = 0, previous_end = 0;
    while (layout.offsets.size() < kMaxKernelParams &&
           api.func_get_param_info.raw(function, layout.offsets.size(), &offset, &bytes) == cuda::kSuccess) {
        size_t alignment = 1;
        if (bytes % kMapAlignment == 0 && (bank_base + offset) % kMapAlignment == 0)
            alignment = kMapAlignment;
        while (alignment < kMapAlignment &&
               align_up(u64{bank_base + previous_end}, u64{alignment}) != bank_base + offset)
            alignment *= 2;
        const size_t position = align_up(u64{layout.bytes}, u64{alignment});
        layout.offsets.push_back(position);
        layout.bytes = position + bytes;
        previous_end = offset + bytes;
    }
    return layout;
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
    const AllowedInCapture allowed(api_);
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
    auto [offsets, bytes] = param_layout(api_, function, constant_bank_params_);
    return std::make_unique<CudaKernel>(name, function, attributes, std::move(offsets), bytes);
}

}  // namespace deep_gemm::driver
