// State-space variables: type, alignment, arrays and initialisers (numbers, or addresses of other variables).
#include "emulator/ptx/body_parser.h"

#include <cstring>

namespace deep_gemm::emulator::ptx {
namespace {

u32 type_bytes(std::string_view type) {
    if (type == ".pred") return 1;
    const size_t digit = type.find_first_of("0123456789");
    return digit == std::string_view::npos
               ? 0
               : static_cast<u32>(std::atoi(std::string(type.substr(digit)).c_str())) / 8;
}

void initialiser(TokenStream& in, Variable& variable, u32 element_bytes) {
    const bool list = in.accept("{");
    u32 offset = 0;
    do {
        if (list && in.is("}")) break;
        u64 bits = 0;
        if (in.peek().kind == TokenKind::word) {
            const bool generic = in.peek().text == "generic" && in.peek(1).text == "(";
            if (generic) in.next(), in.next();
            const std::string_view symbol = in.next().text;
            const u64 addend = in.accept("+") ? in.integer() : 0;
            if (generic) in.expect(")");
            variable.relocations.push_back({offset, symbol, addend});
        } else {
            bits = in.integer();
        }
        variable.initial.resize(offset + element_bytes);
        std::memcpy(&variable.initial[offset], &bits, std::min<u32>(element_bytes, 8));
        offset += element_bytes;
    } while (list && in.accept(","));
    if (list) in.expect("}");
}

}  // namespace

Variable parse_variable(TokenStream& in) {
    Variable variable;
    const std::string_view space = in.next().text;
    variable.space = space == ".shared"  ? Space::shared
                     : space == ".const" ? Space::constant
                     : space == ".local" ? Space::local
                     : space == ".param" ? Space::param
                                         : Space::global;
    u32 element_bytes = 0;
    while (in.peek().kind == TokenKind::directive) {
        const std::string_view word = in.next().text;
        if (word == ".align") {
            variable.alignment = static_cast<u32>(in.integer());
        } else if (word == ".ptr") {
            // `.param .u64 .ptr .global .align 1 name`: says what the pointer points to, not what it is.
            while (in.is(".global") || in.is(".const") || in.is(".local") || in.is(".shared")) in.next();
            if (in.accept(".align")) in.integer();
        } else if (word == ".v2" || word == ".v4") {
            in.error("a scalar or array variable");
        } else if (type_bytes(word) != 0) {
            element_bytes = type_bytes(word);
        }
    }
    variable.alignment = std::max(variable.alignment, element_bytes);
    if (in.peek().kind != TokenKind::word) in.error("a variable name");
    variable.name = in.next().text;
    variable.bytes = element_bytes;
    bool is_array = false;
    while (in.accept("[")) {
        is_array = true;
        variable.bytes *= in.is("]") ? 0 : static_cast<u32>(in.integer());
        in.expect("]");
    }
    if (in.accept("=")) initialiser(in, variable, element_bytes);
    if (is_array && variable.bytes == 0 && !variable.initial.empty()) {
        variable.bytes = static_cast<u32>(variable.initial.size());
    }
    return variable;
}

}  // namespace deep_gemm::emulator::ptx
