#include "jit/artifact.h"

#include <algorithm>
#include <charconv>

namespace deep_gemm::jit {

namespace {

// Codes ptxas gives to wgmma it had to serialise, and to other lost pipelining.
constexpr std::string_view kPerformanceCodes[] = {"(C7508)", "(C7510)", "(C7514)", "(C7519)", "(C7520)"};

// The number that ends right before `mark`: "12 bytes spill stores".
u32 number_before(std::string_view line, std::string_view mark) {
    const size_t end = line.find(mark);
    if (end == line.npos) return 0;
    size_t begin = end;
    while (begin > 0 && line[begin - 1] >= '0' && line[begin - 1] <= '9') --begin;
    u32 number = 0;
    std::from_chars(line.data() + begin, line.data() + end, number);
    return number;
}

void parse_line(std::string_view line, BuildStats& stats) {
    stats.stack_bytes += number_before(line, " bytes stack frame");
    stats.spill_store_bytes += number_before(line, " bytes spill stores");
    stats.spill_load_bytes += number_before(line, " bytes spill loads");
    stats.registers = std::max(stats.registers, number_before(line, " registers"));
    stats.static_smem_bytes = std::max(stats.static_smem_bytes, number_before(line, " bytes smem"));
    for (std::string_view code : kPerformanceCodes)
        if (line.find(code) != line.npos) return stats.warnings.emplace_back(line), void();
}

}  // namespace

Target target_of(const driver::Device& device) {
    return {device.properties().arch, device.image_kind()};
}

BuildStats parse_build_log(std::string_view log) {
    BuildStats stats;
    while (!log.empty()) {
        const size_t end = std::min(log.find('\n'), log.size());
        parse_line(log.substr(0, end), stats);
        log.remove_prefix(std::min(end + 1, log.size()));
    }
    return stats;
}

const char* name_of(Origin origin) {
    switch (origin) {
        case Origin::memory: return "memory";
        case Origin::bundle: return "bundle";
        case Origin::disk: return "disk";
        case Origin::compiled: return "compiled";
    }
    return "?";
}

}  // namespace deep_gemm::jit
