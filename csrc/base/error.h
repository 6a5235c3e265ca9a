// How the library raises Error (base/exception.h): one function and one check macro. A message says what was
// got, what was expected and what to do.
#pragma once

#include "base/exception.h"

#include <fmt/format.h>

namespace deep_gemm {

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
