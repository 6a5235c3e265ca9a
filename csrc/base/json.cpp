#include "base/json.h"

#include "base/error.h"

#include <algorithm>
#include <charconv>
#include <unordered_set>

namespace deep_gemm {

namespace {

constexpr u32 kMaxDepth = 64;

void append_utf8(std::string& text, u32 code) {
    const auto put = [&](u32 byte) { text.push_back(static_cast<char>(byte)); };
    if (code < 0x80) {
        put(code);
    } else if (code < 0x800) {
        put(0xc0 | code >> 6), put(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
        put(0xe0 | code >> 12), put(0x80 | (code >> 6 & 0x3f)), put(0x80 | (code & 0x3f));
    } else {
        put(0xf0 | code >> 18), put(0x80 | (code >> 12 & 0x3f));
        put(0x80 | (code >> 6 & 0x3f)), put(0x80 | (code & 0x3f));
    }
}

}  // namespace

class JsonParser {
  public:
    JsonParser(std::string_view text, std::string_view source) : text_(text), source_(source) {}

    Json document() {
        Json json = value(0);
        skip_space();
        if (at_ != text_.size()) error("text after the value");
        return json;
    }

  private:
    [[noreturn]] void error(std::string_view what) const {
        const auto line = 1 + std::count(text_.begin(), text_.begin() + static_cast<i64>(at_), '\n');
        fail(ErrorKind::value, "{}: not valid JSON, line {} byte {}: {}; correct the file, or get it again",
             source_, line, at_, what);
    }
    [[nodiscard]] char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    void skip_space() {
        while (at_ < text_.size() &&
               (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r'))
            ++at_;
    }
    bool accept(char c) {
        skip_space();
        if (peek() != c || at_ == text_.size()) return false;
        ++at_;
        return true;
    }
    void expect(char c) {
        if (!accept(c)) error(fmt::format("expected '{}'", c));
    }

    Json value(u32 depth) {
        if (depth > kMaxDepth) error("nested more than 64 levels deep");
        skip_space();
        Json json;
        switch (peek()) {
            case '{': json.value_ = object(depth); break;
            case '[': json.value_ = array(depth); break;
            case '"': json.value_ = string(); break;
            case 't': literal("true"), json.value_ = true; break;
            case 'f': literal("false"), json.value_ = false; break;
            case 'n': literal("null"); break;
            default: json.value_ = number();
        }
        return json;
    }

    void literal(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) error("expected a value");
        at_ += word.size();
    }

    Json::Object object(u32 depth) {
        Json::Object members;
        std::unordered_set<std::string> seen;
        expect('{');
        if (accept('}')) return members;
        do {
            skip_space();
            std::string key = string();
            if (!seen.insert(key).second) error(fmt::format("key '{}' appears twice in one object", key));
            expect(':');
            members.emplace_back(std::move(key), value(depth + 1));
        } while (accept(','));
        expect('}');
        return members;
    }

    Json::Array array(u32 depth) {
        Json::Array items;
        expect('[');
        if (accept(']')) return items;
        do items.push_back(value(depth + 1));
        while (accept(','));
        expect(']');
        return items;
    }

    u32 hex4() {
        u32 code = 0;
        const std::string_view digits = text_.substr(at_, 4);
        const auto [end, status] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
        if (digits.size() != 4 || end != digits.data() + 4)
            error("expected four hexadecimal digits after \\u");
        at_ += 4;
        return code;
    }

    std::string string() {
        if (peek() != '"' || at_ == text_.size()) error("expected a string");
        ++at_;
        std::string result;
        while (true) {
            if (at_ == text_.size()) error("a string does not end");
            const char c = text_[at_++];
            if (c == '"') return result;
            if (static_cast<unsigned char>(c) < 0x20) error("a control character in a string");
            if (c == '\\')
                escape(result);
            else
                result.push_back(c);
        }
    }

    void escape(std::string& result) {
        constexpr std::string_view kNames = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
        if (at_ == text_.size()) error("a string does not end");
        const char c = text_[at_++];
        if (const size_t which = kNames.find(c); which != std::string_view::npos)
            return result.push_back(kValues[which]);
        if (c != 'u') error("an unknown escape in a string");
        u32 code = hex4();
        if (code >= 0xd800 && code < 0xdc00) {
            if (text_.substr(at_, 2) != "\\u") error("half a surrogate pair");
            at_ += 2;
            const u32 low = hex4();
            if (low < 0xdc00 || low > 0xdfff) error("half a surrogate pair");
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        } else if (code >= 0xdc00 && code < 0xe000) {
            error("half a surrogate pair");
        }
        append_utf8(result, code);
    }

    u32 digits() {
        u32 count = 0;
        for (; peek() >= '0' && peek() <= '9'; ++at_) ++count;
        return count;
    }

    Json::Number number() {
        const size_t start = at_;
        if (peek() == '-') ++at_;
        const bool leading_zero = peek() == '0';
        const u32 whole = digits();
        if (whole == 0) error("expected a value");
        if (leading_zero && whole > 1) error("a number with a leading zero");
        Json::Number number{.is_integer = true};
        if (peek() == '.') {
            ++at_, number.is_integer = false;
            if (digits() == 0) error("a number without digits after its point");
        }
        if (peek() == 'e' || peek() == 'E') {
            ++at_, number.is_integer = false;
            if (peek() == '+' || peek() == '-') ++at_;
            if (digits() == 0) error("a number without digits in its exponent");
        }
        const char *first = text_.data() + start, *last = text_.data() + at_;
        if (std::from_chars(first, last, number.value).ec != std::errc()) error("a number out of range");
        if (number.is_integer)
            number.is_integer = std::from_chars(first, last, number.integer).ec == std::errc();
        return number;
    }

    std::string_view text_, source_;
    size_t at_ = 0;
};

Json Json::parse(std::string_view text, std::string_view source) {
    return JsonParser(text, source).document();
}

const Json* Json::find(std::string_view key) const {
    if (const Object* members = std::get_if<Object>(&value_))
        for (const auto& [name, json] : *members)
            if (name == key) return &json;
    return nullptr;
}

template <typename T>
const T& Json::as(std::string_view what, const char* expected) const {
    constexpr const char* kNames[] = {"null", "a boolean", "a number", "a string", "an array", "an object"};
    const T* value = std::get_if<T>(&value_);
    DG_CHECK(value, value, "{}: got {}, expected {}; correct the file, or get it again", what,
             kNames[value_.index()], expected);
    return *value;
}

bool Json::as_bool(std::string_view what) const {
    return as<bool>(what, "true or false");
}
i64 Json::as_integer(std::string_view what) const {
    const auto& number = as<Number>(what, "a whole number");
    DG_CHECK(number.is_integer, value,
             "{}: got {}, expected a whole number of 64 bits; correct the file, "
             "or get it again",
             what, number.value);
    return number.integer;
}
u64 Json::as_unsigned(std::string_view what) const {
    const i64 number = as_integer(what);
    DG_CHECK(number >= 0, value,
             "{}: got {}, expected a number that is not negative; correct the file, or "
             "get it again",
             what, number);
    return static_cast<u64>(number);
}
double Json::as_number(std::string_view what) const {
    return as<Number>(what, "a number").value;
}
const std::string& Json::as_string(std::string_view what) const {
    return as<std::string>(what, "a string");
}
const Json::Array& Json::as_array(std::string_view what) const {
    return as<Array>(what, "an array");
}
const Json::Object& Json::as_object(std::string_view what) const {
    return as<Object>(what, "an object");
}

}  // namespace deep_gemm
