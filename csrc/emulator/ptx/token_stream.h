// A cursor over tokens with the few helpers both parsers need. Errors name the PTX line and what was
// expected.
#pragma once

#include "base/error.h"
#include "emulator/ptx/lexer.h"

#include <bit>
#include <cstdlib>

namespace deep_gemm::emulator::ptx {

class TokenStream {
  public:
    explicit TokenStream(const std::vector<Token>& tokens) : tokens_(tokens) {}

    [[nodiscard]] const Token& peek(size_t ahead = 0) const {
        return tokens_[std::min(position_ + ahead, tokens_.size() - 1)];
    }
    const Token& next() { return tokens_[std::min(position_++, tokens_.size() - 1)]; }
    [[nodiscard]] bool at_end() const { return peek().kind == TokenKind::end; }
    [[nodiscard]] bool is(std::string_view text) const {
        return peek().text == text && peek().kind != TokenKind::string;
    }

    bool accept(std::string_view text) {
        if (!is(text)) return false;
        ++position_;
        return true;
    }
    void expect(std::string_view text) {
        if (!accept(text)) error(text);
    }
    [[noreturn]] void error(std::string_view expected) const {
        fail(ErrorKind::emulator, "PTX line {}: got '{}', expected {}", peek().line, peek().text, expected);
    }

    void skip_line() { skip_line_after(peek().line); }
    void skip_line_after(u32 line) {
        while (!at_end() && peek().line == line) ++position_;
    }
    void skip_braces() {
        expect("{");
        for (int depth = 1; depth > 0; ++position_) {
            if (at_end()) error("a closing brace");
            depth += is("{") ? 1 : is("}") ? -1 : 0;
        }
    }

    // [-] number -> bits: 0f / 0d literals are float bits, everything else a two's complement integer.
    u64 integer() {
        const bool negative = accept("-");
        const Token& token = next();
        if (token.kind != TokenKind::number) {
            --position_;
            error("a number");
        }
        const std::string digits(token.text);
        if (digits.find('.') != std::string::npos) {  // decimal literal of hand-written asm: an fp32
            const float decimal = std::strtof(digits.c_str(), nullptr);
            return std::bit_cast<u32>(negative ? -decimal : decimal);
        }
        const bool is_float = digits.size() > 2 && digits[0] == '0' &&
                              (digits[1] == 'f' || digits[1] == 'F' || digits[1] == 'd' || digits[1] == 'D');
        u64 value = is_float ? std::strtoull(digits.c_str() + 2, nullptr, 16)
                             : std::strtoull(digits.c_str(), nullptr, 0);
        if (!negative) return value;
        if (is_float) return value ^ (u64{1} << (digits[1] == 'f' || digits[1] == 'F' ? 31 : 63));
        return u64{0} - value;
    }

  private:
    const std::vector<Token>& tokens_;
    size_t position_ = 0;
};

}  // namespace deep_gemm::emulator::ptx
