// The cache folders. One entry is one folder, published by one rename, named by what it was built from:
//   <root>/kernels/<kernel>-<arch>.<key>/nvrtc-13.0/{record.txt, image, kernel.cu, log.txt}
// It holds no absolute path and may be copied elsewhere. Checksums in record.txt make any damage a cache
// miss. The first root is written; when it cannot be, the cache says so once and goes on without it. A folder
// that somebody removes meanwhile is made again. A hit there renews record.txt's time: beyond a limit
// ($DG_JIT_CACHE_MAX_MB) the oldest entries are removed.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <vector>

#include "base/files.h"
#include "jit/record.h"
#include "jit/source.h"

namespace deep_gemm::jit {

class DiskCache {
  public:
    DiskCache();  // $DG_JIT_CACHE_DIR and $DG_JIT_READONLY_CACHE_DIRS; touches no file

    // `nvrtc` is a version ("13.0"); empty: the newest there is. Damaged entries of the writable root are
    // removed.
    [[nodiscard]] std::optional<Artifact> find(const Digest& key, std::string_view name, const Target& target,
                                               std::string_view nvrtc);
    void publish(const Digest& key, const Target& target, const KernelSource& source,
                 const Artifact& artifact) noexcept;

    // Held by the process that builds this key; nullptr where the folder cannot be written.
    [[nodiscard]] std::unique_ptr<FileLock> lock(const Digest& key);
    [[nodiscard]] Path failed_folder() const;

    struct Entry {
        Path folder;
        u64 bytes = 0;
        bool writable = false;
        std::optional<Record> record;  // nullopt: damaged
    };
    // Every entry of every root. `thorough` also reads the images and checks them.
    [[nodiscard]] std::vector<Entry> list(bool thorough) const;
    struct Cleared {
        u64 entries = 0, bytes = 0;
    };
    // All entries of the writable root; processes that build go on undisturbed. Throws Error(io) where some
    // stay.
    Cleared clear();
    std::vector<Entry> remove_damaged();  // also leftovers of killed processes; the same of what stays
    [[nodiscard]] std::vector<Path> roots() const;

  private:
    void store(const Digest& key, const Target& target, const KernelSource& source, const Artifact& artifact);
    void remove_leftovers();
    void give_up_writing(const char* doing, const std::exception& error) noexcept;
    void keep_within_limit();

    Path writable_;  // empty: none
    std::vector<Path> readonly_;
    u64 max_bytes_;  // 0: no limit
    std::atomic<bool> can_write_;
    std::atomic<u32> published_{0};
};

}  // namespace deep_gemm::jit
