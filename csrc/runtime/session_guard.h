// Private to Session: work that leaves the session invalid when it throws.
#pragma once

#include "runtime/session.h"

namespace deep_gemm::runtime {

template <typename Work>
auto Session::guarded(Work&& work) {
    try {
        return work();
    } catch (...) {
        valid_ = false;
        throw;
    }
}

}  // namespace deep_gemm::runtime
