#include "runtime/engine.h"

#include "base/hash.h"

#include <algorithm>

namespace deep_gemm::runtime {

namespace {

// Of names, formats, shapes and first bytes of every tensor: enough to tell checkpoints apart without reading
// them twice.
std::string fingerprint_of(const Checkpoint& checkpoint, const EngineOptions& options) {
    Hash hash;
    for (const Tensor& tensor : checkpoint.tensors()) {
        hash.field(tensor.name).field(static_cast<u64>(tensor.storage)).field(tensor.bytes.size());
        hash.bytes(tensor.bytes.first(std::min<size_t>(tensor.bytes.size(), 64)));
    }
    hash.field(static_cast<u64>(options.numerics)).field(options.context).field(options.max_rows);
    return hash.digest().hex();
}

}  // namespace

std::shared_ptr<const Engine> Engine::load(Device& device, const Path& path, const EngineOptions& options) {
    const Checkpoint checkpoint = Checkpoint::open(path);
    return std::make_shared<const Engine>(device, checkpoint, options);
}

Engine::Engine(Device& device, const Checkpoint& checkpoint, const EngineOptions& options)
    : device_(device), options_(options) {
    DG_CHECK(checkpoint.config(), value,
             "engine: no config.json beside the checkpoint; pass a folder that holds both, as released");
    const std::unique_ptr<const ModelConfig> config = parse_config(*checkpoint.config(), "config.json");
    check_complete(checkpoint, config->expected_tensors());
    const u32 allowed = config->facts().max_positions;
    if (options_.context == 0) options_.context = std::min(allowed, 8192u);
    DG_CHECK(options_.context <= allowed, value, "engine: got a context of {}, the model allows {}",
             options_.context, allowed);
    DG_CHECK(options_.max_rows >= kMaxWindow && options_.max_rows <= 8192, value,
             "engine: got max_rows {}, expected {} to 8192", options_.max_rows, kMaxWindow);
    Loader loader(device, checkpoint, options_.progress);
    model_ = config->load(loader, options_.numerics);
    device.synchronize(nullptr);
    fingerprint_ = fingerprint_of(checkpoint, options_);
    options_.progress = {};  // it may hold the caller's objects
}

}  // namespace deep_gemm::runtime
