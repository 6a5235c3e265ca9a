// Loading refuses what the real driver would: another architecture's PTX, an image that is not PTX.
#include "emulator/emulated_module.h"

#include "base/error.h"
#include "emulator/ptx/parser.h"

namespace deep_gemm::emulator {

namespace {

std::shared_ptr<const ptx::Module> parse_labelled(std::string_view text, const std::string& label) {
    try {
        return ptx::parse(text);
    } catch (const Error& error) {
        fail(ErrorKind::emulator, "emulator: {}: {}", label, error.what());
    }
}

}  // namespace

EmulatedModule::EmulatedModule(std::span<const std::byte> image, std::string_view label,
                               std::string_view arch, u32 max_smem)
    : label_(label), max_smem_(max_smem) {
    const std::string_view text(reinterpret_cast<const char*>(image.data()), image.size());
    DG_CHECK(text.find(".version") != std::string_view::npos, emulator,
             "emulator: {}: the image is not PTX text; compile with a compute_ target", label_);
    std::shared_ptr<const ptx::Module> module = parse_labelled(text, label_);
    DG_CHECK(module->target == arch, emulator, "emulator: {}: the PTX is for {}, this device is {}", label_,
             module->target, arch);
    image_ = make_image(std::move(module));
}

const driver::Kernel& EmulatedModule::kernel(std::string_view lowered_name) {
    const std::lock_guard lock(mutex_);
    if (const auto found = kernels_.find(lowered_name); found != kernels_.end()) return *found->second;
    const ptx::Function* function = image_->module->find(lowered_name);
    DG_CHECK(function != nullptr && function->is_entry, driver, "emulator: {}: the module has no kernel '{}'",
             label_, lowered_name);
    auto kernel = std::make_unique<EmulatedKernel>(image_, load_program(*image_, *function), max_smem_);
    return *kernels_.emplace(std::string(lowered_name), std::move(kernel)).first->second;
}

}  // namespace deep_gemm::emulator
