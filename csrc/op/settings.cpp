// Process-wide settings: both fields in one word, so that a call never sees half of a change.
#include "op/api.h"

#include <atomic>

namespace deep_gemm {

namespace {

constexpr u64 kNoPdl = u64{1} << 32;
std::atomic<u64> current{0};

}  // namespace

Settings settings() {
    const u64 word = current.load(std::memory_order_relaxed);
    return {.num_sms = static_cast<u32>(word), .pdl = (word & kNoPdl) == 0};
}

void set_settings(const Settings& settings) {
    current.store(settings.num_sms | (settings.pdl ? 0 : kNoPdl), std::memory_order_relaxed);
}

}  // namespace deep_gemm
