// The text form of an Artifact without its image and log: "name value" lines, checked by a closing checksum
// line. Entry files of the cache folders and the index of a bundle are made of it.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "jit/artifact.h"

namespace deep_gemm::jit {

struct Record {
    Digest key;
    Target target;
    Artifact artifact;  // image and log stay empty
    std::string entry;  // name expression
    std::string replay;
    u64 image_bytes = 0;
    Digest image_hash;
};

[[nodiscard]] Record make_record(const Digest& key, const Target& target, const Artifact& artifact,
                                 std::string_view entry, std::string_view replay);
[[nodiscard]] std::string write_record(const Record& record);
[[nodiscard]] std::optional<Record> parse_record(
    std::string_view text);  // nullopt: damaged, or of another version

}  // namespace deep_gemm::jit
