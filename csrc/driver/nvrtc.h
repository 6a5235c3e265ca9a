// NVRTC, opened at run time: source text in, cubin or PTX out. Looked for once, in this order:
// $DG_NVRTC_PATH, the nvidia-cuda-nvrtc wheel in the folders given by the host program, a CUDA toolkit, the
// loader path. A driver loads cubins of its own CUDA major version, any minor, and of older ones: where there
// is a driver, the first NVRTC that it can load from wins over an earlier one that it cannot. A kernel that
// does not compile is a result (ok = false and the log), not an exception: jit/ words the error.
#pragma once

#include <deep_gemm/spec/types.h>

#include "driver/device.h"

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace deep_gemm::driver {

struct SourceHeader {
    std::string_view name, text;
};

struct CompileRequest {
    std::string name;  // file name in messages and line information
    std::string source;
    std::vector<std::string> entries;  // name expressions: "deep_gemm::sm90_gemm<kSpec>"
    std::vector<std::string> options;
    std::span<const SourceHeader> headers;
    ImageKind kind = ImageKind::cubin;
};

struct CompileResult {
    bool ok = false;
    std::string image;                       // PTX text has no terminating zero
    std::vector<std::string> lowered_names;  // one per entry
    std::string log;
};

struct NvrtcInfo {
    std::string path;
    u32 major = 0, minor = 0;
    std::vector<u32> archs;  // 90, 100, 120, ...
    std::string remark;      // why it and not one found earlier, or why none fits the driver; mostly empty
};

// The major version of CUDA whose images the installed driver loads at most; 0: no driver, no limit.
[[nodiscard]] u32 driver_major();
// "the wheel nvidia-cuda-nvrtc-cu12": the one that makes images which the driver loads.
[[nodiscard]] std::string nvrtc_wheel();
// What to do where there is none.
[[nodiscard]] std::string nvrtc_remedy();

// Where wheels live (Python's site-packages folders). Without effect once NVRTC is open.
void set_nvrtc_wheel_folders(std::vector<std::string> folders);

// "13.0", from file names alone: opening NVRTC costs more than loading a cached kernel. Empty where that is
// not enough to know; the version in use once NVRTC is open.
[[nodiscard]] std::string nvrtc_version_hint();

// Opens NVRTC. Throws Error(compile) with every place it looked at when there is none, or only one too old.
[[nodiscard]] const NvrtcInfo& nvrtc_info();
[[nodiscard]] CompileResult nvrtc_compile(const CompileRequest& request);

}  // namespace deep_gemm::driver
