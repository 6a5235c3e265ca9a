#include "driver/nvrtc_places.h"

#include "base/env.h"

#include <algorithm>

namespace deep_gemm::driver {

namespace fs = std::filesystem;

namespace {

void add_wheel_folders(std::vector<fs::path>& folders, std::vector<std::string>& looked_at,
                       const std::string& site_packages) {
    const fs::path root = fs::path(site_packages) / "nvidia";  // nvidia/cu13/lib or nvidia/cuda_nvrtc/lib
    std::vector<fs::path> found;
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(root, ignored)) {
        const std::string name = entry.path().filename().string();
        const bool likely = name == "cuda_nvrtc" || name.starts_with("cu1");
        if (likely && fs::is_directory(entry.path() / "lib", ignored)) found.push_back(entry.path() / "lib");
    }
    if (found.empty()) looked_at.push_back(root.string() + "/*/lib (no nvidia-cuda-nvrtc wheel)");
    std::sort(found.begin(), found.end());  // cu13 before cuda_nvrtc, which is CUDA 12
    folders.insert(folders.end(), found.begin(), found.end());
}

void add_toolkit_folders(std::vector<fs::path>& folders, std::vector<std::string>& looked_at,
                         const std::string& home) {
    if (home.empty()) return;
    const size_t before = folders.size();
    std::error_code ignored;
    for (const char* name : {"lib64", "lib", "targets/x86_64-linux/lib"})
        if (fs::is_directory(fs::path(home) / name, ignored)) folders.push_back(fs::path(home) / name);
    if (folders.size() == before) looked_at.push_back(home + " (no toolkit there)");
}

}  // namespace

// With DG_NVRTC_PATH set nothing else is tried: a typing error there must not pick some other compiler.
std::vector<fs::path> nvrtc_folders(const std::vector<std::string>& wheel_folders,
                                    std::vector<std::string>& looked_at) {
    std::vector<fs::path> folders;
    if (const std::string& chosen = env_text(Env::nvrtc_path); !chosen.empty()) {
        std::error_code ignored;
        if (fs::is_directory(chosen, ignored)) folders.emplace_back(chosen);
        return folders;
    }
    for (const std::string& folder : wheel_folders) add_wheel_folders(folders, looked_at, folder);
    for (const std::string& home :
         {foreign_env("CUDA_HOME"), foreign_env("CUDA_PATH"), std::string("/usr/local/cuda")})
        add_toolkit_folders(folders, looked_at, home);
    return folders;
}

std::vector<fs::path> nvrtc_files_in(const fs::path& folder) {
    std::vector<fs::path> files;
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(folder, ignored))
        if (entry.path().filename().string().starts_with("libnvrtc.so")) files.push_back(entry.path());
    std::sort(files.begin(), files.end(), std::greater<>());
    return files;
}

// libnvrtc only works with the libnvrtc-builtins of its own version beside it, so that file's name tells. Two
// versions in one folder tell nothing.
std::string nvrtc_version_beside(const fs::path& folder) {
    constexpr std::string_view kPrefix = "libnvrtc-builtins.so.";
    std::string version;
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(folder, ignored)) {
        const std::string name = entry.path().filename().string();
        if (!name.starts_with(kPrefix)) continue;
        const size_t minor = name.find('.', kPrefix.size());
        if (minor == name.npos) continue;
        const std::string found = name.substr(kPrefix.size(), name.find('.', minor + 1) - kPrefix.size());
        if (!version.empty() && version != found) return {};
        version = found;
    }
    return version;
}

}  // namespace deep_gemm::driver
