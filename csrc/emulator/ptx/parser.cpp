// The module-level parser: linkage, variables with initialisers, function headers. Bodies are in
// body_parser.cpp.
#include "emulator/ptx/parser.h"

#include "emulator/ptx/body_parser.h"

namespace deep_gemm::emulator::ptx {
namespace {

class ModuleParser {
  public:
    explicit ModuleParser(std::string_view text) : module_(std::make_unique<Module>()) {
        module_->text = std::string(text);
        split_lines();
        tokens_ = tokenize(module_->text);
    }

    std::unique_ptr<Module> run() {
        TokenStream stream(tokens_);
        while (!stream.at_end()) declaration(stream);
        return std::move(module_);
    }

  private:
    void split_lines() {
        std::string_view rest = module_->text;
        while (!rest.empty()) {
            const size_t end = rest.find('\n');
            module_->lines.push_back(rest.substr(0, end));
            rest = end == std::string_view::npos ? std::string_view{} : rest.substr(end + 1);
        }
    }

    void declaration(TokenStream& in) {
        const Token& token = in.peek();
        if (token.text == ".version" || token.text == ".address_size") {
            in.skip_line();
        } else if (token.text == ".target") {
            in.next();
            module_->target = in.next().text;
            in.skip_line_after(token.line);
        } else if (token.text == ".file") {
            in.next();
            const u32 number = static_cast<u32>(in.integer());
            if (module_->files.size() <= number) module_->files.resize(number + 1);
            module_->files[number] = in.next().text;
            in.skip_line_after(token.line);
        } else if (token.text == ".section") {
            in.next();
            in.next();
            in.skip_braces();
        } else {
            bool external = false;
            while (in.peek().text == ".visible" || in.peek().text == ".extern" || in.peek().text == ".weak" ||
                   in.peek().text == ".common") {
                external |= in.next().text == ".extern";
            }
            const std::string_view what = in.peek().text;
            if (what == ".entry" || what == ".func") {
                module_->functions.push_back(parse_function(in, *module_));
            } else if (what == ".global" || what == ".const" || what == ".shared") {
                Variable variable = parse_variable(in);
                if (external && variable.bytes == 0) variable.external_array = true;
                module_->variables.push_back(std::move(variable));
                in.expect(";");
            } else if (what == ".alias" || what == ".pragma") {
                in.skip_line();
            } else {
                in.error("a .version, .global, .const, .shared, .entry or .func declaration");
            }
        }
    }

    std::unique_ptr<Module> module_;
    std::vector<Token> tokens_;
};

}  // namespace

std::unique_ptr<Module> parse(std::string_view text) {
    return ModuleParser(text).run();
}

}  // namespace deep_gemm::emulator::ptx
