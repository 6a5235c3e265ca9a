#include "runtime/engine.h"

#include "base/hash.h"
#include "op/model_ops.h"
#include "runtime/inventory.h"

#include <algorithm>

namespace deep_gemm::runtime {

namespace {

DeviceTensor upload_frequencies(Device& device, const RopeConfig& rope, u32 dims) {
    const std::vector<float> values =
        op::rope_frequencies({.dims = dims,
                              .theta = rope.theta,
                              .yarn_factor = rope.yarn_factor == 1 ? 0 : rope.yarn_factor,
                              .yarn_original_context = rope.yarn_original,
                              .yarn_beta_fast = rope.beta_fast,
                              .yarn_beta_slow = rope.beta_slow});
    DeviceTensor tensor(device, Format::fp32, {static_cast<i64>(dims / 2), 2});
    device.copy_to_device(tensor.address(), std::as_bytes(std::span(values)), nullptr);
    device.synchronize(nullptr);
    return tensor;
}

// Of names, formats, shapes and first bytes of every tensor: enough to tell checkpoints apart without reading
// them twice.
std::string fingerprint_of(const Checkpoint& checkpoint, const EngineOptions& options) {
    Hash hash;
    for (const Tensor& tensor : checkpoint.tensors()) {
        hash.field(tensor.name).field(static_cast<u64>(tensor.storage)).field(tensor.bytes.size());
        hash.bytes(tensor.bytes.first(std::min<size_t>(tensor.bytes.size(), 64)));
    }
    const Numerics& n = options.numerics;
    hash.field(static_cast<u64>(n.activations)).field(u64{n.fp8_activations} * 2 + n.fp8_cache);
    hash.field(options.context).field(options.max_rows);
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
    config_ = parse_deepseek_v4(*checkpoint.config(), "config.json");
    check_complete(checkpoint, expected_tensors(config_));
    if (options_.context == 0) options_.context = std::min(config_.max_positions, 8192u);
    DG_CHECK(options_.context <= config_.max_positions, value,
             "engine: got a context of {}, the model allows {}", options_.context, config_.max_positions);
    DG_CHECK(options_.max_rows >= 8 && options_.max_rows <= 8192, value,
             "engine: got max_rows {}, expected 8 to 8192", options_.max_rows);
    const Numerics& numerics = options_.numerics;
    DG_CHECK(numerics.activations == Format::fp32 || numerics.activations == Format::bf16, value,
             "engine: got activations in {}, expected fp32 or bf16", name_of(numerics.activations));
    weights_ = load_weights(device, config_, checkpoint, options_.progress);
    window_frequencies_ = upload_frequencies(device, config_.rope, config_.rope_dim);
    compress_frequencies_ = upload_frequencies(device, config_.compress_rope, config_.rope_dim);
    fingerprint_ = fingerprint_of(checkpoint, options_);
    options_.progress = {};  // it may hold the caller's objects
}

}  // namespace deep_gemm::runtime
