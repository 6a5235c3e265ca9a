// The one error type and the one check macro. A message says what was got, what was expected and what to do.
// Python maps kind -> exception: value -> ValueError, type -> TypeError, the others -> deep_gemm.Error.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace deep_gemm {

enum class ErrorKind {
    value,        // a bad argument: shape, stride, alignment, range
    type,         // a bad dtype or object
    driver,       // a failing libcuda call, or no usable driver
    compile,      // NVRTC missing or a kernel that does not compile
    emulator,     // the emulated GPU found a fault in a kernel (bounds, race, deadlock, unknown opcode)
    io,           // files, cache, permissions
    internal,     // a broken invariant of this library
};

class Error : public std::runtime_error {
  public:
    Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
    [[nodiscard]] ErrorKind kind() const noexcept { return kind_; }

  private:
    ErrorKind kind_;
};

template <typename... Args>
[[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
    throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace deep_gemm

// DG_CHECK(condition, kind, "gemm: b has k={}, expected {} as in a; pass ...", got, expected)
#define DG_CHECK(condition, kind, ...)                                    \
    do {                                                                  \
        if (!(condition)) [[unlikely]]                                    \
            ::deep_gemm::fail(::deep_gemm::ErrorKind::kind, __VA_ARGS__); \
    } while (false)
