// How the emulated GPU behaves: schedule, asynchronous latency, accumulator model. A device has one Options
// value for its life; a name such as "emulator:sm_90a,seed=3" makes another device.
#pragma once

#include <deep_gemm/spec/types.h>

#include <span>
#include <string_view>

namespace deep_gemm::emulator {

// When an asynchronous operation lands: at once, after a log-uniform random delay, or when nothing else can
// run.
enum class Latency : u8 { eager, random, lazy };

// Tensor-core sums: what Hopper does (an FP8 sum keeps 13 mantissa bits), or plain fp32.
enum class Accumulator : u8 { truncated, fp32 };

struct Options {
    u64 seed = 0;
    u32 threads = 0;       // 0: as many as cores
    u32 num_sms = 0;       // 0: what the emulated GPU has
    u64 memory_bytes = 0;  // 0: what it has, as far as the host has it
    Latency latency = Latency::random;
    Accumulator accumulator = Accumulator::truncated;
    bool races = true;              // the happens-before check of shared memory
    bool inputs = true;             // LaunchConfig::check_inputs; off: what a GPU does with any numbers
    u64 step_budget = 200'000'000;  // warp instructions without progress before a launch counts as livelocked
};

// A row of the options that a device's name may carry, for documents and errors.
struct OptionRow {
    const char *name, *values, *default_text, *meaning;
};
[[nodiscard]] std::span<const OptionRow> option_table();

// DG_EMULATOR_THREADS; the rest are the defaults above.
[[nodiscard]] Options options_from_environment();

// "seed=3,threads=1,sms=4,memory=1000000,latency=lazy,accumulator=fp32,races=off,inputs=off,steps=1000000",
// any subset; the rest as in `defaults`.
[[nodiscard]] Options parse_options(std::string_view text, Options defaults);

}  // namespace deep_gemm::emulator
