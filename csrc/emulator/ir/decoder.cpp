// Operand resolution and the table of special registers.
#include "emulator/ir/decoder.h"

#include "base/error.h"

#include <cstring>

namespace deep_gemm::emulator {
namespace {

struct SpecialName {
    std::string_view name;
    Special what;
};

constexpr SpecialName kSpecials[] = {
    {"%tid.x", Special::tid_x},
    {"%tid.y", Special::tid_y},
    {"%tid.z", Special::tid_z},
    {"%ntid.x", Special::ntid_x},
    {"%ntid.y", Special::ntid_y},
    {"%ntid.z", Special::ntid_z},
    {"%ctaid.x", Special::ctaid_x},
    {"%ctaid.y", Special::ctaid_y},
    {"%ctaid.z", Special::ctaid_z},
    {"%nctaid.x", Special::nctaid_x},
    {"%nctaid.y", Special::nctaid_y},
    {"%nctaid.z", Special::nctaid_z},
    {"%laneid", Special::laneid},
    {"%warpid", Special::warpid},
    {"%nwarpid", Special::nwarpid},
    {"%smid", Special::smid},
    {"%nsmid", Special::nsmid},
    {"%gridid", Special::gridid},
    {"%lanemask_eq", Special::lanemask_eq},
    {"%lanemask_le", Special::lanemask_le},
    {"%lanemask_lt", Special::lanemask_lt},
    {"%lanemask_ge", Special::lanemask_ge},
    {"%lanemask_gt", Special::lanemask_gt},
    {"%clusterid.x", Special::clusterid_x},
    {"%clusterid.y", Special::clusterid_y},
    {"%clusterid.z", Special::clusterid_z},
    {"%nclusterid.x", Special::nclusterid_x},
    {"%nclusterid.y", Special::nclusterid_y},
    {"%nclusterid.z", Special::nclusterid_z},
    {"%cluster_ctaid.x", Special::cluster_ctaid_x},
    {"%cluster_ctaid.y", Special::cluster_ctaid_y},
    {"%cluster_ctaid.z", Special::cluster_ctaid_z},
    {"%cluster_nctaid.x", Special::cluster_nctaid_x},
    {"%cluster_nctaid.y", Special::cluster_nctaid_y},
    {"%cluster_nctaid.z", Special::cluster_nctaid_z},
    {"%cluster_ctarank", Special::cluster_ctarank},
    {"%cluster_nctarank", Special::cluster_nctarank},
    {"%is_explicit_cluster", Special::is_explicit_cluster},
    {"%dynamic_smem_size", Special::dynamic_smem_size},
    {"%total_smem_size", Special::total_smem_size},
};

}  // namespace

u32 ConstantPool::allocate(u32 bytes) {
    const u32 offset = program_.register_bytes;
    program_.register_bytes += bytes * kLanes;
    program_.constants.resize(program_.register_bytes - program_.constants_begin);
    return offset;
}

u32 ConstantPool::immediate(u64 value, u32 bytes) {
    if (bytes == 4) value &= 0xffffffffu;
    const auto [entry, added] = immediates_.try_emplace({value, bytes}, 0);
    if (added) {
        entry->second = allocate(bytes);
        u8* lanes = &program_.constants[entry->second - program_.constants_begin];
        for (u32 lane = 0; lane < kLanes; ++lane) std::memcpy(lanes + lane * bytes, &value, bytes);
    }
    return entry->second;
}

u32 ConstantPool::special(Special what, u32 bytes, u64 addend) {
    const auto [entry, added] = specials_.try_emplace({what, bytes, addend}, 0);
    if (added) {
        entry->second = allocate(bytes);
        program_.specials.push_back({what, entry->second, bytes, addend});
    }
    return entry->second;
}

bool Decoder::has_prefix(std::string_view prefix) const {
    for (const auto& m : in->modifiers) {
        if (m.starts_with(prefix)) return true;
    }
    return false;
}

const ptx::Operand& Decoder::operand(size_t i) const {
    if (i >= in->operands.size()) unsupported(fmt::format("operand {} is missing", i));
    return in->operands[i];
}

Type Decoder::type_from_end(u32 skip) const {
    for (auto m = in->modifiers.rbegin(); m != in->modifiers.rend(); ++m) {
        const Type type = parse_type(*m);
        if (type != Type::none && skip-- == 0) return type;
    }
    return Type::none;
}

u32 Decoder::reg(const ptx::Operand& operand, u32 bytes) const {
    if (operand.kind != ptx::OperandKind::reg) unsupported("a destination is not a register");
    check_width(operand, bytes <= 4 ? 4 : 8);
    return slots_.offset[operand.id];
}

u32 Decoder::reg_or_none(const ptx::Operand& operand, u32 bytes) const {
    return operand.kind == ptx::OperandKind::sink ? kNoSlot : reg(operand, bytes);
}

u32 Decoder::predicate(const ptx::Operand& operand) const {
    if (operand.kind != ptx::OperandKind::reg || register_bytes(operand) != 0)
        unsupported("operand is no predicate");
    return slots_.offset[operand.id];
}

u32 Decoder::predicate_or_none(const ptx::Operand& operand) const {
    return operand.kind == ptx::OperandKind::sink ? kNoSlot : predicate(operand);
}

void Decoder::destination_pair(const ptx::Operand& operand) {
    const bool pair = operand.kind == ptx::OperandKind::pair;
    op.d = reg_or_none(pair ? operand.items[0] : operand, 4);
    op.target = pair ? predicate_or_none(operand.items[1]) : kNoSlot;
}

void Decoder::check_width(const ptx::Operand& operand, u32 bytes) const {
    const u32 width = register_bytes(operand);
    if (width >= bytes) return;
    unsupported(
        width == 0
            ? fmt::format("register {} is a predicate, the type needs {} bytes", operand.text, bytes)
            : fmt::format("register {} holds {} bytes, the type needs {}", operand.text, width, bytes));
}

u32 Decoder::register_bytes(const ptx::Operand& operand) const {
    if (operand.kind != ptx::OperandKind::reg) return 0;
    return static_cast<u32>(function_.registers[operand.id].width);
}

u32 Decoder::source(const ptx::Operand& operand, u32 bytes) {
    const u32 lane_bytes = bytes <= 4 ? 4 : 8;
    switch (operand.kind) {
        case ptx::OperandKind::reg: check_width(operand, lane_bytes); return slots_.offset[operand.id];
        case ptx::OperandKind::immediate: return constants_.immediate(operand.value, lane_bytes);
        case ptx::OperandKind::special: return special(operand.text, lane_bytes);
        case ptx::OperandKind::variable: {
            const VariablePlace& where = place(operand);
            if (where.space == ptx::Space::shared) {
                return constants_.special(Special::shared_address, lane_bytes, where.value + operand.value);
            }
            if (where.space == ptx::Space::param) {
                return constants_.special(Special::param_address, lane_bytes, where.value + operand.value);
            }
            return constants_.immediate(where.value + operand.value, lane_bytes);
        }
        default: unsupported("a source operand is not a register, immediate or variable");
    }
}

const VariablePlace& Decoder::place(const ptx::Operand& operand) const {
    return operand.is_local ? layout_.function_variables[operand.id] : layout_.module_variables[operand.id];
}

Address Decoder::address(const ptx::Operand& operand, bool base_only) {
    if (operand.kind != ptx::OperandKind::address) unsupported("operand is no [address]");
    if (base_only && operand.items.size() != 1) unsupported("an address of one base is expected");
    const ptx::Operand& base = operand.items[0];
    Address result;
    result.offset = static_cast<i64>(operand.value);
    if (base.kind == ptx::OperandKind::reg) {
        check_width(base, 4);
        result.wide = register_bytes(base) >= 8;
        result.base = slots_.offset[base.id];
    } else if (base.kind == ptx::OperandKind::variable && place(base).space == ptx::Space::shared) {
        result.base = source(base, 4);
    } else {
        result.wide = true;
        result.base = source(base, 8);
    }
    return result;
}

void Decoder::set_address(const ptx::Operand& operand) {
    const Address where = address(operand);
    op.a = where.base;
    op.immediate = where.offset;
    if (where.wide) op.flags |= kWideBase;
}

u64 Decoder::immediate(const ptx::Operand& operand) const {
    if (operand.kind != ptx::OperandKind::immediate) unsupported("operand must be an immediate");
    return operand.value;
}

void Decoder::set_list(std::vector<u32> values) {
    program.lists.push_back(std::move(values));
    op.list = program.lists.back();
}

void Decoder::destination_and_sources(u32 d_bytes, u32 a_bytes, u32 b_bytes, u32 c_bytes) {
    op.d = reg(operand(0), d_bytes);
    if (num_operands() > 1) op.a = source(operand(1), a_bytes);
    if (num_operands() > 2) op.b = source(operand(2), b_bytes);
    if (num_operands() > 3) op.c = source(operand(3), c_bytes);
}

u32 Decoder::special(std::string_view name, u32 bytes) {
    for (const SpecialName& entry : kSpecials) {
        if (entry.name == name) return constants_.special(entry.what, bytes);
    }
    unsupported(fmt::format("special register {} is not modelled", name));
}

void refuse(const Program& program, const ptx::Instruction& instruction, std::string_view why) {
    const ptx::Module& module = *program.module;
    const std::string_view text =
        instruction.line <= module.lines.size() ? module.lines[instruction.line - 1] : std::string_view{};
    const size_t begin = std::min(text.find_first_not_of(" \t"), text.size());
    fail(ErrorKind::emulator, "emulator: kernel {}, PTX line {}: {}: {}", program.name, instruction.line,
         text.substr(begin), why);
}

}  // namespace deep_gemm::emulator
