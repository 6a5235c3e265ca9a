#include "op/scale_layout.h"

#include "base/error.h"
#include "op/launch.h"

#include <deep_gemm/spec/scale_layout.h>

#include <bit>
#include <cstring>

namespace deep_gemm {

namespace {

constexpr jit::KernelId kTranspose{"transpose_fp32", "deep_gemm/kernel/scale_layout.cuh"};
constexpr jit::KernelId kPack{"pack_fp32_into_ue8m0", "deep_gemm/kernel/scale_layout.cuh"};
constexpr const char* kPackName = "pack_fp32_into_ue8m0";
constexpr u32 kPackedBits = 0xffu << 23;  // of a scale

ScaleLayoutParams params_of(std::span<const std::byte> bytes) {
    ScaleLayoutParams params;
    DG_CHECK(bytes.size() == sizeof params, internal, "{}: parameters of another kernel", kPackName);
    std::memcpy(&params, bytes.data(), sizeof params);
    return params;
}

// Groups that have the columns and the words that there are.
void check_groups(std::span<const std::byte> bytes) {
    const ScaleLayoutParams p = params_of(bytes);
    u64 columns = 0, words = 0;
    for (u32 group = 0; group < p.num_groups; ++group) {
        const i32 k = p.group_ks[group];
        DG_CHECK(k >= 0, value, "{}: group {} has k={}, expected at least 0; pass its extent along K",
                 kPackName, group, k);
        const u64 mine = ceil_div(static_cast<u32>(k), p.gran_k);
        columns += mine;
        words += ceil_div(mine, u64{kScalesOfWord});
    }
    DG_CHECK(
        p.num_groups == 0 || (columns == p.columns && words <= p.out_columns), value,
        "{}: the groups have {} scales along K in {} words, expected the {} of sf in at most the {} of out; "
        "pass the extent of each group along K, in elements",
        kPackName, columns, words, p.columns, p.out_columns);
}

void check_groups_and_scales(std::span<const std::byte> bytes) {
    check_groups(bytes);
    const ScaleLayoutParams p = params_of(bytes);
    for (u64 batch = 0; batch < p.batches; ++batch)
        for (u64 row = 0; row < p.mn; ++row)
            for (u64 column = 0; column < p.columns; ++column) {
                const float scale =
                    p.sf[batch * p.sf_stride_batch + row * p.sf_stride_row + column * p.sf_stride_column];
                DG_CHECK((std::bit_cast<u32>(scale) & ~kPackedBits) == 0, value,
                         "{}: sf has {} in row {}, column {}, expected powers of two; round scales with "
                         "ceil_to_ue8m0",
                         kPackName, scale, row, column);
            }
}

u64 batch_stride(const TensorView& t) {
    return t.rank == 3 && t.shape[0] > 1 ? static_cast<u64>(t.strides[0]) : 0;
}

ScaleLayoutParams check(op::TensorChecks& checks, const ScaleLayoutArguments& a, Format format,
                        u32 columns_of_out) {
    const char* name = checks.operation();
    DG_CHECK(a.sf.rank == 2 || a.sf.rank == 3, value,
             "{}: sf has shape {}, expected [mn, columns] or [batches, mn, columns]; reshape it", name,
             op::shape_text(a.sf));
    const u32 row = a.sf.rank - 2, column = a.sf.rank - 1;
    const i64 mn = a.sf.shape[row];
    const bool batched = a.sf.rank == 3;
    const i64 words = a.group_ks.present() ? -1 : (a.sf.shape[column] + columns_of_out - 1) / columns_of_out;
    if (batched) {
        checks.tensor("sf", a.sf, {Format::fp32}, {-1, -1, -1});
        checks.tensor("out", a.out, {format}, {a.sf.shape[0], mn, words});
    } else {
        checks.tensor("sf", a.sf, {Format::fp32}, {-1, -1});
        checks.tensor("out", a.out, {format}, {mn, words});
    }
    DG_CHECK(mn <= 1 || a.out.strides[row] == 1, value,
             "{}: out has stride {} along mn, expected 1; allocate it MN-major", name, a.out.strides[row]);
    DG_CHECK(a.out.shape[column] <= 1 || a.out.strides[column] >= mn, value,
             "{}: columns of out are {} elements apart, expected at least {}; allocate it MN-major", name,
             a.out.strides[column], mn);
    for (const TensorView* t : {&a.sf, &a.out})
        DG_CHECK(op::address_of(*t) % 4 == 0, value,
                 "{}: {} starts at {:#x}, expected a multiple of 4; copy it", name, t == &a.sf ? "sf" : "out",
                 op::address_of(*t));
    if (a.group_ks.present()) {
        checks.tensor("group_ks", a.group_ks, {Format::int32}, {-1});
        checks.packed("group_ks", a.group_ks);
        DG_CHECK(a.gran_k >= 1, value,
                 "{}: gran_k is 0, expected at least 1; pass how many elements share a scale", name);
        DG_CHECK(!batched, value, "{}: sf has batches and groups, expected one or the other; pass a matrix",
                 name);
    }
    checks.outputs({{"out"}});
    return {.sf = static_cast<const float*>(a.sf.data),
            .out = static_cast<u32*>(a.out.data),
            .group_ks = static_cast<const i32*>(a.group_ks.data),
            .sf_stride_batch = batch_stride(a.sf),
            .sf_stride_row = op::stride_of(a.sf, row),
            .sf_stride_column = op::stride_of(a.sf, column),
            .out_stride_batch = batch_stride(a.out),
            .out_stride_column = static_cast<u64>(a.out.strides[column]),
            .batches = batched ? static_cast<u32>(a.sf.shape[0]) : 1,
            .mn = static_cast<u32>(mn),
            .columns = static_cast<u32>(a.sf.shape[column]),
            .out_columns = static_cast<u32>(a.out.shape[column]),
            .num_groups = a.group_ks.present() ? static_cast<u32>(a.group_ks.shape[0]) : 0,
            .gran_k = a.gran_k};
}

void run(const jit::KernelId& id, const ScaleLayoutArguments& a, Format format, u32 columns_of_out,
         driver::CheckInputs check_inputs) {
    op::TensorChecks checks(id.kernel.data());
    const ScaleLayoutParams params = check(checks, a, format, columns_of_out);
    const ScaleLayoutSpec spec{.rows_are_neighbours = params.sf_stride_row <= params.sf_stride_column,
                               .grouped = a.group_ks.present()};
    const u64 tiles = ceil_div(u64{params.mn}, u64{kScaleTileRows}) *
                      ceil_div(u64{params.out_columns}, u64{kScaleTileColumns / columns_of_out}) *
                      params.batches;
    DG_CHECK(tiles <= op::kMaxExtent, value,
             "{}: sf has {} tiles of 64 x 32, expected less than 2^31; pass slices", id.kernel, tiles);
    op::launch(
        checks.device(), id, spec,
        {.grid = static_cast<u32>(tiles), .threads = kScaleLayoutThreads, .check_inputs = check_inputs},
        a.stream, params, {op::reads(a.sf), op::reads(a.group_ks), op::writes(a.out)});
}

}  // namespace

void transpose_fp32(const ScaleLayoutArguments& a) {
    run(kTranspose, a, Format::fp32, 1, nullptr);
}

void pack_fp32_into_ue8m0(const ScaleLayoutArguments& a) {
    run(kPack, a, Format::int32, kScalesOfWord, a.gaps ? check_groups : check_groups_and_scales);
}

}  // namespace deep_gemm
