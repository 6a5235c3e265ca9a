#include "jit/bundle.h"

#include "base/error.h"
#include "base/log.h"

#include <charconv>

namespace deep_gemm::jit {

namespace {

// magic, then "<index bytes, 16 hex digits> <index hash, 32 hex digits>\n"
constexpr std::string_view kMagic = "deep_gemm bundle 1\n";
constexpr size_t kHeaderBytes = kMagic.size() + 16 + 1 + 32 + 1;
constexpr std::string_view kEndOfRecord = "end of record\n";

[[noreturn]] void fail_bundle(const Path& path, const char* got) {
    fail(ErrorKind::io, "bundle '{}': got {}, expected a file written by write_bundle(); write it again",
         path.string(), got);
}

std::string read_index(const Path& path) {
    const std::string header = read_file_part(path, 0, kHeaderBytes);
    if (header.size() != kHeaderBytes || !header.starts_with(kMagic))
        fail_bundle(path, "a file of another kind");
    u64 bytes = 0;
    const char* digits = header.data() + kMagic.size();
    if (std::from_chars(digits, digits + 16, bytes, 16).ptr != digits + 16 || bytes > file_bytes(path))
        fail_bundle(path, "a damaged header");
    std::string index = read_file_part(path, kHeaderBytes, bytes);
    if (index.size() != bytes || hash_of(index).hex() != std::string_view(digits + 17, 32))
        fail_bundle(path, "a damaged index");
    return index;
}

}  // namespace

void write_bundle_file(const Path& path, std::span<const Record> records,
                       std::span<const Artifact> artifacts) {
    std::string index, images;
    for (const Record& record : records) index.append(write_record(record)).append(kEndOfRecord);
    for (const Artifact& artifact : artifacts) images += artifact.image;
    const std::string header = fmt::format("{}{:016x} {}\n", kMagic, index.size(), hash_of(index).hex());
    replace_file(path, header + index + images);
}

Bundle::Bundle(Path path) : path_(std::move(path)) {
    const std::string index = read_index(path_);
    u64 offset = kHeaderBytes + index.size();
    for (std::string_view rest = index; !rest.empty();) {
        const size_t end = rest.find(kEndOfRecord);
        std::optional<Record> record = end == rest.npos ? std::nullopt : parse_record(rest.substr(0, end));
        if (!record) fail_bundle(path_, "a record of another version");
        rest.remove_prefix(end + kEndOfRecord.size());
        const u64 bytes = record->image_bytes;
        const Digest key = record->key;
        slots_.insert_or_assign(key, Slot{std::move(*record), offset});
        offset += bytes;
    }
}

std::optional<Artifact> Bundle::find(const Digest& key) const {
    const auto found = slots_.find(key);
    if (found == slots_.end()) return std::nullopt;
    const Record& record = found->second.record;
    try {
        Artifact artifact = record.artifact;
        artifact.image = read_file_part(path_, found->second.offset, record.image_bytes);
        artifact.origin = Origin::bundle;
        if (hash_of(artifact.image) == record.image_hash) return artifact;
        log(LogLevel::warning, "bundle '{}': the image of {} is damaged; it is looked for elsewhere",
            path_.string(), artifact.name);
    } catch (const Error& error) {
        log(LogLevel::warning, "bundle: {}; {} is looked for elsewhere", error.what(), record.artifact.name);
    }
    return std::nullopt;
}

}  // namespace deep_gemm::jit
