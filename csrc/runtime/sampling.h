// How tokens are chosen from logits: the parameters, and their form on a device.
#pragma once

#include "runtime/device_tensor.h"

namespace deep_gemm::runtime {

// temperature 0: the largest logit, ties to the lower id.
struct Sampling {
    float temperature = 0;
    i32 top_k = 0;  // 0: all
    float top_p = 1;
    float min_p = 0;
    u64 seed = 0;

    [[nodiscard]] bool greedy() const { return temperature == 0; }
    friend bool operator==(const Sampling&, const Sampling&) = default;
};

// Error(value) for parameters out of range.
void check_sampling(const Sampling& sampling);

// Equal parameters for `count` rows. Operations take them from the device: a captured step stays right when
// they change.
class SamplingRows {
  public:
    SamplingRows() = default;
    SamplingRows(Device& device, i64 count);

    void set(const Sampling& sampling, driver::Stream stream);
    // probabilities of logits, fp32 [n, vocab], n <= count.
    void distribution(const TensorView& logits, const TensorView& probabilities, void* stream) const;
    // tokens int32 [n] by the random numbers of (seed, positions, purpose).
    void draw(const TensorView& probabilities, const TensorView& positions, const TensorView& tokens,
              u32 purpose, void* stream) const;
    [[nodiscard]] TensorView seed() const { return seed_.view(); }

  private:
    Device* device_ = nullptr;
    DeviceTensor temperature_, top_k_, top_p_, min_p_, seed_;
};

}  // namespace deep_gemm::runtime
