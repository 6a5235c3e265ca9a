// Modules and kernels of the emulated GPU. A kernel is decoded when it is first asked for.
#pragma once

#include "driver/device.h"
#include "emulator/exec/loader.h"

#include <map>
#include <mutex>

namespace deep_gemm::emulator {

class EmulatedKernel final : public driver::Kernel {
  public:
    EmulatedKernel(std::shared_ptr<const ModuleImage> image, std::shared_ptr<const Program> program,
                   u32 max_smem)
        : image_(std::move(image)), program_(std::move(program)), max_smem_(max_smem) {}
    const std::string& name() const override { return program_->name; }
    driver::KernelAttributes attributes() const override {
        return {program_->num_registers, program_->local_bytes,
                program_->static_smem_bytes - kReservedSmemBytes};
    }
    [[nodiscard]] const Program& program() const { return *program_; }
    [[nodiscard]] const ModuleImage& image() const { return *image_; }
    [[nodiscard]] u32 max_smem() const { return max_smem_; }

  private:
    std::shared_ptr<const ModuleImage> image_;
    std::shared_ptr<const Program> program_;
    u32 max_smem_;
};

class EmulatedModule final : public driver::Module {
  public:
    EmulatedModule(std::span<const std::byte> image, std::string_view label, std::string_view arch,
                   u32 max_smem);
    const driver::Kernel& kernel(std::string_view lowered_name) override;

  private:
    std::string label_;
    std::shared_ptr<const ModuleImage> image_;
    u32 max_smem_;
    std::mutex mutex_;
    std::map<std::string, std::unique_ptr<EmulatedKernel>, std::less<>> kernels_;
};

}  // namespace deep_gemm::emulator
