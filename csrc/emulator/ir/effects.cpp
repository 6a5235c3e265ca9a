// Destination rules: operand 0 is written, except for the roots listed here.
#include "emulator/ir/effects.h"

#include <algorithm>
#include <array>

namespace deep_gemm::emulator {
namespace {

void collect(const ptx::Operand& operand, std::vector<u32>& out) {
    if (operand.kind == ptx::OperandKind::reg) out.push_back(operand.id);
    for (const auto& item : operand.items) collect(item, out);
}

bool writes_nothing(const ptx::Instruction& instruction) {
    static constexpr std::array<std::string_view, 24> kRoots = {
        "st",       "red",       "bra",         "brx",     "fence",         "membar",         "cp",
        "prefetch", "ret",       "exit",        "trap",    "setmaxnreg",    "griddepcontrol", "nanosleep",
        "stmatrix", "prefetchu", "brkpt",       "discard", "applypriority", "pmevent",        "call",
        "multimem", "tensormap", "stackrestore"};
    if (std::find(kRoots.begin(), kRoots.end(), instruction.root) != kRoots.end()) return true;
    const std::string_view kind =
        instruction.modifiers.empty() ? std::string_view{} : instruction.modifiers[0];
    if (instruction.root == "bar" || instruction.root == "barrier") {
        return !instruction.has("red");
    }
    if (instruction.root == "mbarrier") {
        return kind == "init" || kind == "inval" || kind == "expect_tx" || kind == "complete_tx";
    }
    if (instruction.root == "wgmma") return kind != "mma_async";
    if (instruction.root == "tcgen05") return kind != "ld";
    return false;
}

}  // namespace

Effects effects_of(const ptx::Function& function, const ptx::Instruction& instruction) {
    Effects effects;
    const bool none = writes_nothing(instruction);
    for (size_t i = 0; i < instruction.operands.size(); ++i) {
        const ptx::Operand& operand = instruction.operands[i];
        const bool is_destination = i == 0 && !none && operand.kind != ptx::OperandKind::address;
        collect(operand, is_destination ? effects.writes : effects.reads);
    }
    if (instruction.root == "wgmma" && !none) {
        effects.reads.insert(effects.reads.end(), effects.writes.begin(), effects.writes.end());
        effects.asynchronous = effects.writes;
        if (instruction.operands.size() > 1 && instruction.operands[1].kind == ptx::OperandKind::vector)
            collect(instruction.operands[1], effects.asynchronous);
    }
    if (instruction.guard >= 0) {
        effects.reads.push_back(static_cast<u32>(instruction.guard));
        // A guarded write leaves the other lanes' values alive.
        effects.reads.insert(effects.reads.end(), effects.writes.begin(), effects.writes.end());
    }
    const bool ends = instruction.root == "ret" || instruction.root == "exit" || instruction.root == "trap";
    const auto add_target = [&effects](const ptx::Operand& operand) {
        if (operand.kind == ptx::OperandKind::label) effects.targets.push_back(operand.id);
    };
    if (instruction.root == "bra" && instruction.operands.size() == 1) add_target(instruction.operands[0]);
    if (instruction.root == "brx" && instruction.operands.size() == 2 &&
        instruction.operands[1].kind == ptx::OperandKind::label &&
        instruction.operands[1].id < function.code.size()) {
        for (const auto& label : function.code[instruction.operands[1].id].operands) add_target(label);
    }
    effects.falls_through = instruction.guard >= 0 || !(ends || !effects.targets.empty());
    return effects;
}

}  // namespace deep_gemm::emulator
