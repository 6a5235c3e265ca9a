// Checks of tensor arguments that are the same for all operations: presence, type, device, shape, packing.
// Each failure is one sentence of got, expected, remedy, and starts with the operation's name.
#pragma once

#include "op/api.h"
#include "op/region.h"

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace deep_gemm::op {

class TensorChecks {
  public:
    explicit TensorChecks(const char* operation) : operation_(operation) {}

    // Present, of one of `formats`, of this shape (-1: any extent), with no negative stride, on the device of
    // the first tensor checked.
    void tensor(const char* name, const TensorView& t, std::initializer_list<Format> formats,
                std::initializer_list<i64> shape);
    // Elements of the last dimension are neighbours; start and rows are multiples of `alignment` bytes.
    void rows(const char* name, const TensorView& t, u32 alignment) const;
    // No gaps.
    void packed(const char* name, const TensorView& t) const;

    // A tensor that the operation writes, which may be `itself`, an input, row for row.
    struct Output {
        const char* name;
        const char* itself = nullptr;
    };
    // Rows are written while others are still read: what is written shares no byte with any other tensor that was
    // checked since the last call of this. Absent ones are left out.
    void outputs(std::initializer_list<Output> written);

    [[nodiscard]] Device& device() const { return *device_; }
    [[nodiscard]] const char* operation() const { return operation_; }

  private:
    const char* operation_;
    Device* device_ = nullptr;
    const char* first_ = "";
    struct Checked {
        std::string_view name;
        Format format;
        Region region;
    };
    std::vector<Checked> checked_;
};

inline constexpr i64 kMaxExtent = (i64{1} << 31) - 1;  // of a dimension, so that kernels count in 32 bits

// "[2, 3]"
[[nodiscard]] std::string shape_text(const TensorView& t);
// Bytes from the first element to the end of the last.
[[nodiscard]] u64 bytes_spanned(const TensorView& t);
[[nodiscard]] inline u64 address_of(const TensorView& t) {
    return reinterpret_cast<u64>(t.data);
}
// Elements between neighbours along dimension i; of one element, what a packed tensor would have.
[[nodiscard]] u64 stride_of(const TensorView& t, u32 i);

}  // namespace deep_gemm::op
