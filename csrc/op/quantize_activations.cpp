// Activations become narrow elements with a scale for each block of a row: checks and launch.
#include "op/quantize_activations.h"

#include "base/error.h"
#include "op/kernel_table.h"

#include <deep_gemm/spec/gemv_quantize.h>

namespace deep_gemm {

namespace op {

namespace {

// Of the narrow elements; those of Q8_0 fill whole blocks.
u32 columns_of(const RowsView& x, Activation to) {
    return to == Activation::q8 ? align_up(x.k, kQ8Block) : x.k;
}

}  // namespace

bool dependent_launch(const Device& device) {
    constexpr u32 kFirst = 9;
    return device.properties().compute_major >= kFirst;
}

driver::LaunchConfig launch_config(const Device& device, driver::Dim3 grid, u32 threads, u32 smem,
                                   driver::Stream stream) {
    return {.grid = grid,
            .cluster = {1, 1, 1},
            .block = {threads, 1, 1},
            .dynamic_smem_bytes = smem,
            .stream = stream,
            .programmatic_launch = settings().pdl && dependent_launch(device)};
}

void launch_quantize(Device& device, const RowsView& x, Format format, Activation to, const Quantized& out,
                     driver::Stream stream) {
    const GemvQuantizeSpec spec{.x = format, .to = to, .dependent_launch = dependent_launch(device)};
    const u32 blocks = ceil_div(x.k, block_k_of(to)), columns = columns_of(x, to);
    GemvQuantizeParams params{.x = reinterpret_cast<const u8*>(x.address),
                              .values = reinterpret_cast<u8*>(out.values),
                              .scales = reinterpret_cast<float*>(out.scales),
                              .x_stride = x.stride_bytes,
                              .values_stride = out.values_stride,
                              .scales_stride = out.scales_stride,
                              .m = x.m,
                              .k = x.k};
    const driver::MemoryRange memory[] = {
        range_of(x, bytes_of(format), false),
        range_of({out.values, x.m, columns, out.values_stride}, 1, true),
        range_of({out.scales, x.m, blocks, out.scales_stride * 4}, 4, true)};
    const auto grid = static_cast<u32>(ceil_div(u64{x.m} * blocks, u64{kGemvQuantizeThreads / 32}));
    const driver::Kernel& kernel =
        kernel_for<GemvQuantizeParams>(device, {"gemv_quantize", "deep_gemm/kernel/gemv_quantize.cuh"}, spec);
    device.launch(kernel, launch_config(device, {grid, 1, 1}, kGemvQuantizeThreads, 0, stream),
                  std::as_bytes(std::span(&params, 1)), memory);
}

}  // namespace op

void quantize_activations(const TensorView& x, Activation to, const TensorView& values,
                          const TensorView& scales, void* stream) {
    const op::RowsView rows = op::rows_of(x, "x"), out = op::rows_of(values, "values"),
                       out_scales = op::rows_of(scales, "scales");
    const u32 block = block_k_of(to);
    DG_CHECK(block != 0, value,
             "quantize_activations: got {}, expected q8, fp8_128 or fp8_32; bf16 and fp16 activations are "
             "passed as they are, those of int8_row are quantised as weights of it are",
             name_of(to));
    const bool known = x.format == Format::bf16 || x.format == Format::fp16 || x.format == Format::fp32;
    DG_CHECK(known, type, "quantize_activations: x is {}, expected bf16, fp16 or fp32; cast it",
             name_of(x.format));
    const u32 columns = op::columns_of(rows, to);
    const Format element = element_of(to);
    DG_CHECK((values.format == element || values.format == Format::int8) && scales.format == Format::fp32,
             type,
             "quantize_activations: values are {} and scales {}, expected {} and fp32; allocate them so",
             name_of(values.format), name_of(scales.format),
             element == Format::int8 ? "int8" : "fp8_e4m3 (or int8)");
    DG_CHECK(out.m == rows.m && out.k == columns && out_scales.m == rows.m &&
                 out_scales.k == ceil_div(rows.k, block),
             value,
             "quantize_activations: got values [{}, {}] and scales [{}, {}], expected [{}, {}] and [{}, {}]; "
             "allocate them so",
             out.m, out.k, out_scales.m, out_scales.k, rows.m, columns, rows.m, ceil_div(rows.k, block));
    DG_CHECK(values.device == x.device && scales.device == x.device, value,
             "quantize_activations: values and scales are on another device than x; move them");
    DG_CHECK(out_scales.address % 4 == 0, value,
             "quantize_activations: scales start at {:#x}, expected a multiple of 4; pass a copy",
             out_scales.address);
    DG_CHECK(
        rows.m <= 1 || (out.stride_bytes >= columns && out_scales.stride_bytes >= u64{out_scales.k} * 4),
        value,
        "quantize_activations: rows of values are {} and of scales {} bytes apart, expected at least {} and "
        "{}, so that they do not overlap; pass packed tensors",
        out.stride_bytes, out_scales.stride_bytes, columns, u64{out_scales.k} * 4);
    if (rows.m == 0 || rows.k == 0) return;
    const u32 width = bytes_of(x.format);
    DG_CHECK(
        !op::share_bytes(rows, width, out, 1) && !op::share_bytes(rows, width, out_scales, 4) &&
            !op::share_bytes(out, 1, out_scales, 4),
        value,
        "quantize_activations: x, values and scales share memory; expected tensors of their own: pass others");
    op::launch_quantize(*x.device, rows, x.format, to,
                        {out.address, out_scales.address, out.stride_bytes, out_scales.stride_bytes / 4},
                        static_cast<driver::Stream>(stream));
}

}  // namespace deep_gemm
