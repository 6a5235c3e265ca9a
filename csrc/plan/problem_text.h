// What the words of all problem lines share: "m=64".
#pragma once

#include <charconv>
#include <string_view>

#include "base/error.h"

namespace deep_gemm::plan {

inline u32 parse_count(std::string_view key, std::string_view text, u32 least = 0) {
    u32 value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    DG_CHECK(error != std::errc::result_out_of_range, value,
             "problem: {}={} is too large; expected less than 2^32; split the product", key, text);
    DG_CHECK(error == std::errc{} && end == text.data() + text.size() && value >= least, value,
             "problem: {}={} is not a count; expected a whole number of at least {}: correct it", key, text,
             least);
    return value;
}

}  // namespace deep_gemm::plan
