#include "op/linear_counts.h"

#include "base/process_local.h"

#include <array>
#include <atomic>

namespace deep_gemm {

namespace op {

namespace {

constexpr u32 kNumActivations = static_cast<u32>(Activation::q8) + 1;
constexpr u32 kMaxBlockEights = 256 / 8;  // of tokens in a block of the large-batch form

struct Counters {
    std::array<std::atomic<u64>, size_t{kNumQuants} * kNumActivations*(kMaxGemvTokens + 1) * 2> small{};
    std::array<std::atomic<u64>, size_t{kNumQuants} * kNumActivations*(kMaxBlockEights + 1)> large{};

    std::atomic<u64>& at(Quant w, Activation x, u32 tokens, bool strict) {
        const size_t kind = static_cast<size_t>(w) * kNumActivations + static_cast<size_t>(x);
        return small[(kind * (kMaxGemvTokens + 1) + tokens) * 2 + (strict ? 1 : 0)];
    }
    std::atomic<u64>& at(Quant w, Activation x, u32 eights) {
        const size_t kind = static_cast<size_t>(w) * kNumActivations + static_cast<size_t>(x);
        return large[kind * (kMaxBlockEights + 1) + eights];
    }
};

}  // namespace

void count_small(Quant w, Activation x, u32 tokens, bool strict) {
    process_local<Counters>().at(w, x, tokens, strict).fetch_add(1, std::memory_order_relaxed);
}
void count_large(Quant w, Activation x, u32 tokens) {
    process_local<Counters>().at(w, x, tokens / 8).fetch_add(1, std::memory_order_relaxed);
}

}  // namespace op

std::vector<DispatchCount> dispatch_counts() {
    std::vector<DispatchCount> counts;
    auto& counters = process_local<op::Counters>();
    for (u32 w = 0; w < kNumQuants; ++w) {
        const auto quant = static_cast<Quant>(w);
        for (u32 x = 0; x < op::kNumActivations; ++x) {
            const auto activation = static_cast<Activation>(x);
            for (u32 tokens = 1; tokens <= kMaxGemvTokens; ++tokens)
                for (const bool strict : {false, true}) {
                    const u64 launches = counters.at(quant, activation, tokens, strict).load();
                    if (launches) counts.push_back({quant, activation, tokens, strict, false, launches});
                }
            for (u32 eights = 0; eights <= op::kMaxBlockEights; ++eights)
                if (const u64 launches = counters.at(quant, activation, eights).load())
                    counts.push_back({quant, activation, eights * 8, false, true, launches});
        }
    }
    return counts;
}

void reset_dispatch_counts() {
    auto& counters = process_local<op::Counters>();
    for (auto& count : counters.small) count.store(0);
    for (auto& count : counters.large) count.store(0);
}

}  // namespace deep_gemm
