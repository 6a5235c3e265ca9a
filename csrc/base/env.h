// Every environment variable the library reads, in one table, read once per process (on the first question,
// never at import). `deep_gemm env` and docs/env.md print the table; a variable that is not a row here does
// not exist.
#pragma once

#include <deep_gemm/spec/types.h>

#include <span>
#include <string>
#include <vector>

namespace deep_gemm {

enum class Env : u8 {
    device,
    log_level,
    jit_cache_dir,
    jit_cache_max_mb,
    jit_readonly_cache_dirs,
    jit_bundles,
    jit_lock_timeout_s,
    jit_debug,
    jit_lineinfo,
    jit_options,
    jit_keep_failed,
    nvrtc_path,
    libcuda_path,
    emulator_threads,
    print_configs,
    use_nvidia_tools,
};

struct EnvRow {
    Env key;
    const char* name;
    const char* default_text;
    const char* meaning;
};

[[nodiscard]] std::span<const EnvRow> env_table();

[[nodiscard]] const std::string& env_text(Env key);  // its value, or the default
[[nodiscard]] bool env_is_set(Env key);
[[nodiscard]] bool env_flag(Env key);  // 1/0, true/false, on/off, yes/no
[[nodiscard]] u64 env_number(Env key);

// DG_* variables that are set but are no row of the table: most likely typing errors.
[[nodiscard]] std::vector<std::string> unknown_env_names();

// A variable that is not ours (HOME, CUDA_HOME, XDG_CACHE_HOME); empty where unset.
[[nodiscard]] std::string foreign_env(const char* name);

}  // namespace deep_gemm
