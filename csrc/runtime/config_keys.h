// The keys of a config.json: a key that is missing, of a wrong type or out of range is Error(value) naming
// it.
#pragma once

#include "base/json.h"

#include <string>
#include <string_view>

namespace deep_gemm::runtime {

constexpr u32 kMaxExperts = 1024;  // of a layer

class ConfigKeys {
  public:
    // `source` names the text in errors; both must outlive the keys.
    ConfigKeys(const Json& json, std::string_view source) : json_(json), source_(source) {}

    [[nodiscard]] std::string what(std::string_view key) const;
    [[nodiscard]] std::string_view source() const { return source_; }
    [[nodiscard]] bool has(std::string_view key) const;  // and it is not null
    [[nodiscard]] const Json& get(std::string_view key) const;
    [[nodiscard]] ConfigKeys object(std::string_view key) const { return {get(key), source_}; }
    [[nodiscard]] u32 count(std::string_view key, u64 least, u64 most) const;
    // The same of a number, or of the first of a list of numbers.
    [[nodiscard]] u32 first_count(std::string_view key, u64 least, u64 most) const;
    [[nodiscard]] float real(std::string_view key) const { return static_cast<float>(wide_real(key)); }
    [[nodiscard]] double wide_real(std::string_view key) const;
    [[nodiscard]] const std::string& text(std::string_view key) const;
    [[nodiscard]] bool flag(std::string_view key, bool missing) const;

    // Where the key is there, it must be this.
    void expect_text(std::string_view key, std::string_view expected) const;
    void expect_flag(std::string_view key, bool expected) const;

  private:
    const Json& json_;
    std::string_view source_;
};

}  // namespace deep_gemm::runtime
