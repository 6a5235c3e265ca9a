#include "runtime/engine.h"

#include "base/hash.h"

#include <algorithm>

namespace deep_gemm::runtime {

namespace {

// Pieces of a tensor's bytes, evenly spread to its very end; all of a small one.
void add_pieces(Hash& hash, std::span<const std::byte> bytes) {
    constexpr size_t kPiece = 64, kPieces = 16, kSmall = size_t{1} << 16;
    if (bytes.size() <= kSmall) {
        hash.bytes(bytes);
        return;
    }
    for (size_t i = 0; i < kPieces; ++i)
        hash.bytes(bytes.subspan((bytes.size() - kPiece) * i / (kPieces - 1), kPiece));
}

// Of the configuration, and of names, formats, shapes and a part of the bytes of every tensor: enough to tell
// checkpoints apart without reading hundreds of gigabytes twice.
std::string fingerprint_of(const Checkpoint& checkpoint, const EngineOptions& options) {
    Hash hash;
    hash.field(checkpoint.config_text());
    for (const Tensor& tensor : checkpoint.tensors()) {
        hash.field(tensor.name).field(static_cast<u64>(tensor.storage)).field(tensor.bytes.size());
        add_pieces(hash, tensor.bytes);
    }
    hash.field(static_cast<u64>(options.numerics)).field(options.context).field(options.max_rows);
    return hash.digest().hex();
}

void check_fit(Device& device, const Checkpoint& checkpoint, const std::vector<Expected>& expected,
               Format wide) {
    constexpr double kGiB = 1 << 30;
    const u64 needed = device_bytes_of(checkpoint, expected, wide), available = device.free_memory_bytes();
    if (needed <= available) return;
    const LayersThatFit layers = layers_that_fit(checkpoint, expected, wide, available);
    fail(ErrorKind::driver,
         "engine: out of memory: the weights take {:.3f} GiB and {} has {:.3f} GiB free: {:.3f} GiB are "
         "missing, before any session, and {} of {} layers would fit; free device memory or use a smaller "
         "or narrower checkpoint",
         static_cast<double>(needed) / kGiB, device.properties().name, static_cast<double>(available) / kGiB,
         static_cast<double>(needed - available) / kGiB, layers.fit, layers.of);
}

// As many pages as the options ask for.
u32 count_pages(Device& device, const EngineOptions& options, u64 page_bytes) {
    constexpr double kGiB = 1 << 30;
    constexpr u64 kUsualContexts = 16;
    const u64 available = device.free_memory_bytes(), fit = available / std::max<u64>(page_bytes, 1);
    const u64 context = pages_for(options.context);
    const u64 count = options.cache_tokens ? pages_for(options.cache_tokens)
                                           : std::clamp(fit / 2, context, kUsualContexts * context);
    DG_CHECK(
        count <= fit, driver,
        "engine: out of memory: a cache of {} tokens takes {:.6f} GiB and {} has {:.6f} GiB free beside the "
        "weights: {:.6f} GiB are missing; a context or cache_tokens of {} would fit",
        count * kPageTokens, static_cast<double>(count * page_bytes) / kGiB, device.properties().name,
        static_cast<double>(available) / kGiB, static_cast<double>(count * page_bytes - available) / kGiB,
        fit * kPageTokens);
    DG_CHECK(count < (u64{1} << 31), value, "engine: got cache_tokens {}, expected at most {}; ask for fewer",
             options.cache_tokens, (u64{1} << 31) * kPageTokens);
    return static_cast<u32>(count);
}

}  // namespace

std::shared_ptr<const Engine> Engine::load(Device& device, const Path& path, const EngineOptions& options) {
    const Checkpoint checkpoint = Checkpoint::open(path);
    return std::make_shared<const Engine>(device, checkpoint, options);
}

Engine::Engine(Device& device, const Checkpoint& checkpoint, const EngineOptions& options)
    : device_(device), options_(options) {
    const driver::DeviceProperties& properties = device.properties();
    DG_CHECK(
        properties.compute_major >= 9, value,
        "engine: got {} (sm_{}), expected a device with clusters of blocks, sm_90a or newer, which the kernels "
        "of whole models use; linear() and quantize() serve older ones",
        properties.name, properties.arch);
    DG_CHECK(checkpoint.config(), value,
             "engine: no config.json beside the checkpoint; pass a folder that holds both, as released");
    const std::unique_ptr<const ModelConfig> config = parse_config(*checkpoint.config(), "config.json");
    const std::vector<Expected> expected = config->expected_tensors();
    check_complete(checkpoint, expected);
    const u32 allowed = config->facts().max_positions;
    if (options_.context == 0) options_.context = std::min(allowed, 8192u);
    DG_CHECK(options_.context <= allowed, value,
             "engine: got a context of {}, expected at most the "
             "model's {}; pass less, or 0 for what the model allows, "
             "up to 8192",
             options_.context, allowed);
    if (options_.max_rows == 0)
        options_.max_rows =
            std::max(std::min(options_.context, device.properties().emulated ? 64u : 256u), kMaxWindow);
    DG_CHECK(options_.max_rows >= kMaxWindow && options_.max_rows <= 8192, value,
             "engine: got max_rows {}, expected {} to 8192; pass a number in between", options_.max_rows,
             kMaxWindow);
    const Format wide = activations_of(options_.numerics);
    check_fit(device, checkpoint, expected, wide);
    Loader loader(device, checkpoint, wide, options_.progress);
    model_ = config->load(loader, options_.numerics);
    device.synchronize(nullptr);
    const std::vector<PageShape> caches = config->page_shapes(options_.numerics);
    pages_ = std::make_unique<PagePool>(device, caches,
                                        count_pages(device, options_, PagePool::page_bytes(caches)));
    fingerprint_ = fingerprint_of(checkpoint, options_);
    options_.progress = {};  // it may hold the caller's objects
}

void Engine::check_tokens(std::span<const i32> tokens) const {
    DG_CHECK(
        tokens.size() <= context(), value,
        "engine: got {} tokens, the context holds {}; shorten them or load the engine with a larger context",
        tokens.size(), context());
    for (size_t i = 0; i < tokens.size(); ++i)
        DG_CHECK(tokens[i] >= 0 && static_cast<u32>(tokens[i]) < facts().vocab, value,
                 "engine: token {} is {}, expected 0 to {}; is this the model's tokenizer?", i, tokens[i],
                 facts().vocab - 1);
}

DeviceTensor Engine::make_rows(i64 count) const {
    std::vector<i64> shape = facts().row_shape;
    shape.insert(shape.begin(), count);
    return {device_, activations_of(numerics()), std::move(shape)};
}

}  // namespace deep_gemm::runtime
