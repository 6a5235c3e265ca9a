// Checkpoint: the tensors of a model on disk, memory-mapped. A checkpoint is a safetensors file, a folder
// with model.safetensors or model.safetensors.index.json and its shards, or a GGUF file. Headers are
// untrusted: every offset, size and shape is checked before a byte is touched; what does not add up is
// Error(io) naming file and tensor.
#pragma once

#include "base/files.h"
#include "base/json.h"

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace deep_gemm::runtime {

// How elements are stored. q8_0 and mxfp4_gguf are GGUF's blocks of 32 along the last dimension.
enum class Storage : u8 { f32, bf16, f16, f8_e4m3, f8_e8m0, i8, u8, i32, i64, q8_0, mxfp4_gguf };

struct StorageRow {
    const char* name;
    u32 block_elements, block_bytes;
};
[[nodiscard]] const StorageRow& row_of(Storage storage);
[[nodiscard]] u64 bytes_of(Storage storage, u64 elements);

struct Tensor {
    std::string name;
    Storage storage = Storage::f32;
    std::vector<u64> shape;  // outermost first
    std::span<const std::byte> bytes;
    u32 file = 0;  // index in Checkpoint::files()

    [[nodiscard]] u64 elements() const;
};
[[nodiscard]] std::string text_of(std::span<const u64> shape);  // "4x256"

// A file mapped for reading; stays mapped as long as it lives. A file that shrinks meanwhile raises SIGBUS,
// as everywhere.
class MappedFile {
  public:
    explicit MappedFile(const Path& path);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    [[nodiscard]] std::span<const std::byte> bytes() const { return {data_, size_}; }
    [[nodiscard]] const Path& path() const { return path_; }

  private:
    Path path_;
    const std::byte* data_ = nullptr;
    size_t size_ = 0;
};

class Checkpoint {
  public:
    [[nodiscard]] static Checkpoint open(const Path& path);
    // Tensors whose bytes lie in `memory`, which moves along; no files.
    [[nodiscard]] static Checkpoint in_memory(std::vector<Tensor> tensors,
                                              std::vector<std::vector<std::byte>> memory, Json config);

    [[nodiscard]] const Tensor* find(std::string_view name) const;
    [[nodiscard]] std::span<const Tensor> tensors() const { return tensors_; }  // sorted by name
    [[nodiscard]] std::span<const std::unique_ptr<MappedFile>> files() const { return files_; }
    [[nodiscard]] u64 bytes() const;
    // config.json of the folder, or the same made of GGUF metadata.
    [[nodiscard]] const Json* config() const { return config_ ? &*config_ : nullptr; }
    [[nodiscard]] const std::string& config_text() const {
        return config_text_;
    }  // empty: in memory, or none

  private:
    void finish();  // sorts, refuses duplicates between files

    std::vector<Tensor> tensors_;
    std::vector<std::unique_ptr<MappedFile>> files_;
    std::vector<std::vector<std::byte>> memory_;
    std::unordered_map<std::string_view, size_t> by_name_;
    std::optional<Json> config_;
    std::string config_text_;
};

// The tensors of one file, in any order (safetensors.cpp).
[[nodiscard]] std::vector<Tensor> read_safetensors(const MappedFile& file);

}  // namespace deep_gemm::runtime
