// The one error type, without its formatting: what the public C++ header needs. The library raises it through
// base/error.h. Python maps kind -> exception: value -> ValueError, type -> TypeError, others ->
// deep_gemm.Error.
#pragma once

#include <stdexcept>
#include <string>

namespace deep_gemm {

enum class ErrorKind {
    value,     // a bad argument: shape, stride, alignment, range
    type,      // a bad dtype or object
    driver,    // a failing libcuda call, or no usable driver
    compile,   // NVRTC missing or a kernel that does not compile
    emulator,  // the emulated GPU found a fault in a kernel (bounds, race, deadlock, unknown opcode)
    io,        // files, cache, permissions
    internal,  // a broken invariant of this library
};

class Error : public std::runtime_error {
  public:
    Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
    [[nodiscard]] ErrorKind kind() const noexcept { return kind_; }

  private:
    ErrorKind kind_;
};

}  // namespace deep_gemm
