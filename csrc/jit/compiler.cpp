#include "jit/compiler.h"

#include "base/env.h"
#include "base/log.h"
#include "driver/nvrtc.h"
#include "jit/device_headers.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <string_view>

#include <unistd.h>

namespace deep_gemm::jit {

namespace {

// The form NVRTC takes; both strings of a pair live in the library's constants.
const std::vector<driver::SourceHeader>& headers_for_nvrtc() {
    static const auto* const headers = [] {
        auto* list = new std::vector<driver::SourceHeader>;
        for (const DeviceHeader& header : device_headers()) list->push_back({header.name, header.text});
        return list;
    }();
    return *headers;
}

const Digest& headers_digest() {
    static const Digest digest = [] {
        Hash hash;
        for (const DeviceHeader& header : device_headers()) hash.field(header.name).field(header.text);
        return hash.digest();
    }();
    return digest;
}

void check_arch(const driver::NvrtcInfo& info, const Target& target) {
    u32 number = 0;
    std::from_chars(target.arch.data(), target.arch.data() + target.arch.size(), number);
    if (std::find(info.archs.begin(), info.archs.end(), number) != info.archs.end()) return;
    std::string known;
    for (u32 arch : info.archs) known += fmt::format("{}{}", known.empty() ? "" : ", ", arch);
    fail(ErrorKind::compile,
         "NVRTC {}.{} ({}) cannot build for sm_{}: got a compiler for {}; expected one that "
         "knows it; install a newer version of {}, or of a CUDA toolkit (DG_NVRTC_PATH)",
         info.major, info.minor, info.path, target.arch, known, driver::nvrtc_wheel());
}

std::vector<std::string_view> words_of(std::string_view text) {
    constexpr std::string_view kSpace = " \t\n";
    std::vector<std::string_view> words;
    for (size_t at = text.find_first_not_of(kSpace); at != text.npos; at = text.find_first_not_of(kSpace)) {
        const size_t end = std::min(text.find_first_of(kSpace, at), text.size());
        words.push_back(text.substr(at, end - at));
        text.remove_prefix(end);
    }
    return words;
}

// Where a person can look at what did not compile. Saving must not hide the compiler's message.
std::string save_failed(const KernelSource& source, const std::string& log, const Path& folder) {
    if (!env_flag(Env::jit_keep_failed)) return "(not saved: DG_JIT_KEEP_FAILED=0)";
    const Path fallback =
        std::filesystem::temp_directory_path() / fmt::format("deep_gemm-failed-{}", ::geteuid());
    for (const Path& parent : {folder, fallback}) {
        if (parent.empty()) continue;
        try {
            parent == fallback ? make_private_directory(parent) : make_directories(parent);
            const Path saved = make_unique_directory(parent, source.name);
            write_file(saved / "kernel.cu", source.code);
            write_file(saved / "log.txt", log);
            return (saved / "kernel.cu").string();
        } catch (const Error&) {
            continue;
        }
    }
    return "(not saved: no writable folder)";
}

// Works on the saved file alone.
std::string recompile_line(const KernelSource& source, const Target& target, const std::string& saved) {
    return fmt::format(
        "python -c \"from deep_gemm import _C; _C.compile(open('{}').read(), ['{}'], arch='{}', kind='{}')\"",
        saved, source.entry, target.arch, name_of(target.kind));
}

std::string compile_remedy() {
    const std::string& more = env_text(Env::jit_options);
    if (more.empty()) return "please report them with the source";
    return fmt::format("unset DG_JIT_OPTIONS ('{}'), and report them with the source where they stay", more);
}

[[noreturn]] void fail_compile(const KernelSource& source, const Target& target,
                               const driver::NvrtcInfo& info, const std::string& log,
                               const Path& failed_folder) {
    const std::string saved = save_failed(source, log, failed_folder);
    fail(ErrorKind::compile,
         "{} does not compile for sm_{} with NVRTC {}.{} ({}): got the errors below; {}\n"
         "source: {}\nentry: {}\nreplay: {}\n{}",
         source.name, target.arch, info.major, info.minor, info.path, compile_remedy(), saved, source.entry,
         source.replay.empty() ? recompile_line(source, target, saved) : source.replay, log);
}

void log_build(const Artifact& artifact, const Target& target) {
    const BuildStats& stats = artifact.stats;
    const std::string registers =
        target.kind == driver::ImageKind::cubin ? fmt::format("{} registers, ", stats.registers) : "";
    log(LogLevel::info, "{} for sm_{}: compiled in {:.0f} ms, {}{} bytes of {}", artifact.name, target.arch,
        artifact.seconds * 1e3, registers, artifact.image.size(), name_of(target.kind));
    if (stats.spill_store_bytes + stats.spill_load_bytes > 0)
        log(LogLevel::warning, "{} for sm_{} spills registers: {} bytes stored, {} loaded", artifact.name,
            target.arch, stats.spill_store_bytes, stats.spill_load_bytes);
    for (const std::string& warning : stats.warnings)
        log(LogLevel::warning, "{} for sm_{}: {}", artifact.name, target.arch, warning);
}

}  // namespace

std::vector<std::string> compile_options(const Target& target) {
    const bool ptx = target.kind == driver::ImageKind::ptx;
    std::vector<std::string> options = {
        "-std=c++20", "-default-device",
        fmt::format("--gpu-architecture={}_{}", ptx ? "compute" : "sm", target.arch)};
    if (!ptx) options.push_back("--ptxas-options=-v");
    if (env_flag(Env::jit_lineinfo)) options.push_back("-lineinfo");
    for (std::string_view option : words_of(env_text(Env::jit_options))) options.emplace_back(option);
    return options;
}

Digest key_of(const KernelSource& source, const Target& target) {
    Hash hash;
    hash.field(source.code).field(source.entry).field(headers_digest().high).field(headers_digest().low);
    for (const std::string& option : compile_options(target)) hash.field(option);
    return hash.digest();
}

Artifact compile(const KernelSource& source, const Target& target, const Path& failed_folder) {
    const auto start = std::chrono::steady_clock::now();
    const driver::NvrtcInfo& info = driver::nvrtc_info();
    check_arch(info, target);
    std::vector<std::string> options = compile_options(target);
    // Leaves out textures and the like: 10 to 20 ms less. No part of the key: it follows from NVRTC's
    // version.
    if (info.major >= 13) options.push_back("--minimal");
    // From 12.9 on NVRTC keeps results in the driver's cache, where there is a driver, and gives them back
    // without ptxas' log: no registers, no warnings. This project's own cache keeps the log with the kernel.
    if (info.major >= 13 || (info.major == 12 && info.minor >= 9)) options.push_back("--no-cache");
    driver::CompileResult result = driver::nvrtc_compile({.name = source.name + ".cu",
                                                          .source = source.code,
                                                          .entries = {source.entry},
                                                          .options = std::move(options),
                                                          .headers = headers_for_nvrtc(),
                                                          .kind = target.kind});
    if (!result.ok) fail_compile(source, target, info, result.log, failed_folder);
    Artifact artifact{.name = source.name,
                      .lowered_name = std::move(result.lowered_names.front()),
                      .image = std::move(result.image),
                      .log = std::move(result.log),
                      .nvrtc = fmt::format("{}.{}", info.major, info.minor)};
    artifact.stats = parse_build_log(artifact.log);
    artifact.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    log_build(artifact, target);
    return artifact;
}

}  // namespace deep_gemm::jit
