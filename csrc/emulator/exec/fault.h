// Faults of a running warp: the sentence plus the place. Throws Error(ErrorKind::emulator).
#pragma once

#include "base/error.h"
#include "emulator/exec/state.h"

namespace deep_gemm::emulator {

// The op being executed (pc has already moved past it).
[[nodiscard]] Place place_of(const Warp& w, i32 lane = -1);

[[noreturn]] void raise_fault(const Place& place, const std::string& sentence);

template <typename... Args>
[[noreturn]] void fault(const Warp& w, i32 lane, fmt::format_string<Args...> format, Args&&... args) {
    raise_fault(place_of(w, lane), fmt::format(format, std::forward<Args>(args)...));
}

// A fault that already names its place: it is not wrapped a second time on its way out.
class PlacedFault : public Error {
  public:
    explicit PlacedFault(const std::string& message) : Error(ErrorKind::emulator, message) {}
};

}  // namespace deep_gemm::emulator
