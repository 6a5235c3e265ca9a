#include "op/weight_check.h"

namespace deep_gemm::op {

namespace {

TensorView with_count(const TensorView& t) {
    if (t.rank != 2) return t;
    TensorView out = t;
    out.rank = 3;
    for (u32 i = 2; i > 0; --i) {
        out.shape[i] = t.shape[i - 1];
        out.strides[i] = t.strides[i - 1];
    }
    out.shape[0] = 1;
    out.strides[0] = t.shape[0] * t.strides[0];
    return out;
}

}  // namespace

CheckedWeight check_weight(ModelChecks& checks, const char* name, TensorView w, const char* scale_name,
                           TensorView scale) {
    const char* operation = checks.operation();
    w = with_count(w);
    checks.array(name, w, {Format::fp32, Format::bf16, Format::fp8_e4m3, Format::int8}, {-1, -1, -1}, 4);
    const bool fp4 = w.format == Format::int8, fp8 = w.format == Format::fp8_e4m3;
    CheckedWeight out;
    out.format = fp4 ? Format::fp4_e2m1 : w.format;
    out.count = as_u32(w.shape[0]);
    out.n = as_u32(w.shape[1]);
    out.k = as_u32(w.shape[2]) * (fp4 ? 2 : 1);
    const u32 step = fp4 || fp8 ? kProjectColumns : 4;
    DG_CHECK(out.k % step == 0, value,
             "{}: {} has k = {}, expected a multiple of {}; pad the weights and x with zeros", operation,
             name, out.k, step);
    const u64 unit = fp4 ? 2 : 1;  // codes of a byte
    out.view = {.data = w.data,
                .scale = nullptr,
                .stride_matrix = stride_of(w, 0) * unit,
                .stride_row = stride_of(w, 1) * unit,
                .scale_stride_matrix = 0,
                .scale_stride_row = 0};
    if (!fp4 && !fp8) {
        DG_CHECK(!scale.present(), value, "{}: got {}, expected none for {} weights; leave them out",
                 operation, scale_name, name_of(w.format));
        return out;
    }
    scale = with_count(scale);
    const i64 rows = fp4 ? out.n : ceil_div(out.n, kProjectColumns);
    const i64 columns = out.k / (fp4 ? 32 : kProjectColumns);
    if (fp4)
        checks.array(scale_name, scale, {Format::fp8_ue8m0}, {w.shape[0], rows, columns});
    else
        checks.array(scale_name, scale, {Format::fp32, Format::fp8_ue8m0}, {w.shape[0], rows, columns});
    out.scale_format = scale.format;
    out.view.scale = scale.data;
    out.view.scale_stride_matrix = stride_of(scale, 0);
    out.view.scale_stride_row = stride_of(scale, 1);
    return out;
}

void check_activation(ModelChecks& checks, const char* name, const TensorView& x, const char* scale_name,
                      const TensorView& scale, const CheckedWeight& w) {
    const char* operation = checks.operation();
    checks.array(name, x, {Format::fp32, Format::bf16, Format::fp8_e4m3}, {-1, -1, w.k}, 4);
    if (x.format != Format::fp8_e4m3) {
        DG_CHECK(!scale.present(), value, "{}: got {}, expected none for {} {}; leave them out", operation,
                 scale_name, name_of(x.format), name);
        return;
    }
    DG_CHECK(w.scale_format != Format::none, type,
             "{}: {} is fp8_e4m3 but the weights are {}, expected FP8 or FP4 weights; pass {} unquantised",
             operation, name, name_of(w.format), name);
    checks.array(scale_name, scale, {Format::fp32}, {x.shape[0], x.shape[1], w.k / kProjectColumns});
}

}  // namespace deep_gemm::op
