// Where NVRTC may be, by looking at folders only: nothing is opened here. Used by nvrtc.cpp.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace deep_gemm::driver {

// Folders to search, in order: $DG_NVRTC_PATH alone, or the wheels in `wheel_folders` and the CUDA toolkits.
// Places that turned out empty are added to `looked_at`, for the error message.
[[nodiscard]] std::vector<std::filesystem::path> nvrtc_folders(const std::vector<std::string>& wheel_folders,
                                                               std::vector<std::string>& looked_at);

// libnvrtc.so.13 before .12 before the development link.
[[nodiscard]] std::vector<std::filesystem::path> nvrtc_files_in(const std::filesystem::path& folder);

// "13.0" from the name of the builtins library in the folder; empty where it does not say.
[[nodiscard]] std::string nvrtc_version_beside(const std::filesystem::path& folder);

}  // namespace deep_gemm::driver
