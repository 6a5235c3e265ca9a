// The one way out for messages that are not errors. Every message goes to one sink; the first sink writes
// warnings to stderr, a host program replaces or removes it. DG_LOG_LEVEL decides what reaches the sink.
#pragma once

#include <fmt/format.h>

#include <deep_gemm/spec/types.h>

#include <functional>
#include <string_view>

namespace deep_gemm {

enum class LogLevel : u8 { off, error, warning, info, debug };

[[nodiscard]] const char* name_of(LogLevel level);

using LogSink = std::function<void(LogLevel, std::string_view message)>;

// An empty sink drops everything. Safe to call from any thread.
void set_log_sink(LogSink sink);
[[nodiscard]] bool log_enabled(LogLevel level);
void log_text(LogLevel level, std::string_view message) noexcept;  // a sink that throws loses its message

void log_formatted(LogLevel level, fmt::string_view format, fmt::format_args args);

template <typename... Args>
void log(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
    if (log_enabled(level)) log_formatted(level, format, fmt::make_format_args(args...));
}

}  // namespace deep_gemm
