#include "jit/disk_cache.h"

#include "base/env.h"
#include "base/error.h"
#include "base/log.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>

namespace deep_gemm::jit {

namespace {

namespace fs = std::filesystem;

constexpr const char* kRecord = "record.txt";
constexpr const char* kImage = "image";
constexpr std::string_view kVersionPrefix = "nvrtc-";

Path default_root() {
    if (const std::string& chosen = env_text(Env::jit_cache_dir); !chosen.empty()) return chosen;
    if (const std::string xdg = foreign_env("XDG_CACHE_HOME"); !xdg.empty()) return Path(xdg) / "deep_gemm";
    if (const std::string home = foreign_env("HOME"); !home.empty())
        return Path(home) / ".cache" / "deep_gemm";
    return {};
}

std::vector<Path> split_paths(std::string_view list) {
    std::vector<Path> paths;
    while (!list.empty()) {
        const size_t end = std::min(list.find(':'), list.size());
        if (end > 0) paths.emplace_back(list.substr(0, end));
        list.remove_prefix(std::min(end + 1, list.size()));
    }
    return paths;
}

std::string folder_name(const Digest& key, std::string_view name, const Target& target) {
    return fmt::format("{}-{}_{}.{}", name, target.kind == driver::ImageKind::ptx ? "compute" : "sm",
                       target.arch, key.hex());
}

// What lies in a folder, none where there is no such folder or it cannot be read.
std::vector<Path> subfolders(const Path& folder) {
    std::vector<Path> found;
    std::error_code error;
    for (auto it = fs::directory_iterator(folder, error); !error && it != fs::directory_iterator();
         it.increment(error))
        found.push_back(it->path());
    return found;
}

// {12, 8} of "nvrtc-12.8".
std::pair<u32, u32> version_of(const Path& entry) {
    const std::string name = entry.filename().string();
    std::pair<u32, u32> version{0, 0};
    const char *at = name.data() + std::min(kVersionPrefix.size(), name.size()),
               *end = name.data() + name.size();
    at = std::from_chars(at, end, version.first).ptr;
    if (at != end) std::from_chars(at + 1, end, version.second);
    return version;
}

std::optional<Record> read_record(const Path& entry) {
    const std::optional<std::string> text = try_read_file(entry / kRecord);
    return text ? parse_record(*text) : std::nullopt;
}

bool image_is_sound(const Record& record, std::string_view image) {
    return image.size() == record.image_bytes && hash_of(image) == record.image_hash;
}

std::optional<Artifact> read_entry(const Path& entry, const Digest& key) {
    std::optional<Record> record = read_record(entry);
    if (!record || !(record->key == key)) return std::nullopt;
    std::optional<std::string> image = try_read_file(entry / kImage);
    if (!image || !image_is_sound(*record, *image)) return std::nullopt;
    Artifact artifact = std::move(record->artifact);
    artifact.image = std::move(*image);
    artifact.origin = Origin::disk;
    return artifact;
}

u64 bytes_in(const Path& folder) {
    u64 bytes = 0;
    std::error_code error;
    for (auto it = fs::recursive_directory_iterator(folder, error);
         !error && it != fs::recursive_directory_iterator(); it.increment(error))
        if (it->is_regular_file(error)) bytes += it->file_size(error);
    return bytes;
}

// Out of readers' sight in one step, then deleted. The error where it stays; one that is gone already is
// none.
std::error_code discard(const Path& root, const Path& folder) noexcept {
    std::error_code error;
    try {
        const Path grave = make_unique_directory(root / "tmp", "discarded");
        fs::rename(folder, grave / "entry", error);
        remove_tree(grave);
        return error == std::errc::no_such_file_or_directory ? std::error_code() : error;
    } catch (const Error&) {
        fs::remove_all(folder, error);
        return error;
    }
}

// Counts what could not be removed, to say so once at the end.
struct Refusals {
    u64 count = 0;
    std::error_code first;

    void add(std::error_code error, u64 entries) {
        if (!error) return;
        if (count == 0) first = error;
        count += entries;
    }
    void check(u64 wanted, const Path& root) const {
        DG_CHECK(count == 0, io,
                 "kernel cache: {} of {} kernels in '{}' could not be removed ({}); do it as the folder's "
                 "owner, or choose another folder with DG_JIT_CACHE_DIR",
                 count, wanted, root.string(), first.message());
    }
};

}  // namespace

DiskCache::DiskCache()
    : writable_(default_root()),
      readonly_(split_paths(env_text(Env::jit_readonly_cache_dirs))),
      max_bytes_(std::min(env_number(Env::jit_cache_max_mb), u64{1} << 32) << 20),
      can_write_(!writable_.empty()) {}

std::optional<Artifact> DiskCache::find(const Digest& key, std::string_view name, const Target& target,
                                        std::string_view nvrtc) {
    const auto start = std::chrono::steady_clock::now();
    for (const Path& root : roots()) {
        const Path kernel = root / "kernels" / folder_name(key, name, target);
        std::vector<Path> versions;
        if (nvrtc.empty()) {
            versions = subfolders(kernel);
            std::sort(versions.begin(), versions.end(),
                      [](const Path& a, const Path& b) { return version_of(a) > version_of(b); });
        } else if (std::error_code error;
                   fs::exists(kernel / fmt::format("{}{}", kVersionPrefix, nvrtc), error)) {
            versions.push_back(kernel / fmt::format("{}{}", kVersionPrefix, nvrtc));
        }
        for (const Path& entry : versions) {
            if (std::optional<Artifact> artifact = read_entry(entry, key)) {
                if (std::error_code ignored; root == writable_)
                    fs::last_write_time(entry / kRecord, fs::file_time_type::clock::now(), ignored);
                artifact->seconds =
                    std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
                return artifact;
            }
            if (std::error_code error; !fs::exists(entry, error)) continue;  // removed while it was read
            log(LogLevel::warning, "kernel cache: '{}' is damaged and will be built again", entry.string());
            if (root == writable_) (void)discard(root, entry);  // what stays is found damaged again
        }
    }
    return std::nullopt;
}

void DiskCache::store(const Digest& key, const Target& target, const KernelSource& source,
                      const Artifact& artifact) {
    const Path kernel = writable_ / "kernels" / folder_name(key, source.name, target);
    make_directories(writable_ / "tmp");
    const Path staged = make_unique_directory(writable_ / "tmp", source.name);
    try {
        write_file(staged / "kernel.cu", source.code);
        write_file(staged / "log.txt", artifact.log);
        write_file(staged / kImage, artifact.image);
        write_file(staged / kRecord,
                   write_record(make_record(key, target, artifact, source.entry, source.replay)));
        make_directories(kernel);  // last: whoever clears the cache takes an empty folder away
        publish_directory(staged, kernel / fmt::format("{}{}", kVersionPrefix, artifact.nvrtc));
    } catch (...) {
        remove_tree(staged);
        throw;
    }
}

void DiskCache::publish(const Digest& key, const Target& target, const KernelSource& source,
                        const Artifact& artifact) noexcept {
    // Folders go while they are filled when somebody clears the cache: once is bad luck, this often in a row
    // is a place where none can be made.
    constexpr u32 kAttempts = 16;
    for (u32 attempt = 1; can_write_; ++attempt) {
        try {
            store(key, target, source, artifact);
            // Looking at every entry takes a fraction of the time of so many builds.
            constexpr u32 kBuildsBetween = 32;
            if (published_++ % kBuildsBetween == 0) keep_within_limit();
            return;
        } catch (const FileError& error) {
            if (error.number() == ENOENT && attempt < kAttempts) continue;
            give_up_writing("storing a kernel", error);
        } catch (const std::exception& error) {
            give_up_writing("storing a kernel", error);
        }
    }
}

// Removes what was not used for the longest until a tenth of the limit is free again. Whoever builds a kernel
// holds its lock: an entry whose lock cannot be had at once stays.
void DiskCache::keep_within_limit() {
    if (max_bytes_ == 0) return;
    struct Candidate {
        fs::file_time_type used;
        Path folder;
        u64 bytes;
    };
    std::vector<Candidate> candidates;
    u64 total = 0;
    std::error_code ignored;
    for (const Path& kernel : subfolders(writable_ / "kernels"))
        for (const Path& folder : subfolders(kernel)) {
            candidates.push_back({fs::last_write_time(folder / kRecord, ignored), folder, bytes_in(folder)});
            total += candidates.back().bytes;
        }
    if (total <= max_bytes_) return;
    std::sort(candidates.begin(), candidates.end(),
              [](const Candidate& a, const Candidate& b) { return a.used < b.used; });
    u64 removed = 0, removed_bytes = 0;
    for (const Candidate& candidate : candidates) {
        if (total - removed_bytes <= max_bytes_ - max_bytes_ / 10) break;
        const Path kernel = candidate.folder.parent_path();
        const std::string key = kernel.extension().string();  // ".<digits>" of folder_name()
        if (key.empty()) continue;
        const FileLock lock(writable_ / "locks" / key.substr(1), std::chrono::milliseconds(0));
        if (!lock.held()) continue;
        if (discard(writable_, candidate.folder)) continue;
        fs::remove(kernel, ignored);  // if it was the last version
        ++removed;
        removed_bytes += candidate.bytes;
    }
    log(LogLevel::info, "kernel cache: {} of {} kernels removed, {} of {} MiB (DG_JIT_CACHE_MAX_MB={})",
        removed, candidates.size(), removed_bytes >> 20, total >> 20, max_bytes_ >> 20);
}

std::unique_ptr<FileLock> DiskCache::lock(const Digest& key) {
    const std::chrono::seconds timeout(env_number(Env::jit_lock_timeout_s));
    if (!can_write_) return nullptr;
    try {
        make_directories(writable_ / "locks");
        return std::make_unique<FileLock>(writable_ / "locks" / key.hex(), timeout);
    } catch (const std::exception& error) {
        const auto* file = dynamic_cast<const FileError*>(&error);
        if (file == nullptr || file->number() != ENOENT) give_up_writing("locking a kernel", error);
        return nullptr;  // where no folder can be made publish() finds out
    }
}

void DiskCache::give_up_writing(const char* doing, const std::exception& error) noexcept {
    if (can_write_.exchange(false))
        log_text(LogLevel::warning,
                 fmt::format("kernel cache: {} failed, kernels built from now on stay in memory only ({})",
                             doing, error.what()));
}

Path DiskCache::failed_folder() const {
    return writable_.empty() ? Path() : writable_ / "failed";
}

std::vector<Path> DiskCache::roots() const {
    std::vector<Path> all;
    if (!writable_.empty()) all.push_back(writable_);
    all.insert(all.end(), readonly_.begin(), readonly_.end());
    return all;
}

std::vector<DiskCache::Entry> DiskCache::list(bool thorough) const {
    std::vector<Entry> entries;
    for (const Path& root : roots()) {
        for (const Path& kernel : subfolders(root / "kernels")) {
            for (const Path& folder : subfolders(kernel)) {
                Entry entry{.folder = folder,
                            .bytes = bytes_in(folder),
                            .writable = root == writable_,
                            .record = read_record(folder)};
                if (thorough && entry.record && !read_entry(folder, entry.record->key)) entry.record.reset();
                entries.push_back(std::move(entry));
            }
        }
    }
    std::sort(entries.begin(), entries.end(),
              [](const Entry& a, const Entry& b) { return a.folder < b.folder; });
    return entries;
}

DiskCache::Cleared DiskCache::clear() {
    Cleared cleared;
    if (writable_.empty()) return cleared;
    Refusals refusals;
    for (const Path& kernel : subfolders(writable_ / "kernels")) {
        const u64 entries = subfolders(kernel).size(), bytes = bytes_in(kernel);
        cleared.entries += entries;
        cleared.bytes += bytes;
        refusals.add(discard(writable_, kernel), entries);
    }
    remove_tree(writable_ / "failed");
    // To hold a lock and to let it go removes its file; one that somebody else holds stays.
    for (const Path& lock : subfolders(writable_ / "locks")) FileLock(lock, std::chrono::milliseconds(0));
    remove_leftovers();
    refusals.check(cleared.entries, writable_);
    return cleared;
}

// What killed processes left behind.
void DiskCache::remove_leftovers() {
    constexpr auto kStale = std::chrono::hours(1);  // no build takes that long
    std::error_code error;
    for (const Path& leftover : subfolders(writable_ / "tmp"))
        if (fs::last_write_time(leftover, error) < fs::file_time_type::clock::now() - kStale)
            remove_tree(leftover);
}

std::vector<DiskCache::Entry> DiskCache::remove_damaged() {
    std::vector<Entry> removed;
    Refusals refusals;
    for (Entry& entry : list(true)) {
        if (entry.record || !entry.writable) continue;
        refusals.add(discard(writable_, entry.folder), 1);
        removed.push_back(std::move(entry));
    }
    remove_leftovers();
    refusals.check(removed.size(), writable_);
    return removed;
}

}  // namespace deep_gemm::jit
