#include "op/fp4_windows.h"

#include <bit>
#include <cstddef>

namespace deep_gemm::op {

namespace {

// NVFP4: what fp4_lowest_key() says in one step is what shifts into the window allow.
constexpr bool lowest_key_agrees() {
    for (i32 high = 0; high < static_cast<i32>(kFp4Keys); ++high)
        for (i32 low = 0; low <= high; ++low) {
            const NvShifts shifts = nv_shifts(low + kNvSmallest, high + kNvSmallest);
            if ((shifts.first <= shifts.last) != (low >= fp4_lowest_key(Fp4Form::nv_single, high)))
                return false;
        }
    return true;
}
static_assert(lowest_key_agrees());

}  // namespace

i32 ScaleKeys::lowest() const {
    i32 word = 0;
    while (words_[static_cast<std::size_t>(word)] == 0) ++word;
    return word * 64 + std::countr_zero(words_[static_cast<std::size_t>(word)]);
}
i32 ScaleKeys::highest() const {
    i32 word = 3;
    while (words_[static_cast<std::size_t>(word)] == 0) --word;
    return word * 64 + 63 - std::countl_zero(words_[static_cast<std::size_t>(word)]);
}

std::vector<ScaleWindow> windows_of(Fp4Form form, const ScaleKeys& used) {
    if (used.none()) return {};
    const i32 lowest = used.lowest(), highest = used.highest();
    if (lowest >= fp4_lowest_key(form, highest)) return {{lowest, highest}};
    std::vector<ScaleWindow> windows;
    for (i32 key = highest; key >= lowest; --key) {
        if (!used.test(static_cast<u32>(key))) continue;
        if (windows.empty() || key < fp4_lowest_key(form, windows.back().high))
            windows.push_back({key, key});
        else
            windows.back().low = key;
    }
    return windows;
}

u32 octaves_of(Fp4Form form, const ScaleKeys& used) {
    if (used.none()) return 0;
    return static_cast<u32>(fp4_octave_of(form, used.highest()) - fp4_octave_of(form, used.lowest()) + 1);
}

}  // namespace deep_gemm::op
