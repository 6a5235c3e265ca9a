// What a family's decode function works with: the instruction, the Op under construction, and operands as
// register slots. Immediates, special registers and variable addresses become constant slots, so handlers see
// slots only.
#pragma once

#include "emulator/ir/op.h"
#include "emulator/ir/slots.h"
#include "emulator/ir/types.h"

#include <map>

namespace deep_gemm::emulator {

// Where a variable lives: a shared or local offset, a host address, an offset in the parameter buffer.
struct VariablePlace {
    ptx::Space space = ptx::Space::global;
    u64 value = 0;
};

struct Layout {
    std::vector<VariablePlace> module_variables, function_variables;  // parallel to the AST's vectors
};

// One function of a Program: the kernel, or a device function it calls. Device functions have registers and
// .param variables of their own, so there is no stack and no recursion; `return_slot` holds each lane's
// return pc.
struct Unit {
    const ptx::Function* function = nullptr;
    Layout layout;
    SlotMap slots;
    u32 code_begin = 0;
    u32 return_slot = kNoSlot;  // none: the kernel
};

// Constant slots of one Program, deduplicated.
class ConstantPool {
  public:
    explicit ConstantPool(Program& program) : program_(program) {}
    u32 immediate(u64 value, u32 bytes);
    u32 special(Special what, u32 bytes, u64 addend = 0);

  private:
    u32 allocate(u32 bytes);
    Program& program_;
    std::map<std::pair<u64, u32>, u32> immediates_;
    std::map<std::tuple<Special, u32, u64>, u32> specials_;
};

struct Address {
    u32 base = kNoSlot;
    bool wide = false;  // base holds 64-bit lanes
    i64 offset = 0;
};

// Refuses an instruction at load: the error quotes its PTX line.
[[noreturn]] void refuse(const Program& program, const ptx::Instruction& instruction, std::string_view why);

class Decoder {
  public:
    Decoder(Program& program, const Unit& unit, std::span<const Unit> units, ConstantPool& constants)
        : program(program),
          unit(unit),
          units(units),
          function_(*unit.function),
          slots_(unit.slots),
          layout_(unit.layout),
          constants_(constants) {}

    void start(const ptx::Instruction& instruction) {
        in = &instruction;
        op = Op{};
    }

    const ptx::Instruction* in = nullptr;
    Op op;
    Program& program;
    const Unit& unit;             // the function being decoded
    std::span<const Unit> units;  // all functions of the program

    [[nodiscard]] bool has(std::string_view modifier) const { return in->has(modifier); }
    [[nodiscard]] bool has_prefix(std::string_view prefix) const;
    [[nodiscard]] std::string_view modifier(size_t i) const {
        return i < in->modifiers.size() ? in->modifiers[i] : std::string_view{};
    }
    [[nodiscard]] size_t num_operands() const { return in->operands.size(); }
    [[nodiscard]] const ptx::Operand& operand(size_t i) const;
    // The last modifier that is a type, and the one before it.
    [[nodiscard]] Type type() const { return type_from_end(0); }
    [[nodiscard]] Type type_from_end(u32 skip) const;

    // Destinations: a register of at least `bytes` per lane; a predicate. `_` is kNoSlot.
    [[nodiscard]] u32 reg(const ptx::Operand& operand, u32 bytes) const;
    [[nodiscard]] u32 reg_or_none(const ptx::Operand& operand, u32 bytes) const;
    [[nodiscard]] u32 predicate(const ptx::Operand& operand) const;
    [[nodiscard]] u32 predicate_or_none(const ptx::Operand& operand) const;
    void destination_pair(const ptx::Operand& operand);                   // d|p or d: op.d, op.target
    [[nodiscard]] u32 register_bytes(const ptx::Operand& operand) const;  // 0 for a predicate
    [[nodiscard]] u32 source(const ptx::Operand& operand, u32 bytes);     // 4 or 8 bytes per lane
    [[nodiscard]] Address address(const ptx::Operand& operand, bool base_only = true);
    void set_address(const ptx::Operand& operand);  // into op.a, op.immediate, op.flags
    [[nodiscard]] u64 immediate(const ptx::Operand& operand) const;
    [[nodiscard]] bool is_immediate(const ptx::Operand& operand) const {
        return operand.kind == ptx::OperandKind::immediate;
    }
    [[nodiscard]] const VariablePlace& place(const ptx::Operand& operand) const;
    [[nodiscard]] u32 constant(u64 value, u32 bytes) { return constants_.immediate(value, bytes); }
    void set_list(std::vector<u32> values);
    template <typename T>
    T* make_extra(T value) {
        auto owned = std::make_shared<T>(std::move(value));
        T* raw = owned.get();
        program.extras.push_back(std::move(owned));
        op.extra = raw;
        return raw;
    }

    // d = op a, b, c with `bytes` per lane.
    void destination_and_sources(u32 bytes) { destination_and_sources(bytes, bytes, bytes, bytes); }
    void destination_and_sources(u32 d_bytes, u32 a_bytes, u32 b_bytes, u32 c_bytes);

    [[noreturn]] void unsupported(std::string_view why = "this form is not modelled") const {
        refuse(program, *in, why);
    }

  private:
    void check_width(const ptx::Operand& operand, u32 bytes) const;
    u32 special(std::string_view name, u32 bytes);

    const ptx::Function& function_;
    const SlotMap& slots_;
    const Layout& layout_;
    ConstantPool& constants_;
};

}  // namespace deep_gemm::emulator
