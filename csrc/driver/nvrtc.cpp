#include "driver/nvrtc.h"

#include "base/env.h"
#include "base/error.h"
#include "base/process_local.h"
#include "driver/cuda_api.h"
#include "driver/nvrtc_places.h"
#include "driver/shared_library.h"

#include <fmt/format.h>

#include <atomic>
#include <charconv>
#include <filesystem>
#include <memory>
#include <mutex>

namespace deep_gemm::driver {

namespace {

namespace fs = std::filesystem;

using Result = int;  // nvrtcResult
using Program = struct NvrtcProgramTag*;
constexpr Result kSuccess = 0, kCompilationError = 6;

constexpr u32 kOldestMajor = 12;      // sm_90a, C++20
constexpr u32 kPlainWheelMajor = 13;  // from here on the wheel's name has no suffix

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
    std::unique_ptr<Nvrtc> too_new;  // the first that the driver loads nothing from

    std::unique_ptr<Nvrtc> try_file(const std::string& path);
    std::unique_ptr<Nvrtc> try_folder(const fs::path& folder);
};

bool fits_driver(u32 major) {
    return driver_major() == 0 || major <= driver_major();
}

std::string text_of_driver() {
    return fmt::format("{}.{}", cuda::driver_version() / 1000, cuda::driver_version() % 1000 / 10);
}

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
              {archs.begin(), archs.end()},
              {}};
}

// NVRTC opens its builtins by soname when it first compiles, and the wheel's libnvrtc has no RUNPATH to find
// them with. Opened here from the same folder, they are there by that soname. Where the file is missing the
// loader path decides.
void open_builtins(const NvrtcInfo& info) {
    const std::string name = fmt::format("libnvrtc-builtins.so.{}.{}", info.major, info.minor);
    (void)SharedLibrary::open((fs::path(info.path).parent_path() / name).string());
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
    if (!fits_driver(candidate->info.major)) {
        if (!too_new) too_new = std::move(candidate);
        return nullptr;
    }
    return candidate;
}

std::unique_ptr<Nvrtc> Search::try_folder(const fs::path& folder) {
    const std::vector<fs::path> files = nvrtc_files_in(folder);
    if (files.empty()) looked_at.push_back(folder.string() + "/libnvrtc.so* (no such file)");
    for (const fs::path& file : files)
        if (auto found = try_file(file.string())) return found;
    return nullptr;
}

// The first that fits the driver, nullptr where there is none.
std::unique_ptr<Nvrtc> find_fitting(Search& search, const std::vector<std::string>& wheel_folders) {
    const std::string& chosen = env_text(Env::nvrtc_path);
    for (const fs::path& folder : nvrtc_folders(wheel_folders, search.looked_at))
        if (auto found = search.try_folder(folder)) return found;
    std::error_code ignored;
    std::vector<std::string> files = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
    if (!chosen.empty()) files = {chosen};
    if (!fs::is_directory(chosen, ignored))
        for (const std::string& file : files)
            if (auto found = search.try_file(file)) return found;
    return nullptr;
}

std::unique_ptr<Nvrtc> search_all(const std::vector<std::string>& wheel_folders) {
    Search search;
    std::unique_ptr<Nvrtc> found = find_fitting(search, wheel_folders);
    if (const auto& other = search.too_new) {
        const std::string newer =
            fmt::format("NVRTC {}.{} ({}) is newer than the driver, for CUDA {}", other->info.major,
                        other->info.minor, other->info.path, text_of_driver());
        if (found) {
            found->info.remark = fmt::format("chosen because {}", newer);
        } else {  // good for the emulated GPU, and for images that another machine loads
            found = std::move(search.too_new);
            found->info.remark =
                fmt::format("{}, which loads none of its kernels; {}", newer, nvrtc_remedy());
        }
    }
    if (found) {
        open_builtins(found->info);
        return found;
    }
    std::string places;
    for (const std::string& place : search.looked_at) places += "\n  " + place;
    fail(ErrorKind::compile,
         "no NVRTC found: got none of the places below, expected libnvrtc {}.0 or newer; {}{}", kOldestMajor,
         nvrtc_remedy(), places);
}

// A forked child searches anew: its parent may have forked in the middle of a search.
struct State {
    std::mutex mutex;
    std::unique_ptr<const Nvrtc> nvrtc;  // a failed search is repeated: the wheel may be installed meanwhile
};

// Handed down to forked children, so behind no lock. Lists are kept: a search may still read the last one.
std::atomic<const std::vector<std::string>*> folders_of_wheels{nullptr};

const std::vector<std::string>& wheel_folders() {
    static const auto* const none = new std::vector<std::string>;
    const auto* folders = folders_of_wheels.load(std::memory_order_acquire);
    return folders ? *folders : *none;
}

const Nvrtc& nvrtc() {
    State& s = process_local<State>();
    const std::lock_guard lock(s.mutex);
    if (!s.nvrtc) s.nvrtc = search_all(wheel_folders());
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

u32 driver_major() {
    return static_cast<u32>(cuda::driver_version()) / 1000;
}

std::string nvrtc_wheel() {
    const u32 major = driver_major();
    return major == 0 || major >= kPlainWheelMajor ? "the wheel nvidia-cuda-nvrtc"
                                                   : fmt::format("the wheel nvidia-cuda-nvrtc-cu{}", major);
}

std::string nvrtc_remedy() {
    if (!env_text(Env::nvrtc_path).empty())
        return fmt::format("correct DG_NVRTC_PATH ({}), or unset it and install {}",
                           env_text(Env::nvrtc_path), nvrtc_wheel());
    return fmt::format("install {}, or point DG_NVRTC_PATH at the libnvrtc of a CUDA toolkit", nvrtc_wheel());
}

void set_nvrtc_wheel_folders(std::vector<std::string> folders) {
    folders_of_wheels.store(new std::vector<std::string>(std::move(folders)), std::memory_order_release);
}

std::string nvrtc_version_hint() {
    State& s = process_local<State>();
    const std::lock_guard lock(s.mutex);
    if (s.nvrtc) return fmt::format("{}.{}", s.nvrtc->info.major, s.nvrtc->info.minor);
    std::error_code ignored;
    const std::string& chosen = env_text(Env::nvrtc_path);
    if (fs::is_regular_file(chosen, ignored)) return nvrtc_version_beside(fs::path(chosen).parent_path());
    std::vector<std::string> looked_at;
    for (const fs::path& folder : nvrtc_folders(wheel_folders(), looked_at)) {
        if (nvrtc_files_in(folder).empty()) continue;
        const std::string version = nvrtc_version_beside(folder);
        u32 major = 0;
        std::from_chars(version.data(), version.data() + version.size(), major);
        if (version.empty() || fits_driver(major)) return version;
    }
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
