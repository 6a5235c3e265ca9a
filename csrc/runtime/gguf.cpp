// The GGUF container, versions 2 and 3, little-endian: metadata, tensor descriptions, then aligned tensor
// data. Shapes are stored innermost first and returned outermost first. Tensor types beyond F32, F16, BF16,
// Q8_0, MXFP4 and the integers are refused by name.
#include "base/error.h"
#include "runtime/gguf_model.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstring>
#include <type_traits>

namespace deep_gemm::runtime {

namespace {

constexpr u64 kMaxCount = 1u << 24;  // of metadata entries, tensors and elements of one metadata array

class Reader {
  public:
    explicit Reader(const MappedFile& file) : bytes_(file.bytes()), name_(file.path().string()) {}

    template <typename T>
    T number() {
        T value;
        std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
        return value;
    }
    std::string_view string() {
        const auto bytes = take(number<u64>());
        return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
    }
    u64 count(const char* what) {
        const u64 value = number<u64>();
        DG_CHECK(value <= kMaxCount, io, "{}: {} {}, expected at most {}; the file is damaged", name_, value,
                 what, kMaxCount);
        return value;
    }
    std::span<const std::byte> take(u64 bytes) {
        DG_CHECK(bytes <= bytes_.size() - at_, io,
                 "{}: the header ends at byte {}; the file is truncated: "
                 "get it again",
                 name_, at_);
        const auto part = bytes_.subspan(at_, bytes);
        at_ += bytes;
        return part;
    }
    [[nodiscard]] u64 at() const { return at_; }
    [[nodiscard]] const std::string& name() const { return name_; }

  private:
    std::span<const std::byte> bytes_;
    std::string name_;
    u64 at_ = 0;
};

enum ValueType : u32 { kString = 8, kArray = 9, kNumTypes = 13 };
constexpr u64 kMaxListed = 4096;  // elements of an array that is kept

template <typename T>
std::string json_of(T value) {
    if constexpr (std::is_floating_point_v<T>)
        return std::isfinite(value) ? fmt::format("{}", value) : "null";
    else
        return fmt::format("{}", value);
}

// A number as JSON text.
std::string read_number(Reader& reader, u32 type) {
    switch (type) {
        case 0: return json_of(u32{reader.number<u8>()});
        case 1: return json_of(i32{reader.number<i8>()});
        case 2: return json_of(reader.number<u16>());
        case 3: return json_of(reader.number<i16>());
        case 4: return json_of(reader.number<u32>());
        case 5: return json_of(reader.number<i32>());
        case 6: return json_of(reader.number<float>());
        case 7: return reader.number<u8>() ? "true" : "false";
        case 10: return json_of(reader.number<u64>());
        case 11: return json_of(reader.number<i64>());
        case 12: return json_of(reader.number<double>());
        default: break;
    }
    fail(ErrorKind::io,
         "{}: metadata of unknown type {}; the file is damaged or of a newer version: get "
         "it again, or convert it anew",
         reader.name(), type);
}

// A value as JSON text; empty for what nobody asks for: strings that are no plain names, arrays of anything
// but numbers, and long ones.
std::string read_value(Reader& reader, u32 type, u32 depth = 0) {
    DG_CHECK(type < kNumTypes && depth < 4, io,
             "{}: metadata of unknown type {}; the file is damaged or "
             "of a newer version: get it again, or convert it anew",
             reader.name(), type);
    if (type == kString) {
        const std::string_view text = reader.string();
        const bool plain = std::all_of(text.begin(), text.end(), [](unsigned char c) {
            return std::isalnum(c) || c == '_' || c == '-' || c == '.';
        });
        return plain ? fmt::format("\"{}\"", text) : "";
    }
    if (type != kArray) return read_number(reader, type);
    const u32 element = reader.number<u32>();
    const u64 count = reader.count("elements of a metadata array");
    std::string list;
    for (u64 i = 0; i < count; ++i) {
        const std::string value = read_value(reader, element, depth + 1);
        if (element != kString && element != kArray && count <= kMaxListed)
            list += fmt::format("{}{}", i ? "," : "", value);
    }
    return list.empty() ? "" : fmt::format("[{}]", list);
}

struct TypeRow {
    const char* name;
    std::optional<Storage> storage;
};

TypeRow type_row(u32 type) {
    switch (type) {
        case 0: return {"F32", Storage::f32};
        case 1: return {"F16", Storage::f16};
        case 8: return {"Q8_0", Storage::q8_0};
        case 24: return {"I8", Storage::i8};
        case 26: return {"I32", Storage::i32};
        case 27: return {"I64", Storage::i64};
        case 30: return {"BF16", Storage::bf16};
        case 39: return {"MXFP4", Storage::mxfp4_gguf};
        default: break;
    }
    constexpr const char* kRefused[] = {nullptr,   nullptr, "Q4_0",   "Q4_1",  nullptr,   nullptr,
                                        "Q5_0",    "Q5_1",  nullptr,  "Q8_1",  "Q2_K",    "Q3_K",
                                        "Q4_K",    "Q5_K",  "Q6_K",   "Q8_K",  "IQ2_XXS", "IQ2_XS",
                                        "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S",   "IQ4_XS"};
    const char* name = type < std::size(kRefused) ? kRefused[type] : nullptr;
    return {name ? name : "an unknown type", std::nullopt};
}

struct Described {
    Tensor tensor;
    u64 offset = 0;
};

Described read_description(Reader& reader) {
    Described described;
    Tensor& tensor = described.tensor;
    tensor.name = reader.string();
    const std::string what = fmt::format("{}: tensor '{}'", reader.name(), tensor.name);
    const u32 rank = reader.number<u32>();
    DG_CHECK(rank <= 4, io, "{}: {} dimensions, expected at most 4; the file is damaged: get it again", what,
             rank);
    u64 elements = 1;
    for (u32 i = 0; i < rank; ++i) {
        tensor.shape.insert(tensor.shape.begin(), reader.number<u64>());
        // A 0 would make any number beside it look small.
        DG_CHECK(tensor.shape.front() > 0, io, "{}: an extent of 0, expected at least 1; convert it anew",
                 what);
        DG_CHECK(
            !__builtin_mul_overflow(elements, tensor.shape.front(), &elements) && elements < u64{1} << 56, io,
            "{}: the shape overflows; the file is damaged: get it again", what);
    }
    const u32 type = reader.number<u32>();
    const TypeRow row = type_row(type);
    DG_CHECK(row.storage, io,
             "{}: stored as {} ({}), expected F32, F16, BF16, Q8_0 or MXFP4; convert it first", what,
             row.name, type);
    tensor.storage = *row.storage;
    const u64 block = row_of(tensor.storage).block_elements;
    DG_CHECK(block == 1 || (rank > 0 && tensor.shape.back() % block == 0), io,
             "{}: rows of {} are no multiple of the {} elements of a {} block; the file is damaged: get it "
             "again",
             what, rank ? tensor.shape.back() : 0, block, row.name);
    described.offset = reader.number<u64>();
    return described;
}

}  // namespace

GgufFile read_gguf(const MappedFile& file) {
    Reader reader(file);
    static_cast<void>(reader.take(4));  // "GGUF", seen by the caller
    const u32 version = reader.number<u32>();
    DG_CHECK(version == 2 || version == 3, io, "{}: GGUF version {}, expected 2 or 3; convert the file anew",
             reader.name(), version);
    const u64 num_tensors = reader.count("tensors"), num_values = reader.count("metadata entries");
    GgufFile result;
    for (u64 i = 0; i < num_values; ++i) {
        const std::string key(reader.string());
        std::string value = read_value(reader, reader.number<u32>());
        if (!value.empty()) result.metadata.emplace(key, std::move(value));
    }
    u64 alignment = 32;
    if (const auto found = result.metadata.find("general.alignment"); found != result.metadata.end())
        std::from_chars(found->second.data(), found->second.data() + found->second.size(), alignment);
    DG_CHECK(alignment > 0 && alignment <= 65536 && (alignment & (alignment - 1)) == 0, io,
             "{}: alignment {}, expected a power of two; the file is damaged: get it again", reader.name(),
             alignment);
    std::vector<Described> described;
    for (u64 i = 0; i < num_tensors; ++i) described.push_back(read_description(reader));

    const u64 start = (reader.at() + alignment - 1) / alignment * alignment;
    std::sort(described.begin(), described.end(),
              [](const auto& a, const auto& b) { return a.offset < b.offset; });
    u64 end = 0;  // of the tensor before, from `start`
    for (Described& entry : described) {
        const u64 bytes = bytes_of(entry.tensor.storage, entry.tensor.elements());
        DG_CHECK(entry.offset % alignment == 0 && entry.offset >= end, io,
                 "{}: tensor '{}' at byte {} overlaps the one before it or is not aligned; the file is "
                 "damaged: get it again",
                 reader.name(), entry.tensor.name, entry.offset);
        DG_CHECK(start <= file.bytes().size() && entry.offset <= file.bytes().size() - start &&
                     bytes <= file.bytes().size() - start - entry.offset,
                 io, "{}: tensor '{}' lies beyond the end of the file; it is truncated: get it again",
                 reader.name(), entry.tensor.name);
        entry.tensor.bytes = file.bytes().subspan(start + entry.offset, bytes);
        end = entry.offset + bytes;
        result.tensors.push_back(std::move(entry.tensor));
    }
    return result;
}

}  // namespace deep_gemm::runtime
