// The Model of an architecture that has a struct `Loaded` (device, configuration, weights)
// and a ModelState `State` made of (const Loaded&, PagePool&, const StateSizes&).
#pragma once

#include "runtime/model.h"

namespace deep_gemm::runtime {

template <typename Loaded, typename State>
class LoadedModel final : public Model {
  public:
    LoadedModel(ModelFacts facts, Loaded loaded, u64 weight_bytes)
        : facts_(std::move(facts)), loaded_(std::move(loaded)), weight_bytes_(weight_bytes) {}

    const ModelFacts& facts() const override { return facts_; }
    u64 weight_bytes() const override { return weight_bytes_; }
    std::unique_ptr<ModelState> make_state(PagePool& pool, const StateSizes& sizes) const override {
        return std::make_unique<State>(loaded_, pool, sizes);
    }

  private:
    ModelFacts facts_;
    Loaded loaded_;
    u64 weight_bytes_;
};

}  // namespace deep_gemm::runtime
