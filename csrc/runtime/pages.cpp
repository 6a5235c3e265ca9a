#include "runtime/pages.h"

#include <algorithm>

namespace deep_gemm::runtime {

namespace {

u64 bytes_of(const PageShape& cache) {
    u64 bits = bits_of(cache.format);
    for (const i64 extent : cache.shape) bits *= static_cast<u64>(extent);
    return bits / 8;
}

}  // namespace

PagePool::PagePool(Device& device, const std::vector<PageShape>& caches, u32 count)
    : device_(device), count_(count), page_bytes_(page_bytes(caches)) {
    for (const PageShape& cache : caches) {
        std::vector<i64> shape = cache.shape;
        shape.insert(shape.begin(), count);
        memory_.emplace_back(device, cache.format, std::move(shape));
    }
    for (u32 page = count; page-- > 0;) free_.push_back(static_cast<i32>(page));
}

u64 PagePool::page_bytes(const std::vector<PageShape>& caches) {
    u64 bytes = 0;
    for (const PageShape& cache : caches) bytes += bytes_of(cache);
    return bytes;
}

u32 PagePool::free() const {
    const std::scoped_lock lock(mutex_);
    return static_cast<u32>(free_.size());
}

bool PagePool::take(u32 wanted, std::vector<i32>& pages) {
    const std::scoped_lock lock(mutex_);
    if (wanted > free_.size()) return false;
    pages.insert(pages.end(), free_.rbegin(), free_.rbegin() + wanted);
    free_.resize(free_.size() - wanted);
    return true;
}

void PagePool::give_back(std::vector<i32>& pages, size_t kept) {
    const std::scoped_lock lock(mutex_);
    free_.insert(free_.end(), pages.rbegin(), pages.rend() - static_cast<i64>(kept));
    pages.resize(kept);
}

PageTable::PageTable(PagePool& pool, u32 sequences, u32 context)
    : pool_(pool),
      table_(pool.device(), Format::int32, {sequences, std::max(pages_for(context), 1u)}),
      pages_(sequences) {}

PageTable::~PageTable() {
    for (std::vector<i32>& pages : pages_) pool_.give_back(pages, 0);
}

bool PageTable::try_hold(u32 sequence, u32 tokens, driver::Stream stream) {
    std::vector<i32>& pages = pages_[sequence];
    const size_t had = pages.size();
    const u32 needed = pages_for(tokens);
    DG_CHECK(needed <= table_.extent(1), internal, "pages: {} tokens, the table holds {}", tokens,
             table_.extent(1) * kPageTokens);
    if (needed <= had) return true;
    if (!pool_.take(needed - static_cast<u32>(had), pages)) return false;
    pool_.device().copy_to_device(table_.address() + sequence * table_.row_bytes() + had * sizeof(i32),
                                  std::as_bytes(std::span(pages).subspan(had)), stream);
    return true;
}

void PageTable::hold(u32 sequence, u32 tokens, driver::Stream stream) {
    if (try_hold(sequence, tokens, stream)) return;
    const u32 had = static_cast<u32>(pages_[sequence].size()), free = pool_.free();
    const u32 more = pages_for(tokens) - had, missing = more - std::min(free, more);
    fail(ErrorKind::value,
         "cache: out of pages: {} tokens need {} pages of {} tokens more, and {} of the engine's {} are "
         "free: {} "
         "missing, {} tokens would fit; end or shorten another session, or load the engine with cache_tokens "
         "{}",
         tokens, more, kPageTokens, free, pool_.count(), missing, u64{had + free} * kPageTokens,
         u64{pool_.count() + missing} * kPageTokens);
}

void PageTable::trim(u32 sequence, u32 tokens, driver::Stream stream) {
    std::vector<i32>& pages = pages_[sequence];
    const size_t kept = pages_for(tokens);
    if (pages.size() <= kept) return;
    pool_.device().synchronize(stream);  // their next owner does not wait for this stream
    pool_.give_back(pages, kept);
}

}  // namespace deep_gemm::runtime
