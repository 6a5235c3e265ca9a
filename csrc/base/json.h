// A strict JSON reader (RFC 8259) for the headers and configurations of checkpoints, which may come from
// anywhere: duplicate keys, trailing text, bad UTF-16 escapes and nesting beyond 64 levels are errors. It
// only reads.
#pragma once

#include <deep_gemm/spec/types.h>

#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace deep_gemm {

class Json {
  public:
    struct Number {
        double value = 0;
        i64 integer = 0;
        bool is_integer = false;  // written without fraction or exponent, and fits i64
    };
    using Array = std::vector<Json>;
    using Object = std::vector<std::pair<std::string, Json>>;  // in the file's order

    // `source` names the text in errors, which are Error(value) with its line.
    [[nodiscard]] static Json parse(std::string_view text, std::string_view source);

    // `what` names the value in errors: "config.json: hidden_size".
    [[nodiscard]] bool as_bool(std::string_view what) const;
    [[nodiscard]] i64 as_integer(std::string_view what) const;
    [[nodiscard]] u64 as_unsigned(std::string_view what) const;
    [[nodiscard]] double as_number(std::string_view what) const;
    [[nodiscard]] const std::string& as_string(std::string_view what) const;
    [[nodiscard]] const Array& as_array(std::string_view what) const;
    [[nodiscard]] const Object& as_object(std::string_view what) const;
    [[nodiscard]] bool is_null() const { return value_.index() == 0; }
    [[nodiscard]] bool is_array() const { return std::holds_alternative<Array>(value_); }

    // The member of this name; nullptr where there is none or this is no object.
    [[nodiscard]] const Json* find(std::string_view key) const;

  private:
    friend class JsonParser;

    template <typename T>
    const T& as(std::string_view what, const char* expected) const;

    std::variant<std::monostate, bool, Number, std::string, Array, Object> value_;
};

}  // namespace deep_gemm
