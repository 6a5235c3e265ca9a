// The PTX lexer. One pass, no look-back; anything it does not know is an error naming the line.
#include "emulator/ptx/lexer.h"

#include "base/error.h"

namespace deep_gemm::emulator::ptx {
namespace {

bool is_digit(char c) {
    return c >= '0' && c <= '9';
}
bool is_word_start(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '$' || c == '%';
}
bool is_word(char c) {
    return is_word_start(c) || is_digit(c);
}

}  // namespace

std::vector<Token> tokenize(std::string_view text) {
    std::vector<Token> tokens;
    tokens.reserve(text.size() / 4);
    u32 line = 1;
    size_t previous_end = 0;
    size_t i = 0;
    auto at = [&](size_t k) { return k < text.size() ? text[k] : '\0'; };
    auto push = [&](TokenKind kind, size_t begin, size_t end) {
        tokens.push_back({kind, text.substr(begin, end - begin), line, begin == previous_end});
        previous_end = end;
        i = end;
    };
    while (i < text.size()) {
        const char c = text[i];
        if (c == '\0') break;
        if (c == '\n') {
            ++line, ++i;
        } else if (c == ' ' || c == '\t' || c == '\r') {
            ++i;
        } else if (c == '/' && at(i + 1) == '/') {
            while (i < text.size() && text[i] != '\n') ++i;
        } else if (c == '/' && at(i + 1) == '*') {
            const size_t close = text.find("*/", i + 2);
            DG_CHECK(close != std::string_view::npos, emulator, "PTX line {}: comment never closed", line);
            for (; i < close; ++i) line += text[i] == '\n';
            i = close + 2;
        } else if (c == '"') {
            const size_t close = text.find('"', i + 1);
            DG_CHECK(close != std::string_view::npos, emulator, "PTX line {}: string never closed", line);
            tokens.push_back({TokenKind::string, text.substr(i + 1, close - i - 1), line, false});
            previous_end = i = close + 1;
        } else if (c == '.' && is_word(at(i + 1))) {
            size_t end = i + 1;
            while (is_word(at(end)) || (at(end) == ':' && at(end + 1) == ':')) end += at(end) == ':' ? 2 : 1;
            push(TokenKind::directive, i, end);
        } else if (is_digit(c)) {
            size_t end = i + 1;
            while (is_word(at(end)) || (at(end) == '.' && is_digit(at(end + 1)))) ++end;
            push(TokenKind::number, i, end);
        } else if (is_word_start(c)) {
            size_t end = i + 1;
            while (is_word(at(end))) ++end;
            push(TokenKind::word, i, end);
        } else {
            push(TokenKind::punctuation, i, i + 1);
        }
    }
    tokens.push_back({TokenKind::end, {}, line, false});
    return tokens;
}

}  // namespace deep_gemm::emulator::ptx
