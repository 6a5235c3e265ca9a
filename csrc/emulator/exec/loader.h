// A parsed module -> Programs: variables get addresses, registers get slots, instructions become Ops.
#pragma once

#include "emulator/ir/op.h"

#include <unordered_map>

namespace deep_gemm::emulator {

// .global and .const variables of a loaded module, in host memory.
struct ModuleImage {
    std::shared_ptr<const ptx::Module> module;
    std::vector<std::unique_ptr<std::byte[]>>
        storage;  // parallel to module->variables; null where not in memory
    std::vector<u64> addresses;
};

[[nodiscard]] std::shared_ptr<ModuleImage> make_image(std::shared_ptr<const ptx::Module> module);
[[nodiscard]] std::shared_ptr<const Program> load_program(const ModuleImage& image,
                                                          const ptx::Function& function);

}  // namespace deep_gemm::emulator
