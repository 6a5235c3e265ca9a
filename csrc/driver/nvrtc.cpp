#include "driver/nvrtc.h"

#include "base/env.h"
#include "base/error.h"
#include "driver/shared_library.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <mutex>

namespace deep_gemm::driver {

namespace {

namespace fs = std::filesystem;

using Result = int;  // nvrtcResult
using Program = struct NvrtcProgramTag*;
constexpr Result kSuccess = 0, kCompilationError = 6;

constexpr u32 kOldestMajor = 12;  // sm_90a, C++20
constexpr const char* kInstall =
    "install the wheel nvidia-cuda-nvrtc or a CUDA toolkit, or point DG_NVRTC_PATH at libnvrtc.so";

struct Nvrtc {
    SharedLibrary library;
    NvrtcInfo info;

    Result (*version)(int*, int*);
    Result (*num_supported_archs)(int*);
    Result (*supported_archs)(int*);
    const char* (*error_string)(Result);
    Result (*create_program)(Program*, const char*, const char*, int, const char* const*, const char* const*);
    Result (*destroy_program)(Program*);
    Result (*add_name_expression)(Program, const char*);
    Result (*compile_program)(Program, int, const char* const*);
    Result (*lowered_name)(Program, const char*, const char**);
    Result (*log_size)(Program, size_t*);
    Result (*log)(Program, char*);
    Result (*cubin_size)(Program, size_t*);
    Result (*cubin)(Program, char*);
    Result (*ptx_size)(Program, size_t*);
    Result (*ptx)(Program, char*);
};

// Looks in one place after another and keeps the story for the error message.
struct Search {
    std::vector<std::string> looked_at;

    std::unique_ptr<Nvrtc> try_file(const std::string& path);
    std::unique_ptr<Nvrtc> try_folder(const fs::path& folder);
};

template <typename Function>
bool resolve(const SharedLibrary& library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(library.symbol(name));
    return function != nullptr;
}

bool resolve_all(Nvrtc& n) {
    const SharedLibrary& l = n.library;
    return resolve(l, "nvrtcVersion", n.version) &&
           resolve(l, "nvrtcGetNumSupportedArchs", n.num_supported_archs) &&
           resolve(l, "nvrtcGetSupportedArchs", n.supported_archs) &&
           resolve(l, "nvrtcGetErrorString", n.error_string) &&
           resolve(l, "nvrtcCreateProgram", n.create_program) &&
           resolve(l, "nvrtcDestroyProgram", n.destroy_program) &&
           resolve(l, "nvrtcAddNameExpression", n.add_name_expression) &&
           resolve(l, "nvrtcCompileProgram", n.compile_program) &&
           resolve(l, "nvrtcGetLoweredName", n.lowered_name) &&
           resolve(l, "nvrtcGetProgramLogSize", n.log_size) && resolve(l, "nvrtcGetProgramLog", n.log) &&
           resolve(l, "nvrtcGetCUBINSize", n.cubin_size) && resolve(l, "nvrtcGetCUBIN", n.cubin) &&
           resolve(l, "nvrtcGetPTXSize", n.ptx_size) && resolve(l, "nvrtcGetPTX", n.ptx);
}

void read_info(Nvrtc& n) {
    int major = 0, minor = 0, num_archs = 0;
    n.version(&major, &minor);
    n.num_supported_archs(&num_archs);
    std::vector<int> archs(static_cast<size_t>(num_archs));
    n.supported_archs(archs.data());
    n.info = {n.library.resolved_path("nvrtcVersion"),
              static_cast<u32>(major),
              static_cast<u32>(minor),
              {archs.begin(), archs.end()}};
}

std::unique_ptr<Nvrtc> Search::try_file(const std::string& path) {
    auto candidate = std::make_unique<Nvrtc>();
    candidate->library = SharedLibrary::open(path);
    if (!candidate->library) {
        looked_at.push_back(fmt::format("{} ({})", path, candidate->library.error()));
        return nullptr;
    }
    if (!resolve_all(*candidate)) {
        looked_at.push_back(
            fmt::format("{} (lacks an entry point: not NVRTC, or older than {}.0)", path, kOldestMajor));
        return nullptr;
    }
    read_info(*candidate);
    if (candidate->info.major < kOldestMajor) {
        looked_at.push_back(fmt::format("{} (version {}.{}, expected {}.0 or newer)", path,
                                        candidate->info.major, candidate->info.minor, kOldestMajor));
        return nullptr;
    }
    return candidate;
}

std::unique_ptr<Nvrtc> Search::try_folder(const fs::path& folder) {
    std::vector<std::string> files;
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(folder, ignored))
        if (entry.path().filename().string().starts_with("libnvrtc.so"))
            files.push_back(entry.path().string());
    if (files.empty()) looked_at.push_back(folder.string() + "/libnvrtc.so* (no such file)");
    // libnvrtc.so.13 before .12 before the development link.
    std::sort(files.begin(), files.end(), std::greater<>());
    for (const std::string& file : files)
        if (auto found = try_file(file)) return found;
    return nullptr;
}

void add_wheel_folders(std::vector<fs::path>& folders, Search& search, const std::string& site_packages) {
    const fs::path root = fs::path(site_packages) / "nvidia";  // nvidia/cu13/lib or nvidia/cuda_nvrtc/lib
    std::vector<fs::path> found;
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(root, ignored)) {
        const std::string name = entry.path().filename().string();
        const bool likely = name == "cuda_nvrtc" || name.starts_with("cu1");
        if (likely && fs::is_directory(entry.path() / "lib", ignored)) found.push_back(entry.path() / "lib");
    }
    if (found.empty()) search.looked_at.push_back(root.string() + "/*/lib (no nvidia-cuda-nvrtc wheel)");
    std::sort(found.begin(), found.end());  // cu13 before cuda_nvrtc, which is CUDA 12
    folders.insert(folders.end(), found.begin(), found.end());
}

void add_toolkit_folders(std::vector<fs::path>& folders, Search& search, const std::string& home) {
    if (home.empty()) return;
    const size_t before = folders.size();
    std::error_code ignored;
    for (const char* name : {"lib64", "lib", "targets/x86_64-linux/lib"})
        if (fs::is_directory(fs::path(home) / name, ignored)) folders.push_back(fs::path(home) / name);
    if (folders.size() == before) search.looked_at.push_back(home + " (no toolkit there)");
}

// With DG_NVRTC_PATH set nothing else is tried: a typing error there must not pick some other compiler.
std::vector<fs::path> folders_to_search(const std::vector<std::string>& wheel_folders, Search& search) {
    std::vector<fs::path> folders;
    if (const std::string& chosen = env_text(Env::nvrtc_path); !chosen.empty()) {
        std::error_code ignored;
        if (fs::is_directory(chosen, ignored)) folders.emplace_back(chosen);
        return folders;
    }
    for (const std::string& folder : wheel_folders) add_wheel_folders(folders, search, folder);
    for (const std::string& home :
         {foreign_env("CUDA_HOME"), foreign_env("CUDA_PATH"), std::string("/usr/local/cuda")})
        add_toolkit_folders(folders, search, home);
    return folders;
}

std::unique_ptr<Nvrtc> search_all(const std::vector<std::string>& wheel_folders) {
    Search search;
    const std::string& chosen = env_text(Env::nvrtc_path);
    for (const fs::path& folder : folders_to_search(wheel_folders, search))
        if (auto found = search.try_folder(folder)) return found;
    std::error_code ignored;
    std::vector<std::string> files = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
    if (!chosen.empty()) files = {chosen};
    if (!fs::is_directory(chosen, ignored))
        for (const std::string& file : files)
            if (auto found = search.try_file(file)) return found;
    std::string places;
    for (const std::string& place : search.looked_at) places += "\n  " + place;
    fail(ErrorKind::compile,
         "no NVRTC found: got none of the places below, expected libnvrtc {}.0 or newer; {}{}", kOldestMajor,
         kInstall, places);
}

// libnvrtc only works with the libnvrtc-builtins of its own version beside it, so that file's name tells. Two
// versions in one folder tell nothing.
std::string version_beside(const fs::path& folder) {
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

bool holds_nvrtc(const fs::path& folder) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(folder, ignored))
        if (entry.path().filename().string().starts_with("libnvrtc.so")) return true;
    return false;
}

struct State {
    std::mutex mutex;
    std::vector<std::string> wheel_folders;
    std::unique_ptr<const Nvrtc> nvrtc;  // a failed search is repeated: the wheel may be installed meanwhile
};

State& state() {
    static State* const instance = new State;  // other threads may compile until the process ends
    return *instance;
}

const Nvrtc& nvrtc() {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    if (!s.nvrtc) s.nvrtc = search_all(s.wheel_folders);
    return *s.nvrtc;
}

void check(const Nvrtc& n, Result result, const char* call) {
    DG_CHECK(result == kSuccess, compile,
             "{} of {} failed: got {}, expected success; try another NVRTC (DG_NVRTC_PATH)", call,
             n.info.path, n.error_string(result));
}

class ProgramHandle {
  public:
    ProgramHandle(const Nvrtc& n, const CompileRequest& request) : nvrtc_(n) {
        std::vector<std::string> names, texts;
        std::vector<const char*> name_pointers, text_pointers;
        for (const SourceHeader& header : request.headers) {  // NVRTC wants terminated strings
            names.emplace_back(header.name);
            texts.emplace_back(header.text);
        }
        for (const std::string& name : names) name_pointers.push_back(name.c_str());
        for (const std::string& text : texts) text_pointers.push_back(text.c_str());
        check(n,
              n.create_program(&program_, request.source.c_str(), request.name.c_str(),
                               static_cast<int>(names.size()), text_pointers.data(), name_pointers.data()),
              "nvrtcCreateProgram");
    }
    ~ProgramHandle() { nvrtc_.destroy_program(&program_); }
    ProgramHandle(const ProgramHandle&) = delete;
    ProgramHandle& operator=(const ProgramHandle&) = delete;

    [[nodiscard]] Program get() const { return program_; }

    // NVRTC's texts count their terminating zero.
    std::string text(Result (*size_of)(Program, size_t*), Result (*get_text)(Program, char*),
                     const char* call) const {
        size_t size = 0;
        check(nvrtc_, size_of(program_, &size), call);
        std::string text(size, '\0');
        check(nvrtc_, get_text(program_, text.data()), call);
        return text;
    }

  private:
    const Nvrtc& nvrtc_;
    Program program_ = nullptr;
};

void drop_terminator(std::string& text) {
    while (!text.empty() && text.back() == '\0') text.pop_back();
}

}  // namespace

void set_nvrtc_wheel_folders(std::vector<std::string> folders) {
    const std::lock_guard lock(state().mutex);
    state().wheel_folders = std::move(folders);
}

std::string nvrtc_version_hint() {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    if (s.nvrtc) return fmt::format("{}.{}", s.nvrtc->info.major, s.nvrtc->info.minor);
    Search unused;
    std::error_code ignored;
    if (const std::string& chosen = env_text(Env::nvrtc_path); fs::is_regular_file(chosen, ignored))
        return version_beside(fs::path(chosen).parent_path());
    for (const fs::path& folder : folders_to_search(s.wheel_folders, unused))
        if (holds_nvrtc(folder)) return version_beside(folder);
    return {};
}

const NvrtcInfo& nvrtc_info() {
    return nvrtc().info;
}

CompileResult nvrtc_compile(const CompileRequest& request) {
    const Nvrtc& n = nvrtc();
    const ProgramHandle program(n, request);
    for (const std::string& entry : request.entries)
        check(n, n.add_name_expression(program.get(), entry.c_str()), "nvrtcAddNameExpression");
    std::vector<const char*> options;
    for (const std::string& option : request.options) options.push_back(option.c_str());

    const Result outcome = n.compile_program(program.get(), static_cast<int>(options.size()), options.data());
    CompileResult result;
    result.log = program.text(n.log_size, n.log, "nvrtcGetProgramLog");
    drop_terminator(result.log);
    if (outcome != kSuccess) {
        if (outcome != kCompilationError)
            result.log += fmt::format("\nnvrtcCompileProgram: {}", n.error_string(outcome));
        return result;
    }
    for (const std::string& entry : request.entries) {
        const char* lowered = nullptr;
        check(n, n.lowered_name(program.get(), entry.c_str(), &lowered), "nvrtcGetLoweredName");
        result.lowered_names.emplace_back(lowered);
    }
    if (request.kind == ImageKind::ptx) {
        result.image = program.text(n.ptx_size, n.ptx, "nvrtcGetPTX");
        drop_terminator(result.image);
    } else {
        result.image = program.text(n.cubin_size, n.cubin, "nvrtcGetCUBIN");
    }
    result.ok = true;
    return result;
}

}  // namespace deep_gemm::driver
