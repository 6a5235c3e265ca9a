// Memory of the caches that grow with their tokens, shared by all sessions of an engine. A page holds what
// kPageTokens tokens leave in every layer; a session has a table of its pages, which kernels read.
#pragma once

#include "runtime/device_tensor.h"

#include <mutex>
#include <span>
#include <vector>

namespace deep_gemm::runtime {

constexpr u32 kPageTokens = 256;

[[nodiscard]] constexpr u32 pages_for(u64 tokens) {
    return static_cast<u32>(tokens / kPageTokens + (tokens % kPageTokens != 0));
}
// Rows of a page where each of them stands for `ratio` tokens: `tokens` tokens never need more pages than
// pages_for(tokens).
[[nodiscard]] constexpr u32 page_rows_for(u32 ratio) {
    return (kPageTokens + ratio - 1) / ratio;
}

// What one cache keeps in a page.
struct PageShape {
    Format format = Format::none;
    std::vector<i64> shape;
};

// The pages of an engine. Safe to use from several threads.
class PagePool {
  public:
    PagePool(Device& device, const std::vector<PageShape>& caches, u32 count);
    PagePool(const PagePool&) = delete;
    PagePool& operator=(const PagePool&) = delete;

    [[nodiscard]] static u64 page_bytes(const std::vector<PageShape>& caches);
    [[nodiscard]] Device& device() const { return device_; }
    [[nodiscard]] u32 count() const { return count_; }
    [[nodiscard]] u64 bytes_of_page() const { return page_bytes_; }
    [[nodiscard]] u32 free() const;
    // [pages, shape] of a cache, in the order of the constructor's.
    [[nodiscard]] const DeviceTensor& memory(size_t cache) const { return memory_[cache]; }

    // Adds `wanted` pages to `pages`; false, with nothing changed, where fewer are free.
    bool take(u32 wanted, std::vector<i32>& pages);
    // Takes back all but the first `kept`. What used them must have finished.
    void give_back(std::vector<i32>& pages, size_t kept);

  private:
    Device& device_;
    u32 count_;
    u64 page_bytes_;
    std::vector<DeviceTensor> memory_;
    mutable std::mutex mutex_;
    std::vector<i32> free_;
};

// The pages of some sequences, and the table on the device.
class PageTable {
  public:
    PageTable(PagePool& pool, u32 sequences, u32 context);
    PageTable(const PageTable&) = delete;
    PageTable& operator=(const PageTable&) = delete;
    // Nothing may use the pages any more.
    ~PageTable();

    [[nodiscard]] const PagePool& pool() const { return pool_; }
    [[nodiscard]] TensorView view() const { return table_.view(); }  // int32 [sequences, pages of a context]
    [[nodiscard]] std::span<const i32> pages(u32 sequence) const { return pages_[sequence]; }
    // Tokens that the sequence's pages hold.
    [[nodiscard]] u32 capacity(u32 sequence) const {
        return static_cast<u32>(pages_[sequence].size()) * kPageTokens;
    }

    // Gives the sequence the pages of `tokens` tokens, for kernels that follow on the stream; false, with
    // nothing changed, where too few are free.
    [[nodiscard]] bool try_hold(u32 sequence, u32 tokens, driver::Stream stream);
    // The same; Error(value) with what is missing and what would fit.
    void hold(u32 sequence, u32 tokens, driver::Stream stream);
    // Gives back the pages beyond `tokens` tokens, after what is on the stream.
    void trim(u32 sequence, u32 tokens, driver::Stream stream);

  private:
    PagePool& pool_;
    DeviceTensor table_;
    std::vector<std::vector<i32>> pages_;
};

}  // namespace deep_gemm::runtime
