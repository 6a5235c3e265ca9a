#include "op/model_check.h"

#include <cmath>

namespace deep_gemm::op {

TensorView with_inner(const TensorView& t) {
    if (t.rank != 2) return t;
    TensorView out = t;
    out.rank = 3;
    out.shape[2] = t.shape[1];
    out.strides[2] = t.strides[1];
    out.shape[1] = 1;
    out.strides[1] = 0;
    return out;
}

View view_of(const TensorView& t) {
    if (!t.present()) return {};
    return {t.data, stride_of(t, 0), t.rank > 2 && t.shape[1] > 1 ? stride_of(t, 1) : 0};
}

void ModelChecks::array(const char* name, const TensorView& t, std::initializer_list<Format> formats,
                        std::initializer_list<i64> shape, u32 elements) {
    tensor(name, t, formats, shape);
    for (u32 i = 0; i < t.rank; ++i)
        if (t.shape[i] == 0) return;
    DG_CHECK(stride_of(t, t.rank - 1) == 1, value,
             "{}: {} has stride {} along its last dimension, expected 1; pass a contiguous copy", operation(),
             name, t.strides[t.rank - 1]);
    const u64 bytes = u64{elements} * bytes_of(t.format);
    DG_CHECK(address_of(t) % bytes == 0, value,
             "{}: {} starts at {:#x}, expected a multiple of {} bytes; pass a copy", operation(), name,
             address_of(t), bytes);
    for (u32 i = 0; i + 1 < t.rank; ++i)
        DG_CHECK(t.shape[i] == 1 || t.strides[i] % elements == 0, value,
                 "{}: {} has stride {} along dimension {}, expected a multiple of {}; pad its rows",
                 operation(), name, t.strides[i], i, elements);
}

void ModelChecks::vector(const char* name, const TensorView& t, std::initializer_list<Format> formats,
                         std::initializer_list<i64> shape, u32 elements) {
    array(name, t, formats, shape, elements);
    packed(name, t);
}

void ModelChecks::optional_vector(const char* name, const TensorView& t,
                                  std::initializer_list<Format> formats, std::initializer_list<i64> shape,
                                  u32 elements) {
    if (t.present()) vector(name, t, formats, shape, elements);
}

void ModelChecks::narrow_copy(const NarrowCopy& copy, const TensorView& y) {
    const bool nvfp4 = copy.recipe == Recipe::nvfp4, fp8 = copy.recipe == Recipe::fp8_128;
    if (!copy.present()) return;
    constexpr i64 kColumns = 128;  // of a warp
    const i64 t = y.shape[0], d = y.shape[2];
    DG_CHECK(
        y.format == Format::bf16 && y.shape[1] == 1 && d % kColumns == 0, value,
        "{}: got a {} copy of {} {}, expected one of bf16 [t, d] with d a multiple of {}; ask for no copy, "
        "and quantise the result",
        operation(), name_of(copy.recipe), name_of(y.format), shape_text(y), kColumns);
    const char* reason = why_illegal(QuantizeSpec{.x = y.format,
                                                  .recipe = copy.recipe,
                                                  .rule = nvfp4 ? ScaleRule::exact : copy.rule,
                                                  .row_amax = nvfp4});
    DG_CHECK(!reason, value, "{}: {}", operation(), reason);
    vector("codes", copy.codes, {fp8 ? Format::fp8_e4m3 : Format::int8}, {t, fp8 ? d : d / 2}, 4);
    vector("scales", copy.scales, {fp8 ? Format::fp32 : Format::int8}, {t, d / block_of(copy.recipe)});
    DG_CHECK(nvfp4 || !copy.global_scale.present(), value,
             "{}: got a global_scale, expected none for {}; leave it out", operation(), name_of(copy.recipe));
    if (nvfp4) vector("global_scale", copy.global_scale, {Format::fp32}, {t});
}

i64 ModelChecks::extent(const char* name, const TensorView& t, u32 rank, u32 i) const {
    DG_CHECK(t.present() && t.device, type, "{}: {} is missing, expected a tensor; pass it", operation(),
             name);
    DG_CHECK(t.rank == rank, value, "{}: {} has shape {}, expected {} dimensions; reshape it", operation(),
             name, shape_text(t), rank);
    return t.shape[i];
}

float attention_scale(float given, i64 d) {
    return given != 0 ? given : static_cast<float>(1 / std::sqrt(static_cast<double>(d)));
}

u32 grid_of(const char* operation, u64 count) {
    DG_CHECK(count < (u64{1} << 31), value,
             "{}: got {} blocks of threads, expected fewer than 2^31; split the rows over calls", operation,
             count);
    return static_cast<u32>(count);
}

}  // namespace deep_gemm::op
