// How the library raises Error (base/exception.h): one function and one check macro. A message says what was
// got, what was expected and what to do.
#pragma once

#include "base/exception.h"

#include <fmt/format.h>

namespace deep_gemm {

// Formats in one translation unit (error.cpp): the formatter's code is most of what a caller would have to
// compile.
[[noreturn]] void fail_formatted(ErrorKind kind, fmt::string_view format, fmt::format_args args);

template <typename... Args>
[[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
    fail_formatted(kind, format, fmt::make_format_args(args...));
}

}  // namespace deep_gemm

// DG_CHECK(condition, kind, "gemm: b has k={}, expected {} as in a; pass ...", got, expected)
#define DG_CHECK(condition, kind, ...)                                    \
    do {                                                                  \
        if (!(condition)) [[unlikely]]                                    \
            ::deep_gemm::fail(::deep_gemm::ErrorKind::kind, __VA_ARGS__); \
    } while (false)
