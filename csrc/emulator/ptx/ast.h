// A parsed PTX module: functions of instructions whose registers, labels and variables are resolved to
// indices. All string_views point into Module::text. Modifier order is kept: it is the instruction's full
// name.
#pragma once

#include <deep_gemm/spec/types.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace deep_gemm::emulator::ptx {

enum class Space : u8 { reg, shared, global, constant, local, param };

// kPredicate registers hold one bit per lane; 1- and 2-byte registers live in 32-bit lanes.
enum class RegisterWidth : u8 { predicate = 0, bytes_4 = 4, bytes_8 = 8, bytes_16 = 16 };

struct Register {
    std::string_view name;
    RegisterWidth width = RegisterWidth::bytes_4;
};

struct Variable {
    std::string_view name;
    Space space = Space::global;
    u32 alignment = 1;
    u32 bytes = 0;
    bool external_array = false;  // extern .shared x[]
    std::vector<u8> initial;      // may be shorter than bytes: the rest is zero
    struct Relocation {
        u32 offset;
        std::string_view symbol;
        u64 addend;
    };
    std::vector<Relocation> relocations;
};

enum class OperandKind : u8 {
    reg,        // id: register
    immediate,  // value: bits
    special,    // text: %tid.x
    variable,   // id: Function::variables or Module::variables (is_local tells), value: byte offset
    function,   // text
    label,      // id: instruction index
    vector,     // items
    pair,       // items: d|p
    address,    // items[0]: base (reg, variable or immediate), items[1..]: coordinates; value: byte offset
    arguments,  // items: the parenthesised list of a call
    sink,       // _
};

struct Operand {
    OperandKind kind = OperandKind::sink;
    bool negated = false;   // !%p
    bool is_local = false;  // variable belongs to the function
    u32 id = 0;
    u64 value = 0;
    std::string_view text;
    std::vector<Operand> items;
};

struct SourceLine {
    u32 file = 0, line = 0;              // innermost
    u32 outer_file = 0, outer_line = 0;  // where the outermost inlined function was called; 0 if not inlined
};

struct Instruction {
    u32 line = 0;    // PTX line
    u32 source = 0;  // index into Function::sources, 0: none
    i32 guard = -1;  // predicate register
    bool guard_negated = false;
    std::string_view root;
    std::vector<std::string_view> modifiers;  // without dots, in order
    std::vector<Operand> operands;

    [[nodiscard]] bool has(std::string_view modifier) const {
        for (const auto& m : modifiers) {
            if (m == modifier) return true;
        }
        return false;
    }
};

struct Function {
    std::string_view name;
    bool is_entry = false;
    bool is_declaration = false;
    std::vector<u32> parameters;  // indices into variables, in order
    std::vector<u32> results;     // likewise; .func only
    std::vector<Register> registers;
    std::vector<Variable> variables;  // .param, .shared and .local of this function
    std::vector<Instruction> code;
    std::vector<SourceLine> sources{SourceLine{}};
    u32 required_cluster[3] = {0, 0, 0};
    u32 max_threads = 0, required_threads = 0;
};

struct Module {
    std::string text;
    std::vector<std::string_view> lines;  // lines[n - 1] is PTX line n
    std::string_view target;              // sm_90a
    std::vector<Variable> variables;
    std::vector<std::unique_ptr<Function>> functions;
    std::vector<std::string_view> files;  // by .file number

    [[nodiscard]] const Function* find(std::string_view name) const {
        for (const auto& f : functions) {
            if (f->name == name && !f->is_declaration) return f.get();
        }
        return nullptr;
    }
};

}  // namespace deep_gemm::emulator::ptx
