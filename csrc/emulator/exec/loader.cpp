// Layout of variables follows the order of declaration with natural alignment, as the driver's parameter ABI does.
#include "emulator/exec/loader.h"

#include "base/error.h"
#include "emulator/exec/families.h"
#include "emulator/ir/effects.h"

#include <algorithm>
#include <cstring>

namespace deep_gemm::emulator {
namespace {

constexpr u32 kImageAlignment = 256;

u32 place_next(u32& cursor, const ptx::Variable& variable) {
    cursor = align_up(cursor, std::max(variable.alignment, 1u));
    const u32 at = cursor;
    cursor += variable.bytes;
    return at;
}

Layout lay_out(const ModuleImage& image, const ptx::Function& function, Program& program) {
    const ptx::Module& module = *image.module;
    Layout layout;
    u32 shared = kReservedSmemBytes, local = 0, param = 0;
    layout.module_variables.resize(module.variables.size());
    layout.function_variables.resize(function.variables.size());
    // Static variables first; the dynamic array begins after the last one.
    auto place_all = [&](bool dynamic) {
        for (size_t i = 0; i < module.variables.size(); ++i) {
            const ptx::Variable& v = module.variables[i];
            if (v.space != ptx::Space::shared) {
                layout.module_variables[i] = {v.space, image.addresses[i]};
            } else if (v.external_array != dynamic) {
                continue;
            } else if (dynamic) {
                program.dynamic_smem_alignment = std::max(program.dynamic_smem_alignment, v.alignment);
            } else {
                layout.module_variables[i] = {v.space, place_next(shared, v)};
            }
        }
    };
    place_all(false);
    for (size_t i = 0; i < function.variables.size(); ++i) {
        const ptx::Variable& v = function.variables[i];
        const bool is_parameter = std::find(function.parameters.begin(), function.parameters.end(), i) != function.parameters.end();
        u32& cursor = v.space == ptx::Space::shared ? shared : is_parameter ? param : local;
        layout.function_variables[i] = {v.space == ptx::Space::param && !is_parameter ? ptx::Space::local : v.space, place_next(cursor, v)};
    }
    place_all(true);
    program.static_smem_bytes = align_up(shared, program.dynamic_smem_alignment);
    for (size_t i = 0; i < module.variables.size(); ++i) {
        if (module.variables[i].external_array) layout.module_variables[i] = {ptx::Space::shared, program.static_smem_bytes};
    }
    program.local_bytes = align_up(local, 16u);
    program.param_bytes = param;
    return layout;
}

void decode_all(Decoder& decoder, const ptx::Function& function, const SlotMap& slots, Program& program) {
    for (const ptx::Instruction& instruction : function.code) {
        decoder.start(instruction);
        const DecodeFunction decode = find_family(instruction.root);
        if (decode == nullptr) decoder.unsupported("unknown opcode");
        decode(decoder);
        if (decoder.op.run == nullptr) decoder.unsupported();
        if (instruction.guard >= 0) {
            decoder.op.guard = static_cast<i32>(slots.offset[static_cast<size_t>(instruction.guard)]);
            decoder.op.guard_flip = instruction.guard_negated ? kFullMask : 0;
        }
        program.code.push_back(decoder.op);
        program.instructions.push_back(&instruction);
        program.owners.push_back(&function);
    }
}

// Every op but wgmma that names an accumulator register gets a check.
void guard_all(const ptx::Function& function, const SlotMap& slots, Program& program) {
    std::vector<bool> held(function.registers.size(), false);
    bool any = false;
    std::vector<Effects> effects;
    for (const ptx::Instruction& instruction : function.code) {
        effects.push_back(effects_of(instruction));
        for (u32 r : effects.back().asynchronous) any = held[r] = true;
    }
    for (u32 pc = 0; any && pc < effects.size(); ++pc) {
        if (!effects[pc].asynchronous.empty()) continue;
        std::vector<u32> touched;
        for (const auto* registers : {&effects[pc].reads, &effects[pc].writes}) {
            for (u32 r : *registers) {
                if (held[r]) touched.push_back(slots.offset[r]);
            }
        }
        if (!touched.empty()) guard_accumulators(program, pc, std::move(touched));
    }
}

void append_exit(Decoder& decoder, const ptx::Function& function, Program& program) {
    ptx::Instruction exit;
    exit.root = "exit";
    decoder.start(exit);
    decode_control(decoder);
    program.code.push_back(decoder.op);
    program.instructions.push_back(nullptr);
    program.owners.push_back(&function);
}

}  // namespace

std::shared_ptr<ModuleImage> make_image(std::shared_ptr<const ptx::Module> module) {
    auto image = std::make_shared<ModuleImage>();
    image->module = module;
    for (const ptx::Variable& v : module->variables) {
        const bool in_memory = v.space == ptx::Space::global || v.space == ptx::Space::constant;
        image->storage.push_back(in_memory ? std::make_unique<std::byte[]>(v.bytes + kImageAlignment) : nullptr);
        u64 address = 0;
        if (in_memory) {
            address = align_up(reinterpret_cast<u64>(image->storage.back().get()), u64{kImageAlignment});
            if (!v.initial.empty()) std::memcpy(reinterpret_cast<void*>(address), v.initial.data(), std::min<size_t>(v.initial.size(), v.bytes));
        }
        image->addresses.push_back(address);
    }
    for (size_t i = 0; i < module->variables.size(); ++i) {
        for (const auto& relocation : module->variables[i].relocations) {
            const auto found = std::find_if(module->variables.begin(), module->variables.end(),
                                            [&](const ptx::Variable& v) { return v.name == relocation.symbol; });
            DG_CHECK(found != module->variables.end(), emulator, "PTX variable {} refers to unknown symbol {}",
                     module->variables[i].name, relocation.symbol);
            const u64 value = image->addresses[static_cast<size_t>(found - module->variables.begin())] + relocation.addend;
            std::memcpy(reinterpret_cast<void*>(image->addresses[i] + relocation.offset), &value, sizeof value);
        }
    }
    return image;
}

std::shared_ptr<const Program> load_program(const ModuleImage& image, const ptx::Function& function) {
    auto program = std::make_shared<Program>();
    program->name = std::string(function.name);
    program->module = image.module;
    program->function = &function;
    const Layout layout = lay_out(image, function, *program);
    const SlotMap slots = assign_slots(function, 0);
    program->num_registers = slots.peak_lanes_bytes / (4 * kLanes);
    ConstantPool constants(*program);
    constants.begin(align_up(slots.bytes, 64u));
    Decoder decoder(*program, function, slots, layout, constants);
    decode_all(decoder, function, slots, *program);
    guard_all(function, slots, *program);
    append_exit(decoder, function, *program);
    program->register_bytes = align_up(program->register_bytes, 64u);
    return program;
}

}  // namespace deep_gemm::emulator
