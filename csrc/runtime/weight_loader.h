// Loader: tensors of a checked checkpoint, by name, onto a device. Matrices stay in the format they are
// stored in, as far as devices have it; experts of a layer are stacked; everything small becomes fp32.
#pragma once

#include "runtime/checkpoint.h"
#include "runtime/fp8_experts.h"
#include "runtime/inventory.h"
#include "runtime/packed_experts.h"

#include <functional>
#include <optional>

namespace deep_gemm::runtime {

using LoadProgress = std::function<void(u64 done_bytes, u64 total_bytes)>;

// Bytes that these tensors take on a device.
[[nodiscard]] u64 device_bytes_of(const Checkpoint& checkpoint, const std::vector<Expected>& expected,
                                  Format wide);

// How many of the model's layers, from the first on, `room` bytes hold beside what belongs to no layer.
struct LayersThatFit {
    u32 fit = 0, of = 0;
};
[[nodiscard]] LayersThatFit layers_that_fit(const Checkpoint& checkpoint,
                                            const std::vector<Expected>& expected, Format wide, u64 room);

class Loader {
  public:
    // The checkpoint must have passed check_complete() for what is asked of the loader.
    // `wide`, fp32 (exact) or bf16, is what matrices in F16 and Q8_0 become.
    Loader(Device& device, const Checkpoint& checkpoint, Format wide, const LoadProgress& progress);

    [[nodiscard]] Device& device() const { return device_; }
    [[nodiscard]] Format wide() const { return wide_; }
    [[nodiscard]] u64 device_bytes() const { return device_bytes_; }  // so far

    DeviceTensor plain(const std::string& name);
    // Ids below `count`, int32.
    DeviceTensor ids(const std::string& name, u32 count);
    // Matrices of one shape, stacked if there are several names or `groups` (rows of one matrix as groups).
    Linear linear(const std::vector<std::string>& names, i64 groups = 0);
    Linear linear(const std::string& name) { return linear(std::vector{name}); }
    // Matrices `at`.0.`name` to `at`.count-1.`name`, [count, n, k].
    Linear experts(const std::string& at, u32 count, const std::string& name);
    // FP8 experts as grouped_experts() makes them: of models that round their activations, where all of
    // `names` are FP8.
    [[nodiscard]] bool should_group(const std::string& at, const std::vector<std::string>& names, i64 count,
                                    i64 hidden, i64 width, i64 top_k) const;
    // Matrices of one shape, those of `names` one after the other in each expert: [count * names, n, k].
    Linear grouped_experts(const std::string& at, u32 count, const std::vector<std::string>& names);
    // Experts as packed_experts() makes them, by the same rule: FP4 ones.
    [[nodiscard]] bool should_pack(const std::string& at, const std::vector<std::string>& names, i64 count,
                                   i64 hidden, i64 width, i64 top_k) const;
    // Those of `names`, one after the other in each expert, packed: [count, n of all, k].
    PackedMatrix packed_experts(const std::string& at, u32 count, const std::vector<std::string>& names);

  private:
    [[nodiscard]] const Tensor& get(const std::string& name) const;
    // Whether the matrices `names` of experts (checked to be stored as the first one's) are stored so.
    [[nodiscard]] bool are_stored(const std::string& at, const std::vector<std::string>& names,
                                  std::initializer_list<Storage> as) const;
    DeviceTensor allocate(Format format, std::vector<i64> shape);
    void upload(const DeviceTensor& target, u64 offset, std::span<const std::byte> bytes, u64 stored_bytes);
    void append(DeviceTensor& stacked, const Tensor& part, size_t index, size_t count, i64 groups,
                Format format);

    // Null where rows need several runs and `split` is not allowed.
    std::optional<PackedMatrix> try_pack(const std::string& at, u32 count,
                                         const std::vector<std::string>& names, Fp4Form form, bool split);
    void append_mxfp4(Linear& stacked, const Tensor& part, size_t index, size_t count, i64 groups);

    Device& device_;
    const Checkpoint& checkpoint_;
    Format wide_;
    const LoadProgress& progress_;
    u64 total_ = 0, done_ = 0, device_bytes_ = 0;
};

}  // namespace deep_gemm::runtime
