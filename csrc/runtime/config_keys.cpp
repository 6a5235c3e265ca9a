#include "runtime/config_keys.h"

#include "base/error.h"

namespace deep_gemm::runtime {

namespace {

u32 checked(const Json& json, const std::string& what, u64 least, u64 most) {
    const u64 number = json.as_unsigned(what);
    DG_CHECK(number >= least && number <= most, value,
             "{}: got {}, expected {} to {}; correct the configuration", what, number, least, most);
    return static_cast<u32>(number);
}

}  // namespace

std::string ConfigKeys::what(std::string_view key) const {
    return fmt::format("{}: {}", source_, key);
}

bool ConfigKeys::has(std::string_view key) const {
    const Json* json = json_.find(key);
    return json && !json->is_null();
}

const Json& ConfigKeys::get(std::string_view key) const {
    const Json* json = json_.find(key);
    DG_CHECK(
        json && !json->is_null(), value,
        "{} is missing; expected a model's configuration as released: add it, or get the checkpoint again",
        what(key));
    return *json;
}

u32 ConfigKeys::count(std::string_view key, u64 least, u64 most) const {
    return checked(get(key), what(key), least, most);
}

u32 ConfigKeys::first_count(std::string_view key, u64 least, u64 most) const {
    const Json& json = get(key);
    if (!json.is_array()) return checked(json, what(key), least, most);
    const Json::Array& list = json.as_array(what(key));
    DG_CHECK(!list.empty(), value, "{}: got an empty list, expected a number; correct the configuration",
             what(key));
    return checked(list.front(), what(key), least, most);
}

double ConfigKeys::wide_real(std::string_view key) const {
    return get(key).as_number(what(key));
}

const std::string& ConfigKeys::text(std::string_view key) const {
    return get(key).as_string(what(key));
}

bool ConfigKeys::flag(std::string_view key, bool missing) const {
    return has(key) ? get(key).as_bool(what(key)) : missing;
}

void ConfigKeys::expect_text(std::string_view key, std::string_view expected) const {
    if (!has(key)) return;
    DG_CHECK(text(key) == expected, value,
             "{}: got '{}', expected '{}'; correct the configuration: there is no kernel for other models",
             what(key), text(key), expected);
}

void ConfigKeys::expect_flag(std::string_view key, bool expected) const {
    DG_CHECK(flag(key, expected) == expected, value,
             "{}: got {}, expected {}; correct the configuration: there is no kernel for other models",
             what(key), !expected, expected);
}

}  // namespace deep_gemm::runtime
