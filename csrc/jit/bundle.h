// A bundle: many images in one file, for machines without NVRTC. Layout: magic line, index size and checksum,
// index (the records of all kernels), then the images in index order. Reading a kernel reads its bytes only.
#pragma once

#include <optional>
#include <span>
#include <unordered_map>

#include "base/files.h"
#include "jit/record.h"

namespace deep_gemm::jit {

// Writes to a temporary file beside `path` and renames it.
void write_bundle_file(const Path& path, std::span<const Record> records,
                       std::span<const Artifact> artifacts);

class Bundle {
  public:
    explicit Bundle(
        Path path);  // reads the index; throws Error(io) where the file is absent, damaged or no bundle

    [[nodiscard]] const Path& path() const { return path_; }
    [[nodiscard]] size_t size() const { return slots_.size(); }
    [[nodiscard]] std::optional<Artifact> find(
        const Digest& key) const;  // nullopt with a warning where the image is damaged

  private:
    struct Slot {
        Record record;
        u64 offset = 0;
    };
    Path path_;
    std::unordered_map<Digest, Slot, DigestHasher> slots_;
};

}  // namespace deep_gemm::jit
