#include "op/quantize.h"

#include "base/error.h"
#include "op/launch.h"

namespace deep_gemm {

namespace {

constexpr jit::KernelId kQuantize{"quantize", "deep_gemm/kernel/quantize.cuh"};

void check(op::TensorChecks& checks, const QuantizeArguments& a) {
    const char* name = checks.operation();
    checks.tensor("x", a.x, {Format::bf16, Format::fp32}, {-1, -1});
    const bool by_row = a.recipe == Recipe::fp8_row, fp8 = a.recipe == Recipe::fp8_128 || by_row;
    const bool gather = a.source_rows.present();
    const i64 k = a.x.shape[1], step = k_step_of(a.recipe), block = block_of(a.recipe);
    DG_CHECK(k % step == 0, value, "{}: x has {} columns, expected a multiple of {}; pad with zeros", name, k,
             step);
    checks.rows("x", a.x, 16);
    const i64 rows = gather ? a.source_rows.shape[0] : a.x.shape[0];
    checks.tensor("codes", a.codes, {fp8 ? Format::fp8_e4m3 : Format::int8}, {rows, fp8 ? k : k / 2});
    checks.rows("codes", a.codes, fp8 ? 8 : 4);
    if (by_row)
        checks.tensor("scales", a.scales, {Format::fp32}, {rows});
    else
        checks.tensor("scales", a.scales, {fp8 ? Format::fp32 : Format::int8},
                      {rows, (k + block - 1) / block});
    DG_CHECK(op::address_of(a.scales) % bytes_of(a.scales.format) == 0, value,
             "{}: scales start at {:#x}, expected a multiple of 4; pass a copy", name,
             op::address_of(a.scales));
    if (a.recipe == Recipe::nvfp4) {
        checks.tensor("global_scale", a.global_scale, {Format::fp32}, {a.given ? 1 : rows});
        checks.packed("global_scale", a.global_scale);
    } else {
        DG_CHECK(!a.global_scale.present() && !a.given, value,
                 "{}: got a global_scale, expected none for {}; leave it out", name, name_of(a.recipe));
    }
    DG_CHECK(gather == a.num_rows.present(), value,
             "{}: got one of source_rows and num_rows, expected both; pass the other too, or none", name);
    if (gather) {
        checks.tensor("source_rows", a.source_rows, {Format::int32}, {-1});
        checks.packed("source_rows", a.source_rows);
        checks.tensor("num_rows", a.num_rows, {Format::int32}, {1});
        checks.packed("num_rows", a.num_rows);
        DG_CHECK(a.divisor >= 1, value,
                 "{}: divisor is 0, expected at least 1; pass the rows of x that share a row number", name);
    }
    checks.outputs({{"codes"}, {"scales"}, {a.given ? "" : "global_scale"}});
}

}  // namespace

void quantize(const QuantizeArguments& a) {
    op::TensorChecks checks("quantize");
    const QuantizeSpec spec{
        .x = a.x.format,
        .recipe = a.recipe,
        .rule = a.rule,
        .row_amax = a.recipe == Recipe::fp8_row || (a.recipe == Recipe::nvfp4 && !a.given),
        .gather = a.source_rows.present()};
    check(checks, a);
    const char* reason = why_illegal(spec);
    DG_CHECK(!reason, value, "quantize: {}", reason);
    const QuantizeParams params{
        .x = a.x.data,
        .codes = static_cast<u8*>(a.codes.data),
        .scales = a.scales.data,
        .global_scale = static_cast<float*>(a.global_scale.data),
        .source_rows = static_cast<const i32*>(a.source_rows.data),
        .num_rows = static_cast<const i32*>(a.num_rows.data),
        .x_stride = op::stride_of(a.x, 0),
        .codes_stride = op::stride_of(a.codes, 0),
        .scales_stride_row = op::stride_of(a.scales, 0),
        .scales_stride_block = a.recipe == Recipe::fp8_row ? 0 : op::stride_of(a.scales, 1),
        .rows = static_cast<u32>(a.codes.shape[0]),
        .k = static_cast<u32>(a.x.shape[1]),
        .divisor = a.divisor,
    };
    if (params.rows == 0 || params.k == 0) return;
    const u64 chunks = static_cast<u64>(params.rows) * (align_up(params.k, kQuantizeRow) / kQuantizeChunk);
    const u32 grid = spec.row_amax ? params.rows : static_cast<u32>(ceil_div(chunks, u64{kQuantizeThreads}));
    auto global = op::reads(a.global_scale);
    global.writable = spec.row_amax && a.recipe == Recipe::nvfp4;
    op::launch(checks.device(), kQuantize, spec, {grid, kQuantizeThreads}, a.stream, params,
               {op::reads(a.x), op::writes(a.codes), op::writes(a.scales), global, op::reads(a.source_rows),
                op::reads(a.num_rows)});
}

}  // namespace deep_gemm
