// DeviceTensor: packed device memory with a shape, and views of parts of it.
#pragma once

#include "base/error.h"
#include "driver/device.h"
#include "op/api.h"

#include <memory>
#include <span>
#include <vector>

namespace deep_gemm::runtime {

class DeviceTensor {
  public:
    DeviceTensor() = default;  // absent: view() is too
    DeviceTensor(Device& device, Format format, std::vector<i64> shape)
        : device_(&device), format_(format), shape_(std::move(shape)) {
        DG_CHECK(shape_.size() >= 1 && shape_.size() <= TensorView::kMaxRank, internal,
                 "device tensor of rank {}", shape_.size());
        buffer_ = std::make_unique<Buffer>(device, std::max<u64>(bytes(), 16));
    }

    [[nodiscard]] bool present() const { return buffer_ != nullptr; }
    [[nodiscard]] Format format() const { return format_; }
    [[nodiscard]] i64 extent(size_t dimension) const { return shape_[dimension]; }
    [[nodiscard]] u64 address() const { return buffer_ ? reinterpret_cast<u64>(buffer_->data()) : 0; }
    [[nodiscard]] u64 bytes() const {
        u64 bits = bits_of(format_);
        for (const i64 extent : shape_) bits *= static_cast<u64>(extent);
        return bits / 8;
    }
    [[nodiscard]] u64 row_bytes() const { return shape_[0] ? bytes() / static_cast<u64>(shape_[0]) : 0; }

    // Row-major over all of it, or over `count` entries of the first dimension.
    [[nodiscard]] TensorView view() const { return present() ? rows(0, shape_[0]) : TensorView{}; }
    [[nodiscard]] TensorView rows(i64 first, i64 count) const {
        if (!present()) return {};
        std::vector<i64> shape = shape_;
        shape[0] = count;
        return shaped(static_cast<u64>(first) * row_bytes(), shape);
    }
    // The same memory from its start as another shape, packed.
    [[nodiscard]] TensorView as(std::vector<i64> shape) const {
        return present() ? shaped(0, shape) : TensorView{};
    }

  private:
    [[nodiscard]] TensorView shaped(u64 offset_bytes, const std::vector<i64>& shape) const {
        TensorView view;
        view.data = reinterpret_cast<void*>(address() + offset_bytes);
        view.format = format_;
        view.rank = static_cast<u32>(shape.size());
        view.device = device_;
        i64 stride = 1;
        for (size_t i = shape.size(); i-- > 0;) {
            view.shape[i] = shape[i];
            view.strides[i] = stride;
            stride *= shape[i];
        }
        return view;
    }

    Device* device_ = nullptr;
    Format format_ = Format::none;
    std::vector<i64> shape_;
    std::unique_ptr<Buffer> buffer_;
};

// `count` entries of a view's first dimension.
[[nodiscard]] inline TensorView rows_of(TensorView view, i64 first, i64 count) {
    if (!view.present()) return view;
    view.data =
        static_cast<u8*>(view.data) + static_cast<u64>(first * view.strides[0]) * bits_of(view.format) / 8;
    view.shape[0] = count;
    return view;
}

// Values as a tensor on the device, which has them on return.
[[nodiscard]] inline DeviceTensor upload(Device& device, const std::vector<float>& values,
                                         std::vector<i64> shape) {
    DeviceTensor tensor(device, Format::fp32, std::move(shape));
    device.copy_to_device(tensor.address(), std::as_bytes(std::span(values)), nullptr);
    device.synchronize(nullptr);
    return tensor;
}

}  // namespace deep_gemm::runtime
