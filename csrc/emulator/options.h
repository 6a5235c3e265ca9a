// How the emulated GPU behaves: schedule, asynchronous latency, accumulator model. Values, with one reader of the
// environment; a test passes its own.
#pragma once

#include <deep_gemm/spec/types.h>

namespace deep_gemm::emulator {

// When an asynchronous operation lands: at once, after a log-uniform random delay, or when nothing else can run.
enum class Latency : u8 { eager, random, lazy };

// FP8 wgmma sums: what Hopper does (13 mantissa bits survive alignment), or plain fp32.
enum class Accumulator : u8 { truncated, fp32 };

struct Options {
    u64 seed = 0;
    u32 threads = 0;   // 0: as many as cores
    u32 num_sms = 0;   // 0: what the emulated GPU has
    Latency latency = Latency::random;
    Accumulator fp8_accumulator = Accumulator::truncated;
    u64 step_budget = 200'000'000;  // warp instructions without progress before a launch counts as livelocked
};

// DG_EMULATOR_SEED, DG_EMULATOR_THREADS, DG_EMULATOR_SMS, DG_EMULATOR_LATENCY (eager, random, lazy),
// DG_EMULATOR_FP8_ACCUMULATOR (truncated, fp32).
[[nodiscard]] Options options_from_environment();

}  // namespace deep_gemm::emulator
