// Text of a Place.
#include "emulator/check/place.h"

#include <fmt/format.h>

namespace deep_gemm::emulator {
namespace {

constexpr size_t kMaxText = 110;

std::string_view trimmed(std::string_view text) {
    const size_t begin = text.find_first_not_of(" \t\r");
    if (begin == std::string_view::npos) return {};
    return text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

std::string source_of(const ptx::Module& module, u32 file, u32 line) {
    const std::string_view name = file < module.files.size() ? module.files[file] : std::string_view{"?"};
    const size_t slash = name.rfind('/');
    return fmt::format("{}:{}", slash == std::string_view::npos ? name : name.substr(slash + 1), line);
}

}  // namespace

std::string describe_line(const Program& program, u32 pc) {
    const ptx::Instruction* instruction =
        pc < program.instructions.size() ? program.instructions[pc] : nullptr;
    if (instruction == nullptr) return "at the end of the kernel";
    const ptx::Module& module = *program.module;
    const std::string_view text =
        instruction->line <= module.lines.size() ? module.lines[instruction->line - 1] : "";
    const std::string_view shown = trimmed(text);
    // A wgmma line lists up to 128 registers: its beginning says enough.
    std::string out = fmt::format("PTX line {}: {}{}", instruction->line, shown.substr(0, kMaxText),
                                  shown.size() > kMaxText ? "..." : "");
    const ptx::SourceLine& source = program.owners[pc]->sources[instruction->source];
    if (source.line != 0) {
        out += fmt::format(" ({}", source_of(module, source.file, source.line));
        if (source.outer_line != 0)
            out += fmt::format(", inlined at {}", source_of(module, source.outer_file, source.outer_line));
        out += ")";
    }
    return out;
}

std::string describe(const Place& place) {
    std::string out = fmt::format("kernel {}, CTA ({},{},{}), warp {}", place.program->name, place.cta[0],
                                  place.cta[1], place.cta[2], place.warp);
    if (place.lane >= 0) out += fmt::format(", lane {}", place.lane);
    return out + ", " + describe_line(*place.program, place.pc);
}

}  // namespace deep_gemm::emulator
