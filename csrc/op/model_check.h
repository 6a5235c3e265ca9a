// Checks and views that the model operations (op/model_ops.h) share.
#pragma once

#include "base/error.h"
#include "op/launch.h"
#include "op/norm.h"

#include <deep_gemm/spec/view.h>

namespace deep_gemm::op {

// fp32 or bf16.
inline constexpr std::initializer_list<Format> kReal = {Format::fp32, Format::bf16};

// [t, d] as [t, 1, d].
[[nodiscard]] TensorView with_inner(const TensorView& t);
// Of a rank 2 or 3 tensor.
[[nodiscard]] View view_of(const TensorView& t);

class ModelChecks : public TensorChecks {
  public:
    using TensorChecks::TensorChecks;

    // As tensor(), with neighbours along the last dimension; start and all other strides are multiples of
    // `elements`, so that a thread can load so many at once.
    void array(const char* name, const TensorView& t, std::initializer_list<Format> formats,
               std::initializer_list<i64> shape, u32 elements = 1);
    // The same, packed; for an absent tensor nothing.
    void optional_vector(const char* name, const TensorView& t, std::initializer_list<Format> formats,
                         std::initializer_list<i64> shape, u32 elements = 1);
    void vector(const char* name, const TensorView& t, std::initializer_list<Format> formats,
                std::initializer_list<i64> shape, u32 elements = 1);
    // An FP8 copy of y [t, 1, d].
    void narrow_copy(const NarrowCopy& copy, const TensorView& y);
    // The extent of dimension i of a tensor that must have this rank.
    [[nodiscard]] i64 extent(const char* name, const TensorView& t, u32 rank, u32 i) const;
};

template <typename T>
[[nodiscard]] T* pointer_of(const TensorView& t) {
    return static_cast<T*>(t.data);
}
[[nodiscard]] constexpr u32 as_u32(i64 value) {
    return static_cast<u32>(value);
}
// Of q . k: what is given, or d^-0.5.
[[nodiscard]] float attention_scale(float given, i64 d);
// Blocks of a grid of `count` things; throws where they are too many for one launch.
[[nodiscard]] u32 grid_of(const char* operation, u64 count);

}  // namespace deep_gemm::op
