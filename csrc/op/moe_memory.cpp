#include "op/moe_memory.h"

#include "base/error.h"
#include "op/launch.h"
#include "op/overlap.h"

#include <vector>

namespace deep_gemm::op {

namespace {

std::vector<TensorView> tensors_of(const std::variant<MoeFp8Weights, MoeFp4Weights>& weights) {
    if (const auto* fp4 = std::get_if<MoeFp4Weights>(&weights))
        return {fp4->w13.blobs, fp4->w13.row_scales, fp4->w13.runs,
                fp4->w2.blobs,  fp4->w2.row_scales,  fp4->w2.runs};
    const auto& fp8 = std::get<MoeFp8Weights>(weights);
    return {fp8.w13, fp8.w13_scale, fp8.w2, fp8.w2_scale};
}

void check_apart(const char* written, const Region& w, const char* name, const TensorView& t) {
    if (!t.present()) return;
    const Region other = op::region_of(t);
    DG_CHECK(!overlap(w, other), value,
             "fused_moe: {} is the {} bytes from {:#x}, which overlap {}, the {} bytes from {:#x}; expected "
             "memory of its own: pass another tensor as {}",
             written, w.bytes, w.address, name, other.bytes, other.address, written);
}

}  // namespace

void check_moe_memory(const FusedMoeArguments& a, u64 workspace_bytes) {
    const Region workspace{.address = address_of(a.workspace), .bytes = workspace_bytes};
    const Region out = region_of(a.out);
    const bool in_place = a.shared.present() && a.shared.data == a.out.data &&
                          a.shared.format == a.out.format &&
                          (a.out.shape[0] <= 1 || a.shared.strides[0] == a.out.strides[0]);
    check_apart("workspace", workspace, "x", a.x);
    check_apart("workspace", workspace, "out", a.out);
    check_apart("workspace", workspace, "shared", a.shared);
    if (!in_place) check_apart("out", out, "shared", a.shared);
    const auto check_both = [&](const char* name, const TensorView& t) {
        check_apart("workspace", workspace, name, t);
        check_apart("out", out, name, t);
    };
    check_both("topk_ids", a.topk_ids);
    check_both("topk_weights", a.topk_weights);
    for (const TensorView& part : tensors_of(a.weights)) check_both("the weights", part);
}

}  // namespace deep_gemm::op
