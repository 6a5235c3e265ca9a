// Variables follow the order of declaration with natural alignment, as the driver's parameter ABI does.
#include "emulator/exec/units.h"

#include "base/error.h"
#include "emulator/exec/families.h"

#include <algorithm>

namespace deep_gemm::emulator {
namespace {

u32 place_next(u32& cursor, const ptx::Variable& variable) {
    cursor = align_up(cursor, std::max(variable.alignment, 1u));
    const u32 at = cursor;
    cursor += variable.bytes;
    return at;
}

// Where the variables of a Program go, while its functions are laid out one after the other.
struct Cursors {
    u32 shared = kReservedSmemBytes, local = 0, param = 0;
};

// Static shared variables of the module come first; the dynamic array begins after the last static one of any
// function.
std::vector<VariablePlace> lay_out_module(const ModuleImage& image, Cursors& cursors, Program& program) {
    const auto& variables = image.module->variables;
    std::vector<VariablePlace> places(variables.size());
    for (size_t i = 0; i < variables.size(); ++i) {
        const ptx::Variable& v = variables[i];
        places[i] = {v.space, image.addresses[i]};
        if (v.space != ptx::Space::shared) continue;
        if (v.external_array) {
            program.dynamic_smem_alignment = std::max(program.dynamic_smem_alignment, v.alignment);
        } else {
            places[i].value = place_next(cursors.shared, v);
        }
    }
    return places;
}

void lay_out_function(Unit& unit, Cursors& cursors) {
    const ptx::Function& function = *unit.function;
    for (size_t i = 0; i < function.variables.size(); ++i) {
        const ptx::Variable& v = function.variables[i];
        const bool of_kernel =
            function.is_entry &&
            std::find(function.parameters.begin(), function.parameters.end(), i) != function.parameters.end();
        u32& cursor = v.space == ptx::Space::shared ? cursors.shared
                      : of_kernel                   ? cursors.param
                                                    : cursors.local;
        const ptx::Space space = v.space == ptx::Space::param && !of_kernel ? ptx::Space::local : v.space;
        unit.layout.function_variables.push_back({space, place_next(cursor, v)});
    }
}

const ptx::Operand* callee_of(const ptx::Instruction& instruction) {
    if (instruction.root != "call") return nullptr;
    for (const ptx::Operand& operand : instruction.operands) {
        if (operand.kind == ptx::OperandKind::function) return &operand;
    }
    return nullptr;
}

// The kernel and every device function it reaches, callers first. Recursion is refused: there is no stack.
void collect(const ptx::Module& module, const ptx::Function& function,
             std::vector<const ptx::Function*>& path, std::vector<Unit>& units) {
    DG_CHECK(std::find(path.begin(), path.end(), &function) == path.end(), emulator,
             "emulator: device function {} is recursive, which is not modelled; unroll it", function.name);
    const bool known =
        std::any_of(units.begin(), units.end(), [&](const Unit& u) { return u.function == &function; });
    if (!known) units.emplace_back().function = &function;
    path.push_back(&function);
    for (const ptx::Instruction& instruction : function.code) {
        const ptx::Operand* callee = callee_of(instruction);
        const ptx::Function* body = callee == nullptr ? nullptr : module.find(callee->text);
        if (body != nullptr) collect(module, *body, path, units);
    }
    path.pop_back();
}

// What reads an instruction before its family decodes it relies on this.
void check_form(const Program& program, const ptx::Function& function, const ptx::Instruction& instruction) {
    const Family* family = find_family(instruction.root);
    if (family == nullptr) refuse(program, instruction, "unknown opcode");
    const size_t count = instruction.operands.size();
    if (count < family->min_operands || count > family->max_operands) {
        refuse(program, instruction,
               fmt::format("got {} operands, expected {}", count,
                           family->min_operands == family->max_operands
                               ? fmt::format("{}", family->min_operands)
                               : fmt::format("{} to {}", family->min_operands, family->max_operands)));
    }
    if (instruction.guard >= 0 &&
        function.registers[static_cast<u32>(instruction.guard)].width != ptx::RegisterWidth::predicate)
        refuse(program, instruction, "the guard is no predicate");
}

// The .param variables of a call are the callee's parameters and results under another name.
void join_call_variables(Unit& caller, const std::vector<Unit>& units) {
    for (const ptx::Instruction& instruction : caller.function->code) {
        const ptx::Operand* callee = callee_of(instruction);
        if (callee == nullptr) continue;
        const auto unit = std::find_if(units.begin(), units.end(),
                                       [&](const Unit& u) { return u.function->name == callee->text; });
        if (unit == units.end()) continue;
        bool before = true;
        for (const ptx::Operand& operand : instruction.operands) {
            if (operand.kind == ptx::OperandKind::function) before = false;
            if (operand.kind != ptx::OperandKind::arguments) continue;
            const auto& formal = before ? unit->function->results : unit->function->parameters;
            for (size_t i = 0; i < operand.items.size() && i < formal.size(); ++i) {
                DG_CHECK(
                    operand.items[i].kind == ptx::OperandKind::variable && operand.items[i].is_local,
                    emulator,
                    "emulator: PTX line {}: a call argument that is not a .param variable is not modelled",
                    instruction.line);
                caller.layout.function_variables[operand.items[i].id] =
                    unit->layout.function_variables[formal[i]];
            }
        }
    }
}

}  // namespace

std::vector<Unit> make_units(const ModuleImage& image, const ptx::Function& kernel, Program& program) {
    std::vector<Unit> units;
    std::vector<const ptx::Function*> path;
    collect(*image.module, kernel, path, units);
    for (const Unit& unit : units) {
        for (const ptx::Instruction& instruction : unit.function->code)
            check_form(program, *unit.function, instruction);
    }
    Cursors cursors;
    std::vector<VariablePlace> module_places = lay_out_module(image, cursors, program);
    u32 slots_end = 0, code_end = 0;
    for (Unit& unit : units) {
        lay_out_function(unit, cursors);
        unit.slots = assign_slots(*unit.function, slots_end);
        program.num_registers += unit.slots.peak_lanes_bytes / (4 * kLanes);
        slots_end = align_up(unit.slots.bytes, 64u);
        if (&unit != &units[0]) unit.return_slot = slots_end, slots_end += 4 * kLanes;
        unit.code_begin = code_end;
        code_end += static_cast<u32>(unit.function->code.size()) + 1;
    }
    for (Unit& unit : units) join_call_variables(unit, units);
    program.static_smem_bytes = align_up(cursors.shared, program.dynamic_smem_alignment);
    program.local_bytes = align_up(cursors.local, 16u);
    program.param_bytes = cursors.param;
    program.constants_begin = program.register_bytes = slots_end;
    for (size_t i = 0; i < module_places.size(); ++i) {
        if (image.module->variables[i].external_array) module_places[i].value = program.static_smem_bytes;
    }
    for (Unit& unit : units) unit.layout.module_variables = module_places;
    return units;
}

}  // namespace deep_gemm::emulator
