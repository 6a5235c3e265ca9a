#include "runtime/sampling.h"

#include "op/model_ops.h"

namespace deep_gemm::runtime {

void check_sampling(const Sampling& sampling) {
    DG_CHECK(sampling.temperature >= 0 && sampling.top_k >= 0 && sampling.top_p > 0 && sampling.top_p <= 1 &&
                 sampling.min_p >= 0 && sampling.min_p <= 1,
             value,
             "sampling: got temperature {}, top_k {}, top_p {}, min_p {}; expected temperature and top_k "
             "not negative, top_p in (0, 1], min_p in [0, 1]: correct what is outside",
             sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p);
}

SamplingRows::SamplingRows(Device& device, i64 count)
    : device_(&device),
      temperature_(device, Format::fp32, {count}),
      top_k_(device, Format::int32, {count}),
      top_p_(device, Format::fp32, {count}),
      min_p_(device, Format::fp32, {count}),
      seed_(device, Format::int32, {2}) {}

void SamplingRows::set(const Sampling& sampling, driver::Stream stream) {
    const auto fill = [&](const DeviceTensor& tensor, auto value) {
        const std::vector values(static_cast<size_t>(tensor.extent(0)), value);
        device_->copy_to_device(tensor.address(), std::as_bytes(std::span(values)), stream);
        device_->synchronize(stream);
    };
    fill(temperature_, sampling.temperature);
    fill(top_k_, sampling.top_k);
    fill(top_p_, sampling.top_p);
    fill(min_p_, sampling.min_p);
    const i32 seed[] = {static_cast<i32>(sampling.seed), static_cast<i32>(sampling.seed >> 32)};
    device_->copy_to_device(seed_.address(), std::as_bytes(std::span(seed)), stream);
    device_->synchronize(stream);
}

void SamplingRows::distribution(const TensorView& logits, const TensorView& probabilities,
                                void* stream) const {
    const i64 n = logits.shape[0];
    op::sample_distribution({.logits = logits,
                             .temperature = temperature_.rows(0, n),
                             .top_k = top_k_.rows(0, n),
                             .top_p = top_p_.rows(0, n),
                             .min_p = min_p_.rows(0, n),
                             .probabilities = probabilities,
                             .stream = stream});
}

void SamplingRows::draw(const TensorView& probabilities, const TensorView& positions,
                        const TensorView& tokens, u32 purpose, void* stream) const {
    op::sample_draw({.probabilities = probabilities,
                     .seed = seed_.view(),
                     .positions = positions,
                     .tokens = tokens,
                     .purpose = purpose,
                     .stream = stream});
}

}  // namespace deep_gemm::runtime
