// Engine: a loaded model, immutable and shared by its sessions: device, configuration, weights.
#pragma once

#include "runtime/model.h"
#include "runtime/weight_loader.h"

#include <memory>
#include <span>

namespace deep_gemm::runtime {

struct EngineOptions {
    Numerics numerics = Numerics::released;
    u32 context = 0;   // tokens a session can hold; 0: what the model allows, at most 8192
    u32 max_rows = 0;  // rows of one forward pass; longer prompts go in chunks. 0: 256, or 64 where rows are
                       // emulated; no more than the context
    u64 cache_tokens = 0;  // that all sessions hold together; 0: sixteen contexts, or one to sixteen as they
                           // fit half of the memory that the weights leave
    LoadProgress progress = {};
};

class Engine {
  public:
    // Reads, checks and uploads a checkpoint. Throws Error: io (damaged files), value (not a model that the
    // runtime knows), driver (out of memory); nothing stays allocated then.
    [[nodiscard]] static std::shared_ptr<const Engine> load(Device& device, const Path& path,
                                                            const EngineOptions& options);

    [[nodiscard]] Device& device() const { return device_; }
    [[nodiscard]] const Model& model() const { return *model_; }
    [[nodiscard]] const ModelFacts& facts() const { return model_->facts(); }
    [[nodiscard]] Numerics numerics() const { return options_.numerics; }
    [[nodiscard]] u32 context() const { return options_.context; }
    [[nodiscard]] u32 max_rows() const { return options_.max_rows; }
    [[nodiscard]] PagePool& pages() const { return *pages_; }
    [[nodiscard]] std::unique_ptr<ModelState> make_state(const StateSizes& sizes) const {
        return model_->make_state(*pages_, sizes);
    }
    // Error(value) for ids outside the vocabulary, or more tokens than the context.
    void check_tokens(std::span<const i32> tokens) const;
    // Memory for `count` tokens between embedding and head: [count, row_shape] in the format of activations.
    [[nodiscard]] DeviceTensor make_rows(i64 count) const;
    // Of everything that a session's saved state depends on.
    [[nodiscard]] const std::string& fingerprint() const { return fingerprint_; }

    Engine(Device& device, const Checkpoint& checkpoint,
           const EngineOptions& options);  // load() is the way in

  private:
    Device& device_;
    EngineOptions options_;
    std::unique_ptr<const Model> model_;
    std::unique_ptr<PagePool> pages_;
    std::string fingerprint_;
};

}  // namespace deep_gemm::runtime
