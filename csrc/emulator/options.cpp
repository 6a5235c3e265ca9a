// Options from the environment and from the text of a device name.
#include "emulator/options.h"

#include "base/env.h"
#include "base/error.h"

#include <charconv>

namespace deep_gemm::emulator {
namespace {

u64 number(std::string_view key, std::string_view value) {
    u64 result = 0;
    const auto [stop, error] = std::from_chars(value.data(), value.data() + value.size(), result);
    DG_CHECK(error == std::errc{} && stop == value.data() + value.size(), value,
             "emulator option {}: got '{}', expected a number", key, value);
    return result;
}

// More than any host has cores, or any GPU multiprocessors.
u32 count(std::string_view name, u64 value) {
    constexpr u64 kMost = 65536;
    DG_CHECK(value <= kMost, value, "{}: got {}, expected at most {}", name, value, kMost);
    return static_cast<u32>(value);
}

bool on_or_off(std::string_view key, std::string_view value) {
    DG_CHECK(value == "on" || value == "off", value, "emulator option {}: got '{}', expected on or off", key,
             value);
    return value == "on";
}

void apply(Options& options, std::string_view key, std::string_view value) {
    if (key == "seed") {
        options.seed = number(key, value);
    } else if (key == "threads") {
        options.threads = count(fmt::format("emulator option {}", key), number(key, value));
    } else if (key == "sms") {
        options.num_sms = count(fmt::format("emulator option {}", key), number(key, value));
    } else if (key == "memory") {
        options.memory_bytes = number(key, value);
    } else if (key == "steps") {
        options.step_budget = number(key, value);
    } else if (key == "latency") {
        DG_CHECK(value == "eager" || value == "random" || value == "lazy", value,
                 "emulator option latency: got '{}', expected eager, random or lazy", value);
        options.latency = value == "eager"  ? Latency::eager
                          : value == "lazy" ? Latency::lazy
                                            : Latency::random;
    } else if (key == "accumulator") {
        DG_CHECK(value == "truncated" || value == "fp32", value,
                 "emulator option accumulator: got '{}', expected truncated or fp32", value);
        options.accumulator = value == "fp32" ? Accumulator::fp32 : Accumulator::truncated;
    } else if (key == "races") {
        options.races = on_or_off(key, value);
    } else if (key == "inputs") {
        options.inputs = on_or_off(key, value);
    } else {
        fail(ErrorKind::value,
             "emulator option: got '{}', expected seed, threads, sms, memory, steps, latency, accumulator, "
             "races or inputs",
             key);
    }
}

}  // namespace

Options options_from_environment() {
    Options options;
    options.threads = count("DG_EMULATOR_THREADS", env_number(Env::emulator_threads));
    return options;
}

Options parse_options(std::string_view text, Options defaults) {
    while (!text.empty()) {
        const size_t comma = text.find(',');
        const std::string_view item = text.substr(0, comma);
        text = comma == std::string_view::npos ? std::string_view{} : text.substr(comma + 1);
        const size_t equals = item.find('=');
        DG_CHECK(equals != std::string_view::npos, value, "emulator option: got '{}', expected name=value",
                 item);
        apply(defaults, item.substr(0, equals), item.substr(equals + 1));
    }
    return defaults;
}

}  // namespace deep_gemm::emulator
