// What all problem lines share: words, each thing given once, and counts: "m=64".
#pragma once

#include <algorithm>
#include <charconv>
#include <string_view>
#include <vector>

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

inline std::string_view key_of(std::string_view word) {
    return word.substr(0, word.find('='));
}

// Calls read(word) for the words of `text`, without the family's name in front, and returns what name(word) says
// that each gives. Two words for one thing would contradict each other, or say nothing twice.
template <typename Name, typename Read>
std::vector<std::string_view> read_words(std::string_view text, std::string_view family, Name name,
                                         Read read) {
    std::vector<std::string_view> given;
    bool first = true;
    while (true) {
        const size_t start = text.find_first_not_of(" \t");
        if (start == std::string_view::npos) return given;
        const size_t end = std::min(text.find_first_of(" \t", start), text.size());
        const std::string_view word = text.substr(start, end - start);
        text.remove_prefix(end);
        const bool is_family = first && word == family;
        first = false;
        if (is_family) continue;
        read(word);
        const std::string_view what = name(word);
        DG_CHECK(std::find(given.begin(), given.end(), what) == given.end(), value,
                 "problem: {} is given twice; expected it once; leave one out", what);
        given.push_back(what);
    }
}

}  // namespace deep_gemm::plan
