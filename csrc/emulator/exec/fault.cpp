// Faults name the place first, then what is wrong.
#include "emulator/exec/fault.h"

namespace deep_gemm::emulator {

Place place_of(const Warp& w, i32 lane) {
    const Cta& cta = *w.cta;
    return {w.program, w.pc - 1, {cta.index[0], cta.index[1], cta.index[2]}, w.id, lane};
}

void raise_fault(const Place& place, const std::string& sentence) {
    throw PlacedFault(fmt::format("emulator: {}: {}", describe(place), sentence));
}

}  // namespace deep_gemm::emulator
