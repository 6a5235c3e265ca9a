#include "base/error.h"

namespace deep_gemm {

void fail_formatted(ErrorKind kind, fmt::string_view format, fmt::format_args args) {
    throw Error(kind, fmt::vformat(format, args));
}

}  // namespace deep_gemm
