// Images of a module's variables, and decoding: one Op per instruction, in order.
#include "emulator/exec/loader.h"

#include "base/error.h"
#include "emulator/exec/families.h"
#include "emulator/exec/tensor_registers.h"
#include "emulator/exec/units.h"
#include "emulator/ir/effects.h"

#include <algorithm>
#include <cstring>

namespace deep_gemm::emulator {
namespace {

constexpr u32 kImageAlignment = 256;

void append(Program& program, const Op& op, const ptx::Instruction* instruction,
            const ptx::Function& function) {
    program.code.push_back(op);
    program.instructions.push_back(instruction);
    program.owners.push_back(&function);
}

void decode_unit(const Unit& unit, std::span<const Unit> units, ConstantPool& constants, Program& program) {
    const ptx::Function& function = *unit.function;
    Decoder decoder(program, unit, units, constants);
    for (const ptx::Instruction& instruction : function.code) {
        decoder.start(instruction);
        find_family(instruction.root)->decode(decoder);
        if (decoder.op.run == nullptr) decoder.unsupported();
        if (instruction.guard >= 0) {
            decoder.op.guard = static_cast<i32>(unit.slots.offset[static_cast<size_t>(instruction.guard)]);
            decoder.op.guard_flip = instruction.guard_negated ? kFullMask : 0;
        }
        append(program, decoder.op, &instruction, function);
    }
    ptx::Instruction end;
    end.root = "ret";
    decoder.start(end);
    decode_control(decoder);
    append(program, decoder.op, nullptr, function);
}

// A value that no path can have written is a mistake. Whether one path forgot to is not asked: wgmma with
// scale-d = 0 reads accumulators that nothing wrote before it.
void check_written(const Unit& unit, const Program& program, const std::vector<Effects>& effects) {
    const ptx::Function& function = *unit.function;
    std::vector<bool> written(function.registers.size(), false);
    for (const Effects& effect : effects) {
        for (u32 r : effect.writes) written[r] = true;
    }
    for (size_t i = 0; i < effects.size(); ++i) {
        for (u32 r : effects[i].reads) {
            if (!written[r]) refuse(program, function.code[i], "reads a register that nothing writes");
        }
    }
}

// Every op but wgmma that names a register of the tensor core gets a check.
void guard_all(const Unit& unit, Program& program, const std::vector<Effects>& effects) {
    std::vector<bool> held(unit.function->registers.size(), false);
    bool any = false;
    for (const Effects& effect : effects) {
        for (u32 r : effect.asynchronous) any = held[r] = true;
    }
    for (u32 i = 0; any && i < effects.size(); ++i) {
        if (!effects[i].asynchronous.empty()) continue;
        std::vector<u32> touched;
        for (const auto* registers : {&effects[i].reads, &effects[i].writes}) {
            for (u32 r : *registers) {
                if (held[r]) touched.push_back(unit.slots.offset[r]);
            }
        }
        if (!touched.empty()) guard_tensor_registers(program, unit.code_begin + i, std::move(touched));
    }
}

}  // namespace

std::shared_ptr<ModuleImage> make_image(std::shared_ptr<const ptx::Module> module) {
    auto image = std::make_shared<ModuleImage>();
    image->module = module;
    for (const ptx::Variable& v : module->variables) {
        const bool in_memory = v.space == ptx::Space::global || v.space == ptx::Space::constant;
        image->storage.push_back(in_memory ? std::make_unique<std::byte[]>(v.bytes + kImageAlignment)
                                           : nullptr);
        u64 address = 0;
        if (in_memory) {
            address = align_up(reinterpret_cast<u64>(image->storage.back().get()), u64{kImageAlignment});
            if (!v.initial.empty())
                std::memcpy(reinterpret_cast<void*>(address), v.initial.data(),
                            std::min<size_t>(v.initial.size(), v.bytes));
        }
        image->addresses.push_back(address);
    }
    for (size_t i = 0; i < module->variables.size(); ++i) {
        for (const auto& relocation : module->variables[i].relocations) {
            const auto found =
                std::find_if(module->variables.begin(), module->variables.end(),
                             [&](const ptx::Variable& v) { return v.name == relocation.symbol; });
            DG_CHECK(found != module->variables.end(), emulator,
                     "PTX variable {} refers to unknown symbol {}", module->variables[i].name,
                     relocation.symbol);
            const u64 value =
                image->addresses[static_cast<size_t>(found - module->variables.begin())] + relocation.addend;
            std::memcpy(reinterpret_cast<void*>(image->addresses[i] + relocation.offset), &value,
                        sizeof value);
        }
    }
    return image;
}

std::shared_ptr<const Program> load_program(const ModuleImage& image, const ptx::Function& function) {
    auto program = std::make_shared<Program>();
    program->name = std::string(function.name);
    program->module = image.module;
    program->function = &function;
    const std::vector<Unit> units = make_units(image, function, *program);
    ConstantPool constants(*program);
    for (const Unit& unit : units) decode_unit(unit, units, constants, *program);
    for (const Unit& unit : units) {
        std::vector<Effects> effects;
        effects.reserve(unit.function->code.size());
        for (const ptx::Instruction& instruction : unit.function->code)
            effects.push_back(effects_of(*unit.function, instruction));
        check_written(unit, *program, effects);
        guard_all(unit, *program, effects);
    }
    program->register_bytes = align_up(program->register_bytes, 64u);
    return program;
}

}  // namespace deep_gemm::emulator
