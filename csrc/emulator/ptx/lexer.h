// Splits PTX text into tokens. Comments vanish, every token keeps its line; names with "::" stay one token.
// Tokens are views into the text, which the Module owns.
#pragma once

#include <deep_gemm/spec/types.h>

#include <string_view>
#include <vector>

namespace deep_gemm::emulator::ptx {

enum class TokenKind : u8 { word, directive, number, string, punctuation, end };

struct Token {
    TokenKind kind = TokenKind::end;
    std::string_view text;  // a directive keeps its leading dot, a string loses its quotes
    u32 line = 0;
    bool glued = false;  // no white space between this token and the one before
};

[[nodiscard]] std::vector<Token> tokenize(std::string_view text);

}  // namespace deep_gemm::emulator::ptx
