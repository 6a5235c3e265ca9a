// Files as the cache needs them: whole-file reads and writes, publication of a finished folder by one rename,
// and a lock between processes that a killed holder cannot block. Failures are FileError with the path and
// the reason.
#pragma once

#include "base/exception.h"

#include <deep_gemm/spec/types.h>

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace deep_gemm {

using Path = std::filesystem::path;

class FileError : public Error {
  public:
    FileError(int number, const std::string& message) : Error(ErrorKind::io, message), number_(number) {}
    [[nodiscard]] int number() const noexcept { return number_; }  // errno

  private:
    int number_;
};

[[nodiscard]] std::string read_file(const Path& path);
// The same, after check() has seen the file's first `start_bytes` (or all that there are) and its size, and
// not thrown: for sizes that come from anywhere. One file, even where another one gets its name meanwhile.
using CheckStart = std::function<void(std::string_view start, u64 file_bytes)>;
[[nodiscard]] std::string read_file(const Path& path, u64 start_bytes, const CheckStart& check);
[[nodiscard]] std::optional<std::string> try_read_file(const Path& path);  // nullopt: absent or unreadable
[[nodiscard]] std::string read_file_part(const Path& path, u64 offset,
                                         u64 bytes);  // shorter at the file's end
[[nodiscard]] u64 file_bytes(const Path& path);
void write_file(const Path& path, std::string_view content);  // complete or Error; not synced to the medium
// The same by a file beside it and one rename, after it has reached the medium: whatever happens, there is the
// old content or the new one. A process that is killed may leave "<path>.<process>.<number>.tmp". Of a link the
// target is replaced; what is there and no regular file is refused.
void replace_file(const Path& path, std::string_view content);
void make_directories(const Path& path);
// A folder of this user that nobody else can write to, for places where others may put what they like under
// the name. Fails where there is something else, a link included.
void make_private_directory(const Path& path);
void remove_tree(const Path& path) noexcept;

// Makes an empty folder "<parent>/<stem>.<unique>" that no other thread or process has.
[[nodiscard]] Path make_unique_directory(const Path& parent, std::string_view stem);

// Renames a finished folder to its final name in one step: readers see all of it or nothing. False: someone
// else published first; the finished folder is removed, theirs stays.
bool publish_directory(const Path& finished, const Path& final_path);

// A lock between processes (and threads) on a path, held until destruction. The kernel drops it when its
// holder dies; a dead holder's forked child may still pin it, so the holder's process id is checked too. It
// only saves double work: whoever does not get it in time may go on, because publication is atomic.
class FileLock {
  public:
    // Tries until the timeout. held() is false after it, or where the file system has no locks.
    FileLock(const Path& path, std::chrono::milliseconds timeout);
    ~FileLock();
    FileLock(const FileLock&) = delete;
    FileLock& operator=(const FileLock&) = delete;

    [[nodiscard]] bool held() const { return descriptor_ >= 0; }

  private:
    Path path_;
    int descriptor_ = -1;
};

}  // namespace deep_gemm
