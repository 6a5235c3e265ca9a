// Engine: a loaded model, immutable and shared by its sessions: device, configuration, weights, frequencies.
#pragma once

#include "runtime/weights.h"

#include <memory>

namespace deep_gemm::runtime {

// How numbers are rounded between kernels. exact: fp32 everywhere, the model as a function of its stored
// weights. released: as the model was released to run: bf16 activations, FP8 into low-precision matrices, FP8
// key-value rows, FP4 indexer.
struct Numerics {
    Format activations = Format::bf16;  // bf16 or fp32
    bool fp8_activations = true;
    bool fp8_cache = true;

    static Numerics exact() { return {Format::fp32, false, false}; }
    static Numerics released() { return {}; }
};

struct EngineOptions {
    Numerics numerics = Numerics::released();
    u32 context = 0;    // tokens a session can hold; 0: what the model allows, at most 8192
    u32 max_rows = 64;  // rows of one forward pass; longer prompts go in chunks
    LoadProgress progress = {};
};

class Engine {
  public:
    // Reads, checks and uploads a checkpoint. Throws Error: io (damaged files), value (not this model),
    // driver (out of memory); nothing stays allocated then.
    [[nodiscard]] static std::shared_ptr<const Engine> load(Device& device, const Path& path,
                                                            const EngineOptions& options);

    [[nodiscard]] Device& device() const { return device_; }
    [[nodiscard]] const DeepseekV4Config& config() const { return config_; }
    [[nodiscard]] const Numerics& numerics() const { return options_.numerics; }
    [[nodiscard]] const ModelWeights& weights() const { return weights_; }
    [[nodiscard]] u32 context() const { return options_.context; }
    [[nodiscard]] u32 max_rows() const { return options_.max_rows; }
    // fp32 [rope_dim / 2, 2], of compressed layers or of sliding-window layers.
    [[nodiscard]] TensorView frequencies(bool compressed) const {
        return (compressed ? compress_frequencies_ : window_frequencies_).view();
    }
    // Of everything that a session's saved state depends on.
    [[nodiscard]] const std::string& fingerprint() const { return fingerprint_; }

    Engine(Device& device, const Checkpoint& checkpoint,
           const EngineOptions& options);  // load() is the way in

  private:
    Device& device_;
    EngineOptions options_;
    DeepseekV4Config config_;
    ModelWeights weights_;
    DeviceTensor window_frequencies_, compress_frequencies_;
    std::string fingerprint_;
};

}  // namespace deep_gemm::runtime
