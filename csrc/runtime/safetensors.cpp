// The safetensors format: 8 bytes of header length (little-endian), a JSON header, then the tensors' bytes.
// Offsets count from the end of the header; together the tensors must cover the rest of the file exactly
// once.
#include "base/error.h"
#include "runtime/checkpoint.h"

#include <algorithm>
#include <cstring>

namespace deep_gemm::runtime {

namespace {

constexpr u64 kMaxHeaderBytes = 100'000'000;  // the format's own limit

std::optional<Storage> storage_named(std::string_view name) {
    constexpr std::pair<std::string_view, Storage> kNames[] = {
        {"F32", Storage::f32},         {"BF16", Storage::bf16},       {"F16", Storage::f16},
        {"F8_E4M3", Storage::f8_e4m3}, {"F8_E8M0", Storage::f8_e8m0}, {"I8", Storage::i8},
        {"U8", Storage::u8},           {"I32", Storage::i32},         {"I64", Storage::i64}};
    for (const auto& [known, storage] : kNames)
        if (known == name) return storage;
    return std::nullopt;
}

Tensor read_entry(const std::string& name, const Json& entry, std::span<const std::byte> data,
                  std::string_view file) {
    const std::string what = fmt::format("{}: tensor '{}'", file, name);
    const auto member = [&](const char* key) -> const Json& {
        const Json* json = entry.find(key);
        DG_CHECK(json, io, "{} has no '{}'; the file is damaged: get it again", what, key);
        return *json;
    };
    Tensor tensor{.name = name, .storage = {}, .shape = {}, .bytes = {}};
    const std::string& dtype = member("dtype").as_string(what + " dtype");
    const std::optional<Storage> storage = storage_named(dtype);
    DG_CHECK(
        storage, io,
        "{}: got dtype {}, expected F32, BF16, F16, F8_E4M3, F8_E8M0, I8, U8, I32 or I64; convert the tensor",
        what, dtype);
    tensor.storage = *storage;
    u64 elements = 1;
    for (const Json& extent : member("shape").as_array(what + " shape")) {
        tensor.shape.push_back(extent.as_unsigned(what + " shape"));
        DG_CHECK(!__builtin_mul_overflow(elements, tensor.shape.back(), &elements), io,
                 "{}: the shape overflows; the file is damaged: get it again", what);
    }
    const Json::Array& offsets = member("data_offsets").as_array(what + " data_offsets");
    DG_CHECK(offsets.size() == 2, io,
             "{}: got {} data_offsets, expected 2; the file is damaged: get it again", what, offsets.size());
    const u64 begin = offsets[0].as_unsigned(what + " data_offsets");
    const u64 end = offsets[1].as_unsigned(what + " data_offsets");
    DG_CHECK(begin <= end && end <= data.size(), io,
             "{}: bytes {} to {} of {}; the file is truncated or its header is damaged: get it again", what,
             begin, end, data.size());
    DG_CHECK(elements <= data.size() && bytes_of(tensor.storage, elements) == end - begin, io,
             "{}: {} of {} needs {} bytes, the header gives it {}; the file is damaged: get it again", what,
             text_of(tensor.shape), dtype, bytes_of(tensor.storage, elements), end - begin);
    tensor.bytes = data.subspan(begin, end - begin);
    return tensor;
}

void check_cover(std::vector<Tensor>& tensors, std::span<const std::byte> data, std::string_view file) {
    std::sort(tensors.begin(), tensors.end(), [](const Tensor& a, const Tensor& b) {
        return a.bytes.data() != b.bytes.data() ? a.bytes.data() < b.bytes.data()
                                                : a.bytes.size() < b.bytes.size();
    });
    const std::byte* at = data.data();
    for (const Tensor& tensor : tensors) {
        DG_CHECK(tensor.bytes.data() >= at, io,
                 "{}: tensor '{}' overlaps the one before it; the file is "
                 "damaged: get it again",
                 file, tensor.name);
        DG_CHECK(tensor.bytes.data() == at, io,
                 "{}: {} bytes before tensor '{}' belong to no tensor; the "
                 "file is damaged: get it again",
                 file, tensor.bytes.data() - at, tensor.name);
        at += tensor.bytes.size();
    }
    DG_CHECK(at == data.data() + data.size(), io,
             "{}: {} bytes after the last tensor; expected none: the file is damaged: get it again", file,
             data.data() + data.size() - at);
}

}  // namespace

std::vector<Tensor> read_safetensors(const MappedFile& file) {
    const std::string name = file.path().string();
    const std::span<const std::byte> bytes = file.bytes();
    DG_CHECK(bytes.size() >= 8, io,
             "{}: {} bytes, expected a safetensors or GGUF file; if it is one, it "
             "is truncated: get it again",
             name, bytes.size());
    u64 header_bytes = 0;
    std::memcpy(&header_bytes, bytes.data(), 8);
    DG_CHECK(header_bytes <= std::min<u64>(kMaxHeaderBytes, bytes.size() - 8), io,
             "{}: a header of {} bytes in a file of {}, expected a safetensors or GGUF file; pass a "
             "checkpoint's folder or file, or if this is one, get it again: it is damaged",
             name, header_bytes, bytes.size());
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + 8, header_bytes);
    const std::span<const std::byte> data = bytes.subspan(8 + header_bytes);
    const Json header = Json::parse(text, name);
    std::vector<Tensor> tensors;
    for (const auto& [key, entry] : header.as_object(name))
        if (key != "__metadata__") tensors.push_back(read_entry(key, entry, data, name));
    check_cover(tensors, data, name);
    return tensors;
}

}  // namespace deep_gemm::runtime
