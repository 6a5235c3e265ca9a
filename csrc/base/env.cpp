#include "base/env.h"

#include "base/error.h"

#include <array>
#include <charconv>
#include <cstdlib>
#include <string_view>

extern char** environ;

namespace deep_gemm {

namespace {

// clang-format off
constexpr EnvRow kTable[] = {
    {Env::device,                  "DG_DEVICE",                  "",        "default device: cuda, cuda:1, emulator, emulator:sm_90a,seed=3; empty: the current GPU, else emulator:sm_90a"},
    {Env::log_level,               "DG_LOG_LEVEL",               "warning", "off, error, warning, info (one line per build) or debug (one line per launch)"},
    {Env::jit_cache_dir,           "DG_JIT_CACHE_DIR",           "",        "kernel cache folder; empty: $XDG_CACHE_HOME/deep_gemm, else ~/.cache/deep_gemm"},
    {Env::jit_cache_max_mb,        "DG_JIT_CACHE_MAX_MB",        "2048",    "MiB the cache folder may hold; beyond it the kernels that were not used for the longest are removed; 0: no limit"},
    {Env::jit_readonly_cache_dirs, "DG_JIT_READONLY_CACHE_DIRS", "",        "more cache folders, colon separated, read but never written"},
    {Env::jit_bundles,             "DG_JIT_BUNDLES",             "",        "bundle files, colon separated, looked into before any cache folder; `python -m deep_gemm bundle` makes one"},
    {Env::jit_lock_timeout_s,      "DG_JIT_LOCK_TIMEOUT_S",      "60",      "seconds to wait for another process that builds the same kernel before building it too"},
    {Env::jit_debug,               "DG_JIT_DEBUG",               "0",       "1: log level debug"},
    {Env::jit_lineinfo,            "DG_JIT_WITH_LINEINFO",       "0",       "1: compile kernels with source line information (profilers, emulator reports)"},
    {Env::jit_options,             "DG_JIT_OPTIONS",             "",        "more options for NVRTC, space separated, such as --Ofast-compile=mid; part of a kernel's key"},
    {Env::jit_keep_failed,         "DG_JIT_KEEP_FAILED",         "1",       "1: save the source and log of a kernel that does not compile under <cache>/failed"},
    {Env::nvrtc_path,              "DG_NVRTC_PATH",              "",        "libnvrtc file, or the folder that holds it; tried before any other place"},
    {Env::libcuda_path,            "DG_LIBCUDA_PATH",            "",        "libcuda file to open instead of libcuda.so.1"},
    {Env::emulator_threads,        "DG_EMULATOR_THREADS",        "0",       "host threads of the emulated GPU; 0: one per core"},
    {Env::print_configs,           "DG_PRINT_CONFIGS",           "0",       "1: log level info at least: the plan chosen for each new problem"},
    {Env::use_nvidia_tools,        "DG_USE_NVIDIA_TOOLS",        "0",       "1: a profiler or sanitizer is attached; deep_gemm.testing does not profile by itself"},
};
// clang-format on

// Not read by the library: setup.py has them.
constexpr std::string_view kReadElsewhere[] = {"DG_BUILD_DIR", "DG_CMAKE_ARGS", "DG_JOBS"};

constexpr size_t kNumRows = std::size(kTable);

constexpr bool table_is_in_key_order() {
    for (size_t i = 0; i < kNumRows; ++i)
        if (static_cast<size_t>(kTable[i].key) != i) return false;
    return true;
}
static_assert(table_is_in_key_order(), "kTable is indexed by Env: one row per enumerator, in order");

struct Value {
    std::string text;
    bool set = false;
};

const std::array<Value, kNumRows>& values() {
    static const auto read = [] {
        std::array<Value, kNumRows> result;
        for (size_t i = 0; i < kNumRows; ++i) {
            const char* text = std::getenv(kTable[i].name);
            result[i] = {text ? text : kTable[i].default_text, text != nullptr};
        }
        return result;
    }();
    return read;
}

const EnvRow& row_of(Env key) {
    return kTable[static_cast<size_t>(key)];
}

}  // namespace

std::span<const EnvRow> env_table() {
    return kTable;
}

const std::string& env_text(Env key) {
    return values()[static_cast<size_t>(key)].text;
}

bool env_is_set(Env key) {
    return values()[static_cast<size_t>(key)].set;
}

bool env_flag(Env key) {
    const std::string& text = env_text(key);
    for (const char* yes : {"1", "true", "on", "yes"})
        if (text == yes) return true;
    for (const char* no : {"0", "false", "off", "no", ""})
        if (text == no) return false;
    fail(ErrorKind::value, "{}: got '{}', expected 1 or 0; unset it for the default ({})", row_of(key).name,
         text, row_of(key).default_text);
}

u64 env_number(Env key) {
    const std::string& text = env_text(key);
    u64 number = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, number);
    DG_CHECK(error == std::errc{} && stop == end, value,
             "{}: got '{}', expected a whole number, not negative; unset it for the default ({})",
             row_of(key).name, text, row_of(key).default_text);
    return number;
}

std::vector<std::string> unknown_env_names() {
    std::vector<std::string> names;
    for (char** entry = environ; *entry; ++entry) {
        const std::string_view name = std::string_view(*entry).substr(0, std::string_view(*entry).find('='));
        bool known = !name.starts_with("DG_");
        for (const EnvRow& row : kTable) known = known || name == row.name;
        for (std::string_view other : kReadElsewhere) known = known || name == other;
        if (!known) names.emplace_back(name);
    }
    return names;
}

std::string foreign_env(const char* name) {
    const char* text = std::getenv(name);
    return text ? text : "";
}

}  // namespace deep_gemm
