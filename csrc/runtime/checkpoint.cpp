#include "runtime/checkpoint.h"

#include "base/error.h"
#include "runtime/gguf_model.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

namespace deep_gemm::runtime {

const StorageRow& row_of(Storage storage) {
    static constexpr StorageRow kRows[] = {
        {"F32", 1, 4}, {"BF16", 1, 2}, {"F16", 1, 2}, {"F8_E4M3", 1, 1}, {"F8_E8M0", 1, 1}, {"I8", 1, 1},
        {"U8", 1, 1},  {"I32", 1, 4},  {"I64", 1, 8}, {"Q8_0", 32, 34},  {"MXFP4", 32, 17}};
    return kRows[static_cast<u32>(storage)];
}

u64 bytes_of(Storage storage, u64 elements) {
    return elements / row_of(storage).block_elements * row_of(storage).block_bytes;
}

u64 Tensor::elements() const {
    u64 count = 1;
    for (const u64 extent : shape) count *= extent;
    return count;
}

std::string text_of(std::span<const u64> shape) {
    return shape.empty() ? "scalar" : fmt::format("{}", fmt::join(shape.begin(), shape.end(), "x"));
}

MappedFile::MappedFile(const Path& path) : path_(path) {
    // Without O_NONBLOCK a pipe would wait for a writer.
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    struct stat status = {};
    const bool opened = descriptor >= 0 && ::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
    const std::string reason = descriptor < 0            ? std::strerror(errno)
                               : S_ISDIR(status.st_mode) ? "it is a folder"
                                                         : "it is no regular file";
    if (opened) {
        size_ = static_cast<size_t>(status.st_size);
        void* mapped = size_ == 0 ? nullptr : ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
        data_ = mapped == MAP_FAILED ? nullptr : static_cast<const std::byte*>(mapped);
    }
    if (descriptor >= 0) ::close(descriptor);
    DG_CHECK(opened, io, "checkpoint: cannot read '{}': {}; check the path", path.string(), reason);
    DG_CHECK(size_ == 0 || data_, io,
             "checkpoint: cannot map '{}' ({} bytes) into memory; free address "
             "space, or raise ulimit -v",
             path.string(), size_);
}

MappedFile::~MappedFile() {
    if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

namespace {

// The shards of an index, and where it says each tensor is.
std::vector<std::string> shards_of(const Json& index, std::string_view source) {
    const Json* map = index.find("weight_map");
    DG_CHECK(
        map, io,
        "{}: no 'weight_map'; expected the index of a sharded safetensors checkpoint: pass the folder, or "
        "one of its .safetensors files",
        source);
    std::set<std::string> names;
    for (const auto& [tensor, shard] : map->as_object(source)) {
        const std::string& name = shard.as_string(source);
        DG_CHECK(name.find('/') == std::string::npos && name != "..", io,
                 "{}: shard '{}' of tensor '{}' is outside the folder; get the checkpoint again", source,
                 name, tensor);
        names.insert(name);
    }
    return {names.begin(), names.end()};
}

void check_index(const Json& index, const Checkpoint& checkpoint, std::string_view source) {
    const Json::Object& map = index.find("weight_map")->as_object(source);
    for (const auto& [name, shard] : map) {
        const Tensor* tensor = checkpoint.find(name);
        DG_CHECK(tensor, io, "{}: tensor '{}' is in no shard; get the checkpoint again", source, name);
        const std::string holder = checkpoint.files()[tensor->file]->path().filename().string();
        DG_CHECK(holder == shard.as_string(source), io,
                 "{}: tensor '{}' should be in {}, it is in {}; get "
                 "the index and the shards of one release",
                 source, name, shard.as_string(source), holder);
    }
    DG_CHECK(map.size() == checkpoint.tensors().size(), io,
             "{}: lists {} tensors, the shards hold {}; get "
             "the index and the shards of one release",
             source, map.size(), checkpoint.tensors().size());
}

}  // namespace

Checkpoint Checkpoint::open(const Path& path) {
    Checkpoint checkpoint;
    const bool folder = std::filesystem::is_directory(path);
    const Path index_path = path / "model.safetensors.index.json";
    std::optional<Json> index;
    std::vector<std::string> names;
    std::string config;  // of a GGUF file
    if (!folder) {
        names.push_back(path.filename().string());
    } else if (std::filesystem::exists(index_path)) {
        index = Json::parse(read_file(index_path), index_path.string());
        names = shards_of(*index, index_path.string());
    } else {
        // The small file first: what is wrong there says more than missing weights.
        if (const Path config_path = path / "config.json"; std::filesystem::exists(config_path))
            (void)Json::parse(read_file(config_path), config_path.string());
        DG_CHECK(std::filesystem::exists(path / "model.safetensors"), io,
                 "checkpoint: '{}' has neither model.safetensors nor model.safetensors.index.json; pass the "
                 "folder that holds one of them beside config.json, or the path of a GGUF file",
                 path.string());
        names.push_back("model.safetensors");
    }
    const Path base = folder ? path : path.parent_path();
    for (const std::string& name : names) {
        const auto& file = checkpoint.files_.emplace_back(std::make_unique<MappedFile>(base / name));
        const bool gguf = file->bytes().size() >= 4 && std::memcmp(file->bytes().data(), "GGUF", 4) == 0;
        std::vector<Tensor> tensors;
        if (gguf) {
            GgufFile content = read_gguf(*file);
            config = translate_gguf(content.metadata, content.tensors, name);
            tensors = std::move(content.tensors);
        } else {
            tensors = read_safetensors(*file);
        }
        for (Tensor& tensor : tensors) {
            tensor.file = static_cast<u32>(checkpoint.files_.size() - 1);
            checkpoint.tensors_.push_back(std::move(tensor));
        }
    }
    checkpoint.finish();
    if (index) check_index(*index, checkpoint, index_path.string());
    std::string source = names.front();
    if (config.empty()) {
        config = try_read_file(base / "config.json").value_or("");
        source = (base / "config.json").string();
    }
    if (!config.empty()) checkpoint.config_ = Json::parse(config, source);
    checkpoint.config_text_ = std::move(config);
    return checkpoint;
}

Checkpoint Checkpoint::in_memory(std::vector<Tensor> tensors, std::vector<std::vector<std::byte>> memory,
                                 Json config) {
    Checkpoint checkpoint;
    checkpoint.tensors_ = std::move(tensors);
    checkpoint.memory_ = std::move(memory);
    checkpoint.config_ = std::move(config);
    checkpoint.finish();
    return checkpoint;
}

void Checkpoint::finish() {
    std::sort(tensors_.begin(), tensors_.end(),
              [](const Tensor& a, const Tensor& b) { return a.name < b.name; });
    for (size_t i = 0; i < tensors_.size(); ++i) {
        const auto [found, fresh] = by_name_.emplace(tensors_[i].name, i);
        DG_CHECK(fresh, io,
                 "checkpoint: tensor '{}' is in {} and in {}; leave one of the files out of the "
                 "folder",
                 tensors_[i].name, files_[tensors_[found->second].file]->path().filename().string(),
                 files_[tensors_[i].file]->path().filename().string());
    }
}

const Tensor* Checkpoint::find(std::string_view name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

u64 Checkpoint::bytes() const {
    u64 total = 0;
    for (const Tensor& tensor : tensors_) total += tensor.bytes.size();
    return total;
}

}  // namespace deep_gemm::runtime
