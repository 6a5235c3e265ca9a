#include "base/files.h"

#include "base/error.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <utility>

namespace deep_gemm {

namespace {

constexpr int kNoRegularFile = -1;  // beside errno: a device, a socket, a pipe

[[noreturn]] void fail_io(const char* action, const Path& path, int error) {
    DG_CHECK(error != kNoRegularFile, io, "{} '{}' failed: it is no regular file; check the path", action,
             path.string());
    const char* remedy = error == ENOSPC || error == EFBIG || error == EDQUOT
                             ? "free some space or choose another folder"
                         : error == EACCES || error == EROFS || error == EPERM
                             ? "check the permissions or choose another folder"
                             : "check the path";
    throw FileError(
        error, fmt::format("{} '{}' failed: {}; {}", action, path.string(), std::strerror(error), remedy));
}

class Descriptor {
  public:
    explicit Descriptor(int value) : value_(value) {}
    ~Descriptor() {
        if (value_ >= 0) ::close(value_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    Descriptor(Descriptor&& other) noexcept : value_(other.release()) {}
    Descriptor& operator=(Descriptor&& other) noexcept {
        std::swap(value_, other.value_);
        return *this;
    }
    [[nodiscard]] int get() const { return value_; }
    int release() { return std::exchange(value_, -1); }

  private:
    int value_;
};

// Both: 0 on success, else errno.
int open_to_read(const Path& path, Descriptor& file, u64& size) {
    // Without O_NONBLOCK a pipe would wait for a writer.
    file = Descriptor(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    if (file.get() < 0) return errno;
    struct stat status = {};
    if (::fstat(file.get(), &status) != 0) return errno;
    if (!S_ISREG(status.st_mode)) return S_ISDIR(status.st_mode) ? EISDIR : kNoRegularFile;
    size = static_cast<u64>(status.st_size);
    return 0;
}

// `content` is shorter where the file ends.
int read_at(const Descriptor& file, u64 offset, u64 bytes, std::string& content) {
    content.resize(bytes);
    size_t done = 0;
    while (done < content.size()) {
        const ssize_t got = ::pread(file.get(), content.data() + done, content.size() - done,
                                    static_cast<off_t>(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return errno;
        if (got == 0) break;
        done += static_cast<size_t>(got);
    }
    content.resize(done);
    return 0;
}

// At most `limit` bytes from `offset`.
int read_some(const Path& path, u64 offset, u64 limit, std::string& content) {
    Descriptor file(-1);
    u64 size = 0;
    if (const int error = open_to_read(path, file, size)) return error;
    return read_at(file, offset, std::min(limit, size - std::min(offset, size)), content);
}

constexpr u64 kWholeFile = ~u64{0};

void write_all(const Descriptor& file, const Path& path, std::string_view content) {
    while (!content.empty()) {
        const ssize_t put = ::write(file.get(), content.data(), content.size());
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) fail_io("writing", path, errno);
        content.remove_prefix(static_cast<size_t>(put));
    }
}

// A new file "<path>.<process>.<number>.tmp", which no other thread or process has; one that was killed may
// have left its own.
Descriptor create_beside(const Path& path, Path& created) {
    static std::atomic<u64> number = 0;
    for (;;) {
        created = path.string() + fmt::format(".{}.{}.tmp", ::getpid(), number++);
        Descriptor file(::open(created.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
        if (file.get() >= 0) return file;
        if (errno != EEXIST) fail_io("creating", created, errno);
    }
}

// What a name stands for, which need not exist yet.
Path behind_links(Path path) {
    constexpr u32 kMostLinks = 40;  // as the kernel follows
    std::error_code error;
    for (u32 i = 0; std::filesystem::is_symlink(path, error); ++i) {
        if (i == kMostLinks) fail_io("writing", path, ELOOP);
        const Path target = std::filesystem::read_symlink(path, error);
        if (error) fail_io("reading link", path, error.value());
        path = path.parent_path() / target;
    }
    return path;
}

// Does the process that wrote this lock file (its id, then the host name) still exist? Unknown counts as
// alive.
bool holder_is_dead(int descriptor) {
    char text[320] = {};
    if (::pread(descriptor, text, sizeof(text) - 1, 0) <= 0) return false;
    char* host = nullptr;
    const long process = std::strtol(text, &host, 10);
    char own_host[256] = {};
    ::gethostname(own_host, sizeof(own_host) - 1);
    if (process <= 0 || *host != ' ' || std::strcmp(host + 1, own_host) != 0) return false;
    return ::kill(static_cast<pid_t>(process), 0) != 0 && errno == ESRCH;
}

void write_holder(int descriptor) {
    char host[256] = {};
    ::gethostname(host, sizeof(host) - 1);
    const std::string text = fmt::format("{} {}", ::getpid(), host);
    // Best effort: without it, recovery relies on the kernel alone.
    if (::ftruncate(descriptor, 0) == 0) [[maybe_unused]]
        const auto written = ::pwrite(descriptor, text.data(), text.size(), 0);
}

bool same_file(int descriptor, const Path& path) {
    struct stat opened = {}, named = {};
    return ::fstat(descriptor, &opened) == 0 && ::stat(path.c_str(), &named) == 0 &&
           opened.st_ino == named.st_ino && opened.st_dev == named.st_dev;
}

}  // namespace

std::string read_file(const Path& path) {
    std::string content;
    if (const int error = read_some(path, 0, kWholeFile, content)) fail_io("reading", path, error);
    return content;
}

std::optional<std::string> try_read_file(const Path& path) {
    std::string content;
    if (read_some(path, 0, kWholeFile, content) != 0) return std::nullopt;
    return content;
}

std::string read_file_part(const Path& path, u64 offset, u64 bytes) {
    std::string content;
    if (const int error = read_some(path, offset, bytes, content)) fail_io("reading", path, error);
    return content;
}

std::string read_file(const Path& path, u64 start_bytes, const CheckStart& check) {
    Descriptor file(-1);
    u64 size = 0;
    std::string content;
    if (const int error = open_to_read(path, file, size)) fail_io("reading", path, error);
    if (const int error = read_at(file, 0, std::min(start_bytes, size), content))
        fail_io("reading", path, error);
    check(content, size);
    if (const int error = read_at(file, 0, size, content)) fail_io("reading", path, error);
    DG_CHECK(content.size() == size, io, "reading '{}': got {} bytes of {}; read it when nobody shortens it",
             path.string(), content.size(), size);
    return content;
}

u64 file_bytes(const Path& path) {
    std::error_code error;
    const u64 bytes = std::filesystem::file_size(path, error);
    if (error) fail_io("reading", path, error.value());
    return bytes;
}

void write_file(const Path& path, std::string_view content) {
    Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
    if (file.get() < 0) fail_io("creating", path, errno);
    write_all(file, path, content);
    if (::close(file.release()) != 0) fail_io("writing", path, errno);
}

void replace_file(const Path& name, std::string_view content) {
    // A link stays, and what it points to is replaced. A rename would put a file in a device's place as well.
    const Path path = behind_links(name);
    struct stat status = {};
    if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode))
        fail_io("writing", path, S_ISDIR(status.st_mode) ? EISDIR : kNoRegularFile);
    Path temporary;
    Descriptor file = create_beside(path, temporary);
    try {
        write_all(file, temporary, content);
        if (::fsync(file.get()) != 0) fail_io("writing", temporary, errno);
        if (::close(file.release()) != 0) fail_io("writing", temporary, errno);
        if (std::rename(temporary.c_str(), path.c_str()) != 0) fail_io("writing", path, errno);
    } catch (...) {
        remove_tree(temporary);
        throw;
    }
    // The name reaches the medium with its folder. Not every file system can be asked to; either name is of a
    // complete file.
    const Path folder = path.has_parent_path() ? path.parent_path() : Path(".");
    if (const Descriptor opened(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        opened.get() >= 0)
        static_cast<void>(::fsync(opened.get()));
}

void make_directories(const Path& path) {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (error) fail_io("creating folder", path, error.value());
}

void make_private_directory(const Path& path) {
    if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) fail_io("creating folder", path, errno);
    struct stat found {};
    if (::lstat(path.c_str(), &found) != 0) fail_io("looking at folder", path, errno);
    const bool writable_by_others = (found.st_mode & (S_IWGRP | S_IWOTH)) != 0;
    if (!S_ISDIR(found.st_mode) || found.st_uid != ::geteuid() || writable_by_others)
        fail(ErrorKind::io,
             "{}: got something that others can change, expected a folder of this user alone; remove it",
             path.string());
}

void remove_tree(const Path& path) noexcept {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
}

Path make_unique_directory(const Path& parent, std::string_view stem) {
    std::string pattern = (parent / fmt::format("{}.XXXXXX", stem)).string();
    if (::mkdtemp(pattern.data()) == nullptr) fail_io("creating folder", pattern, errno);
    ::chmod(pattern.c_str(), 0755);  // mkdtemp's 0700 would hide a shared cache from other users
    return pattern;
}

bool publish_directory(const Path& finished, const Path& final_path) {
    if (std::rename(finished.c_str(), final_path.c_str()) == 0) return true;
    const int error = errno;
    remove_tree(finished);
    if (error == EEXIST || error == ENOTEMPTY || error == ENOTDIR) return false;
    fail_io("publishing", final_path, error);
}

FileLock::FileLock(const Path& path, std::chrono::milliseconds timeout) : path_(path) {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    bool seen_dead = false;
    auto pause = std::chrono::microseconds(200);
    for (;;) {
        Descriptor file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
        if (file.get() < 0) return;
        if (::flock(file.get(), LOCK_EX | LOCK_NB) == 0) {
            // The last holder unlinks the file: a lock on an unlinked file excludes nobody, so look again.
            if (!same_file(file.get(), path)) continue;
            write_holder(file.get());
            descriptor_ = file.release();
            return;
        }
        if (errno != EWOULDBLOCK && errno != EINTR) return;
        // Dead twice in a row, with a pause: a living holder has just taken the lock and not yet written its
        // name.
        if (!holder_is_dead(file.get())) {
            seen_dead = false;
        } else if (seen_dead) {
            if (same_file(file.get(), path)) ::unlink(path.c_str());
            continue;
        } else {
            seen_dead = true;
            pause = std::chrono::microseconds(20'000);
        }
        if (std::chrono::steady_clock::now() >= deadline) return;
        std::this_thread::sleep_for(pause);
        pause = std::min(pause * 2, std::chrono::microseconds(20'000));
    }
}

FileLock::~FileLock() {
    if (descriptor_ < 0) return;
    if (same_file(descriptor_, path_)) ::unlink(path_.c_str());
    ::close(descriptor_);
}

}  // namespace deep_gemm
