// Function bodies: brace scopes for registers, variables and labels (inline asm blocks repeat both),
// instructions. Invariant: when a scope closes, each label it uses is resolved in it or handed to the
// enclosing scope.
#include "emulator/ptx/body_parser.h"

#include <unordered_map>

namespace deep_gemm::emulator::ptx {
namespace {

struct LabelUse {
    std::string_view name;
    u32 instruction, operand, line;
};

struct Family {  // .reg .b32 %r<100>
    u32 first, count;
};

struct Scope {
    std::unordered_map<std::string_view, u32> registers, variables, labels;
    std::unordered_map<std::string_view, Family> families;
    std::vector<LabelUse> uses;
};

class BodyParser {
  public:
    BodyParser(TokenStream& in, const Module& module, Function& function)
        : in_(in), module_(module), function_(function) {
        scopes_.emplace_back();
        for (u32 i = 0; i < function.variables.size(); ++i)
            scopes_[0].variables[function.variables[i].name] = i;
    }

    void run() {
        in_.expect("{");
        scopes_.emplace_back();
        while (scopes_.size() > 1) statement();
        for (const LabelUse& use : scopes_[0].uses) {
            fail(ErrorKind::emulator, "PTX line {}: label '{}' is not defined", use.line, use.name);
        }
    }

  private:
    void statement() {
        if (in_.at_end()) in_.error("a closing brace");
        const Token& token = in_.peek();
        if (in_.accept("{")) {
            scopes_.emplace_back();
        } else if (in_.accept("}")) {
            close_scope();
        } else if (in_.accept(";")) {
        } else if (token.text == ".branchtargets") {
            branch_table();
        } else if (token.text == ".reg") {
            register_declaration();
        } else if (token.text == ".loc") {
            location();
        } else if (token.text == ".pragma" || token.text == ".callprototype") {
            while (!in_.accept(";")) in_.next();
        } else if (token.text == ".shared" || token.text == ".local" || token.text == ".param" ||
                   token.text == ".global" || token.text == ".const") {
            add_variable(parse_variable(in_));
            in_.expect(";");
        } else if (token.kind == TokenKind::word && in_.peek(1).text == ":") {
            scopes_.back().labels[token.text] = static_cast<u32>(function_.code.size());
            in_.next();
            in_.next();
        } else {
            instruction();
        }
    }

    void add_variable(Variable variable) {
        scopes_.back().variables[variable.name] = static_cast<u32>(function_.variables.size());
        function_.variables.push_back(std::move(variable));
    }

    // `T: .branchtargets A, B;` becomes an instruction that does nothing and holds the labels, so that
    // brx.idx finds them at label T.
    void branch_table() {
        Instruction table;
        table.line = in_.peek().line;
        table.source = static_cast<u32>(function_.sources.size() - 1);
        table.root = in_.next().text;
        do {
            table.operands.push_back(operand(static_cast<u32>(table.operands.size())));
        } while (in_.accept(","));
        in_.expect(";");
        function_.code.push_back(std::move(table));
    }

    void close_scope() {
        Scope scope = std::move(scopes_.back());
        scopes_.pop_back();
        for (const LabelUse& use : scope.uses) {
            const auto found = scope.labels.find(use.name);
            if (found == scope.labels.end()) {
                scopes_.back().uses.push_back(use);
            } else {
                Operand& operand = function_.code[use.instruction].operands[use.operand];
                DG_CHECK(operand.kind == OperandKind::label, emulator,
                         "PTX line {}: got label '{}' inside an operand, expected it as a whole operand",
                         use.line, use.name);
                operand.id = found->second;
            }
        }
    }

    void register_declaration() {
        in_.next();
        const std::string_view type = in_.next().text;
        const RegisterWidth width = type == ".pred"        ? RegisterWidth::predicate
                                    : type == ".b128"      ? RegisterWidth::bytes_16
                                    : type.ends_with("64") ? RegisterWidth::bytes_8
                                                           : RegisterWidth::bytes_4;
        do {
            const std::string_view name = in_.next().text;
            const u32 first = static_cast<u32>(function_.registers.size());
            if (in_.accept("<")) {
                const u32 count = static_cast<u32>(in_.integer());
                in_.expect(">");
                function_.registers.resize(first + count, Register{name, width});
                scopes_.back().families[name] = {first, count};
            } else {
                function_.registers.push_back({name, width});
                scopes_.back().registers[name] = first;
            }
        } while (in_.accept(","));
        in_.expect(";");
    }

    // .loc file line column [, function_name label, inlined_at file line column]
    void location() {
        const u32 line = in_.next().line;
        SourceLine source;
        source.file = static_cast<u32>(in_.integer());
        source.line = static_cast<u32>(in_.integer());
        while (!in_.at_end() && in_.peek().line == line) {
            if (in_.next().text != "inlined_at") continue;
            source.outer_file = static_cast<u32>(in_.integer());
            source.outer_line = static_cast<u32>(in_.integer());
        }
        function_.sources.push_back(source);
    }

    bool find_register(std::string_view name, u32& id) const {
        const size_t digits = name.find_last_not_of("0123456789");
        for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
            if (const auto found = scope->registers.find(name); found != scope->registers.end()) {
                id = found->second;
                return true;
            }
            if (digits == std::string_view::npos || digits + 1 == name.size()) continue;
            const auto family = scope->families.find(name.substr(0, digits + 1));
            if (family == scope->families.end()) continue;
            const u32 index = static_cast<u32>(std::atoi(std::string(name.substr(digits + 1)).c_str()));
            if (index >= family->second.count) continue;
            id = family->second.first + index;
            return true;
        }
        return false;
    }

    bool find_variable(std::string_view name, Operand& operand) const {
        for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
            if (const auto found = scope->variables.find(name); found != scope->variables.end()) {
                operand.kind = OperandKind::variable;
                operand.is_local = true;
                operand.id = found->second;
                return true;
            }
        }
        for (u32 i = 0; i < module_.variables.size(); ++i) {
            if (module_.variables[i].name != name) continue;
            operand.kind = OperandKind::variable;
            operand.id = i;
            return true;
        }
        return false;
    }

    void instruction() {
        const Token& first = in_.peek();
        Instruction instruction;
        instruction.source = static_cast<u32>(function_.sources.size() - 1);
        if (in_.accept("@")) {
            instruction.guard_negated = in_.accept("!");
            const Operand guard = operand(0);
            DG_CHECK(guard.kind == OperandKind::reg, emulator,
                     "PTX line {}: guard is not a predicate register", first.line);
            instruction.guard = static_cast<i32>(guard.id);
        }
        instruction.line = in_.peek().line;
        if (in_.peek().kind != TokenKind::word) in_.error("an instruction");
        instruction.root = in_.next().text;
        while (in_.peek().kind == TokenKind::directive)
            instruction.modifiers.push_back(in_.next().text.substr(1));
        while (!in_.accept(";")) {
            instruction.operands.push_back(operand(static_cast<u32>(instruction.operands.size())));
            if (in_.accept(",")) continue;
            in_.expect(";");
            break;
        }
        function_.code.push_back(std::move(instruction));
    }

    Operand operand(u32 index) {
        Operand result = primary(index);
        if (!in_.accept("|")) return result;
        Operand pair;
        pair.kind = OperandKind::pair;
        pair.items.push_back(std::move(result));
        pair.items.push_back(primary(index));
        return pair;
    }

    Operand primary(u32 index) {
        Operand result;
        result.negated = in_.accept("!");
        const Token& token = in_.peek();
        if (token.text == "{") return list("{", "}", OperandKind::vector);
        if (token.text == "(") return list("(", ")", OperandKind::arguments);
        if (token.text == "[") return address();
        if (token.kind == TokenKind::number || token.text == "-") {
            result.kind = OperandKind::immediate;
            result.value = in_.integer();
            return result;
        }
        if (token.kind != TokenKind::word) in_.error("an operand");
        in_.next();
        result.text = token.text;
        if (token.text == "_") return result;
        if (find_register(token.text, result.id)) {
            result.kind = OperandKind::reg;
        } else if (token.text[0] == '%') {
            result.kind = OperandKind::special;
            if (in_.peek().kind == TokenKind::directive && in_.peek().glued) {
                result.text = {token.text.data(), token.text.size() + in_.next().text.size()};
            }
        } else if (find_variable(token.text, result)) {
            if (in_.accept("+")) result.value = in_.integer();
        } else if (find_function(token.text)) {
            result.kind = OperandKind::function;
        } else {
            result.kind = OperandKind::label;
            scopes_.back().uses.push_back(
                {token.text, static_cast<u32>(function_.code.size()), index, token.line});
        }
        return result;
    }

    [[nodiscard]] bool find_function(std::string_view name) const {
        for (const auto& f : module_.functions) {
            if (f->name == name) return true;
        }
        return false;
    }

    Operand list(std::string_view open, std::string_view close, OperandKind kind) {
        Operand result;
        result.kind = kind;
        in_.expect(open);
        while (!in_.accept(close)) {
            result.items.push_back(operand(0));
            if (!in_.accept(",") && !in_.is(close)) in_.error(close);
        }
        return result;
    }

    // [base], [base+4], [base+-4], [map, {x, y}], [map, {x, y}, ...]
    Operand address() {
        Operand result;
        result.kind = OperandKind::address;
        in_.expect("[");
        result.items.push_back(primary(0));
        if (in_.accept("+")) {
            result.value = in_.integer();
        } else if (in_.is("-")) {
            result.value = in_.integer();
        }
        while (in_.accept(",")) result.items.push_back(primary(0));
        in_.expect("]");
        return result;
    }

    TokenStream& in_;
    const Module& module_;
    Function& function_;
    std::vector<Scope> scopes_;
};

void parameter_list(TokenStream& in, Function& function, std::vector<u32>& out) {
    if (!in.accept("(")) return;
    while (!in.accept(")")) {
        out.push_back(static_cast<u32>(function.variables.size()));
        if (in.is(".reg")) in.error(".param: register parameters are not in the NVRTC dialect");
        function.variables.push_back(parse_variable(in));
        in.accept(",");
    }
}

void performance_directives(TokenStream& in, Function& function) {
    auto triple = [&](u32* out) {
        u32 product = 1;
        for (u32 i = 0; i < 3; ++i) {
            const u32 value = i == 0 || in.accept(",") ? static_cast<u32>(in.integer()) : 1;
            if (out != nullptr) out[i] = value;
            product *= value;
        }
        return product;
    };
    while (in.peek().kind == TokenKind::directive) {
        const std::string_view word = in.next().text;
        if (word == ".maxntid") {
            function.max_threads = triple(nullptr);
        } else if (word == ".reqntid") {
            function.required_threads = triple(nullptr);
        } else if (word == ".reqnctapercluster") {
            triple(function.required_cluster);
        } else if (word == ".minnctapersm" || word == ".maxnreg" || word == ".maxclusterrank") {
            in.integer();
        } else if (word == ".pragma") {
            in.next();
            in.expect(";");
        } else if (word != ".explicitcluster" && word != ".blocksareclusters" && word != ".noreturn") {
            fail(ErrorKind::emulator, "PTX line {}: got directive '{}', expected a performance directive",
                 in.peek().line, word);
        }
    }
}

}  // namespace

std::unique_ptr<Function> parse_function(TokenStream& in, const Module& module) {
    auto function = std::make_unique<Function>();
    function->is_entry = in.next().text == ".entry";
    parameter_list(in, *function, function->results);
    function->name = in.next().text;
    parameter_list(in, *function, function->parameters);
    performance_directives(in, *function);
    if (in.accept(";")) {
        function->is_declaration = true;
        return function;
    }
    BodyParser(in, module, *function).run();
    return function;
}

}  // namespace deep_gemm::emulator::ptx
