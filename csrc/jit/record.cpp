#include "jit/record.h"

#include <fmt/format.h>

#include <charconv>

namespace deep_gemm::jit {

namespace {

constexpr std::string_view kFirstLine = "deep_gemm kernel record 1\n";
constexpr std::string_view kChecksum = "checksum ";

// One row per line of the file, in one place for writing and reading.
template <typename R, typename Visitor>
void visit_record(R& r, Visitor&& visit) {
    visit("key", r.key);
    visit("name", r.artifact.name);
    visit("arch", r.target.arch);
    visit("kind", r.target.kind);
    visit("nvrtc", r.artifact.nvrtc);
    visit("entry", r.entry);
    visit("lowered", r.artifact.lowered_name);
    visit("replay", r.replay);
    visit("registers", r.artifact.stats.registers);
    visit("stack_bytes", r.artifact.stats.stack_bytes);
    visit("spill_store_bytes", r.artifact.stats.spill_store_bytes);
    visit("spill_load_bytes", r.artifact.stats.spill_load_bytes);
    visit("static_smem_bytes", r.artifact.stats.static_smem_bytes);
    visit("warnings", r.artifact.stats.warnings);
    visit("image_bytes", r.image_bytes);
    visit("image_hash", r.image_hash);
}

struct Writer {
    std::string text;

    void line(const char* name, std::string_view value) {
        text += fmt::format("{} ", name);
        for (char c : value) text += c == '\n' ? ' ' : c;  // a value is one line
        text += '\n';
    }
    void operator()(const char* name, const std::string& value) { line(name, value); }
    void operator()(const char* name, const Digest& value) { line(name, value.hex()); }
    void operator()(const char* name, driver::ImageKind value) { line(name, name_of(value)); }
    void operator()(const char* name, u32 value) { line(name, fmt::format("{}", value)); }
    void operator()(const char* name, u64 value) { line(name, fmt::format("{}", value)); }
    void operator()(const char* name, const std::vector<std::string>& value) {
        (*this)(name, static_cast<u32>(value.size()));
        for (const std::string& item : value) line("-", item);
    }
};

struct Reader {
    std::string_view text;
    bool ok = true;

    std::string_view line(std::string_view name) {
        const size_t end = text.find('\n');
        ok = ok && end != text.npos && text.substr(0, end).starts_with(name) &&
             text.substr(name.size()).starts_with(' ');
        if (!ok) return {};
        const std::string_view value = text.substr(name.size() + 1, end - name.size() - 1);
        text.remove_prefix(end + 1);
        return value;
    }
    template <typename T>
    T number(std::string_view digits, int base = 10) {
        T value = 0;
        const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
        ok = ok && error == std::errc{} && stop == digits.data() + digits.size();
        return value;
    }
    void operator()(const char* name, std::string& value) { value = line(name); }
    void operator()(const char* name, Digest& value) {
        const std::string_view digits = line(name);
        ok = ok && digits.size() == 32;
        if (ok) value = {number<u64>(digits.substr(0, 16), 16), number<u64>(digits.substr(16), 16)};
    }
    void operator()(const char* name, driver::ImageKind& value) {
        value = line(name) == "ptx" ? driver::ImageKind::ptx : driver::ImageKind::cubin;
    }
    void operator()(const char* name, u32& value) { value = number<u32>(line(name)); }
    void operator()(const char* name, u64& value) { value = number<u64>(line(name)); }
    void operator()(const char* name, std::vector<std::string>& value) {
        u32 count = 0;
        (*this)(name, count);
        for (u32 i = 0; ok && i < count; ++i) value.emplace_back(line("-"));
    }
};

}  // namespace

Record make_record(const Digest& key, const Target& target, const Artifact& artifact, std::string_view entry,
                   std::string_view replay) {
    Record record{.key = key,
                  .target = target,
                  .artifact = artifact,
                  .entry = std::string(entry),
                  .replay = std::string(replay),
                  .image_bytes = artifact.image.size(),
                  .image_hash = hash_of(artifact.image)};
    record.artifact.image.clear();
    record.artifact.log.clear();
    return record;
}

std::string write_record(const Record& record) {
    Writer writer{std::string(kFirstLine)};
    visit_record(record, writer);
    return writer.text + fmt::format("{}{}\n", kChecksum, hash_of(writer.text).hex());
}

std::optional<Record> parse_record(std::string_view text) {
    const size_t end = text.rfind(kChecksum);
    if (!text.starts_with(kFirstLine) || end == text.npos) return std::nullopt;
    if (text.substr(end) != fmt::format("{}{}\n", kChecksum, hash_of(text.substr(0, end)).hex()))
        return std::nullopt;
    Record record;
    Reader reader{text.substr(kFirstLine.size(), end - kFirstLine.size())};
    visit_record(record, reader);
    if (!reader.ok || !reader.text.empty()) return std::nullopt;
    return record;
}

}  // namespace deep_gemm::jit
