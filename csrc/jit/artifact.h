// Artifact: a built kernel as data, before a device has loaded it; and what the assembler said about it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "driver/device.h"

namespace deep_gemm::jit {

// What to build for: a cubin for one architecture, or its PTX for the emulator.
struct Target {
    std::string arch;  // "90a"
    driver::ImageKind kind = driver::ImageKind::cubin;
};

[[nodiscard]] Target target_of(const driver::Device& device);

// From ptxas -v; all zero for PTX, which has not met the assembler.
struct BuildStats {
    u32 registers = 0;
    u32 stack_bytes = 0, spill_store_bytes = 0, spill_load_bytes = 0;
    u32 static_smem_bytes = 0;
    std::vector<std::string>
        warnings;  // serialised wgmma (C7508, C7510, C7514, C7519, C7520) and others of its kind
};

// Sums over the entries a log speaks of, the largest register count.
[[nodiscard]] BuildStats parse_build_log(std::string_view log);

enum class Origin : u8 { memory, bundle, disk, compiled };
[[nodiscard]] const char* name_of(Origin origin);

struct Artifact {
    std::string name;          // of the source
    std::string lowered_name;  // the entry in the image
    std::string image;
    std::string log;    // empty where it came from a bundle
    std::string nvrtc;  // "13.0": what built it
    BuildStats stats = {};
    Origin origin = Origin::compiled;
    double seconds = 0;  // to compile, or to read
};

}  // namespace deep_gemm::jit
