// Options from the environment and from the text of a device name.
#include "emulator/options.h"

#include "base/env.h"
#include "base/error.h"

#include <charconv>

namespace deep_gemm::emulator {
namespace {

// clang-format off
constexpr OptionRow kTable[] = {
    {"seed",        "a number",            "0",         "the schedule and the delays that are drawn; the "
                                                        "same seed gives the same ones"},
    {"threads",     "a number",            "0",         "host threads; 0: DG_EMULATOR_THREADS, else one "
                                                        "per core"},
    {"sms",         "a number",            "0",         "multiprocessors; 0: as many as the GPU has"},
    {"memory",      "a number",            "0",         "bytes that allocate() gives in all; 0: what the "
                                                        "GPU has, as far as the host has it"},
    {"steps",       "a number",            "200000000", "warp instructions without progress before a "
                                                        "launch counts as livelocked"},
    {"latency",     "eager, random, lazy", "random",    "when asynchronous operations land: at once, after "
                                                        "a drawn delay, when nothing else can run"},
    {"accumulator", "truncated, fp32",     "truncated", "tensor-core sums as Hopper's, or plain fp32"},
    {"races",       "on, off",             "on",        "the check that accesses to shared memory are "
                                                        "ordered"},
    {"inputs",      "on, off",             "on",        "the check of numbers that grouped GEMMs read on "
                                                        "the device"},
};
// clang-format on

u64 number(std::string_view key, std::string_view value) {
    u64 result = 0;
    const auto [stop, error] = std::from_chars(value.data(), value.data() + value.size(), result);
    DG_CHECK(error == std::errc{} && stop == value.data() + value.size(), value,
             "emulator option {}: got '{}', expected a number; correct it", key, value);
    return result;
}

// More than any host has cores, or any GPU multiprocessors.
u32 count(std::string_view name, u64 value) {
    constexpr u64 kMost = 65536;
    DG_CHECK(value <= kMost, value, "{}: got {}, expected at most {}; correct it", name, value, kMost);
    return static_cast<u32>(value);
}

bool on_or_off(std::string_view key, std::string_view value) {
    DG_CHECK(value == "on" || value == "off", value,
             "emulator option {}: got '{}', expected on or off; "
             "correct it",
             key, value);
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
                 "emulator option latency: got '{}', expected eager, random or lazy; correct it", value);
        options.latency = value == "eager"  ? Latency::eager
                          : value == "lazy" ? Latency::lazy
                                            : Latency::random;
    } else if (key == "accumulator") {
        DG_CHECK(value == "truncated" || value == "fp32", value,
                 "emulator option accumulator: got '{}', expected truncated or fp32; correct it", value);
        options.accumulator = value == "fp32" ? Accumulator::fp32 : Accumulator::truncated;
    } else if (key == "races") {
        options.races = on_or_off(key, value);
    } else if (key == "inputs") {
        options.inputs = on_or_off(key, value);
    } else {
        std::string names;
        for (const OptionRow& row : kTable) names += fmt::format("{}{}", names.empty() ? "" : ", ", row.name);
        fail(ErrorKind::value, "emulator option: got '{}', expected one of {}; correct it", key, names);
    }
}

}  // namespace

std::span<const OptionRow> option_table() {
    return kTable;
}

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
        DG_CHECK(equals != std::string_view::npos, value,
                 "emulator option: got '{}', expected name=value; "
                 "correct it",
                 item);
        apply(defaults, item.substr(0, equals), item.substr(equals + 1));
    }
    return defaults;
}

}  // namespace deep_gemm::emulator
