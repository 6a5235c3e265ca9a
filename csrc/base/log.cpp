#include "base/log.h"

#include "base/env.h"
#include "base/error.h"

#include <unistd.h>

#include <algorithm>
#include <memory>
#include <mutex>

namespace deep_gemm {

namespace {

void write_to_stderr(LogLevel level, std::string_view message) {
    const std::string line = fmt::format("deep_gemm {}: {}\n", name_of(level), message);
    // One write per line, so that processes do not mix within a line; nothing can be done if it fails.
    [[maybe_unused]] const auto written = ::write(STDERR_FILENO, line.data(), line.size());
}

// The sink is shared_ptr so that a call in flight keeps the one it started with. Never destroyed: messages
// may come from threads that outlive main().
struct State {
    std::mutex mutex;
    std::shared_ptr<const LogSink> sink = std::make_shared<LogSink>(write_to_stderr);
};

State& state() {
    static State* const instance = new State;
    return *instance;
}

LogLevel level_from_env() {
    const std::string& text = env_text(Env::log_level);
    for (LogLevel level :
         {LogLevel::off, LogLevel::error, LogLevel::warning, LogLevel::info, LogLevel::debug}) {
        if (text != name_of(level)) continue;
        if (env_flag(Env::jit_debug)) return LogLevel::debug;
        return env_flag(Env::print_configs) ? std::max(level, LogLevel::info) : level;
    }
    fail(ErrorKind::value,
         "DG_LOG_LEVEL: got '{}', expected off, error, warning, info or debug; set one "
         "of them",
         text);
}

}  // namespace

const char* name_of(LogLevel level) {
    switch (level) {
        case LogLevel::off: return "off";
        case LogLevel::error: return "error";
        case LogLevel::warning: return "warning";
        case LogLevel::info: return "info";
        case LogLevel::debug: return "debug";
    }
    return "?";
}

void set_log_sink(LogSink sink) {
    auto replacement = std::make_shared<const LogSink>(std::move(sink));
    const std::lock_guard lock(state().mutex);
    state().sink = std::move(replacement);
}

bool log_enabled(LogLevel level) {
    static const LogLevel limit = level_from_env();
    return level != LogLevel::off && level <= limit;
}

void log_text(LogLevel level, std::string_view message) noexcept {
    try {
        if (!log_enabled(level)) return;
        std::shared_ptr<const LogSink> sink;
        {
            const std::lock_guard lock(state().mutex);
            sink = state().sink;
        }
        if (*sink) (*sink)(level, message);
    } catch (...) {
        // A log line is never worth an exception in the code that wrote it.
    }
}

void log_formatted(LogLevel level, fmt::string_view format, fmt::format_args args) {
    log_text(level, fmt::vformat(format, args));
}

}  // namespace deep_gemm
