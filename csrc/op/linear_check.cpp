// The checks of linear(). Each failure is one sentence of got, expected, remedy; nothing is launched.
#include "op/linear_check.h"

#include "base/error.h"
#include "op/tensor_check.h"

#include <algorithm>

namespace deep_gemm::op {

namespace {

bool is_bytes(Format format) {
    return bits_of(format) == 8;
}

// What x is, and what it must become.
void classify_x(const LinearArguments& args, LinearCall& call) {
    const bool q8_weights = call.w == Quant::q8_0 || call.w == Quant::q8_0_split;
    const Format format = args.x.format;
    if (!args.x_scale.present()) {
        if (q8_weights) {
            DG_CHECK(format == Format::bf16 || format == Format::fp16 || format == Format::fp32, type,
                     "linear: x is {} without scales, expected bf16, fp16 or fp32, or int8 with scales "
                     "(quantize_activations makes them); cast it",
                     name_of(format));
            call.x = Activation::q8;
            call.quantize_x = format;
            return;
        }
        const Format expected = call.w == Quant::fp16 ? Format::fp16 : Format::bf16;
        DG_CHECK(format == expected, type, "linear: x is {}, expected {} beside {} weights; cast it",
                 name_of(format), name_of(expected), name_of(call.w));
        call.x = expected == Format::fp16 ? Activation::fp16 : Activation::bf16;
        return;
    }
    const bool bytes = is_bytes(format);
    DG_CHECK(bytes && args.x_scale.format == Format::fp32, type,
             "linear: x is {} with scales of {}, expected fp8_e4m3 or int8 with scales of fp32; "
             "quantize_activations makes both",
             name_of(format), name_of(args.x_scale.format));
    if (q8_weights) {
        DG_CHECK(format == Format::int8, type,
                 "linear: x is {}, expected int8 beside {} weights; pass x in bf16 without scales, or what "
                 "quantize_activations makes",
                 name_of(format), name_of(call.w));
        call.x = Activation::q8;
        return;
    }
    if (format == Format::int8 && call.w == Quant::int8_row) {
        call.x = Activation::int8_row;
        return;
    }
    DG_CHECK(
        format == Format::fp8_e4m3, type,
        "linear: x is {}, expected fp8_e4m3 beside {} weights; pass x in bf16 without scales, or cast it",
        name_of(format), name_of(call.w));
    const auto columns = static_cast<u64>(args.x_scale.rank ? args.x_scale.shape[args.x_scale.rank - 1] : 0);
    const u64 k = call.params.k;
    // Where both fit (k of 32 at most), the scale is the same.
    const bool coarse = columns == ceil_div(k, u64{128}) && !(k <= 32 && call.w == Quant::fp8_32);
    DG_CHECK(coarse || columns == ceil_div(k, u64{32}), value,
             "linear: x_scale has shape {}, expected [rows of x, {}] (one for 128 elements) or [.., {}] (for "
             "32); quantize_activations makes them",
             shape_text(args.x_scale), ceil_div(k, u64{128}), ceil_div(k, u64{32}));
    call.x = coarse ? Activation::fp8_128 : Activation::fp8_32;
}

void check_x(const LinearArguments& args, LinearCall& call) {
    const RowsView x = rows_of(args.x, "x");
    const u32 k = call.params.k;
    const u32 columns =
        call.x == Activation::q8 && call.quantize_x == Format::none ? align_up(k, kQ8Block) : k;
    DG_CHECK(x.k == columns, value, "linear: x has {} columns, expected {}{}", x.k, columns,
             columns == k ? " as w has; pass x of the weights' k" : ": whole blocks of 32, zeros beyond k");
    call.params.m = x.m;
    call.params.x = reinterpret_cast<const u8*>(x.address);
    // The distance of a single row to the next means nothing, and TMA wants a multiple of 16.
    call.params.x_stride = x.m > 1 ? x.stride_bytes : align_up(x.stride_bytes, kRowVectorBytes);
    const u32 element_bytes = bytes_of(args.x.format);
    call.memory.push_back(range_of(x, element_bytes, false));
    if (call.quantize_x != Format::none) return;
    const bool vectors = x.address % kRowVectorBytes == 0 && call.params.x_stride % kRowVectorBytes == 0;
    if (call.x == Activation::q8)
        DG_CHECK(vectors, value,
                 "linear: rows of x start at {:#x} and are {} bytes apart, expected multiples of 16; use "
                 "quantize_activations",
                 x.address, x.stride_bytes);
    call.x_vectors = vectors;
    call.rows_apart = x.m <= 1 || x.stride_bytes >= u64{x.k} * element_bytes;
    const u32 block = call.x == Activation::int8_row ? k : block_k_of(call.x);
    if (block != 0) {
        check_device(args.x_scale, args.x.device, "x_scale");
        RowsView scale = rows_of(args.x_scale, "x_scale");
        DG_CHECK(scale.m == x.m && scale.k == ceil_div(k, block), value,
                 "linear: x_scale has shape {}, expected [{}, {}]: one for {} elements of a row",
                 shape_text(args.x_scale), x.m, ceil_div(k, block), block);
        DG_CHECK(scale.address % 4 == 0, value,
                 "linear: x_scale starts at {:#x}, expected a multiple of 4; pass a copy", scale.address);
        call.params.x_scale = reinterpret_cast<const float*>(scale.address);
        call.params.x_scale_stride = scale.stride_bytes / 4;
        call.x_plain = call.params.x_scale_stride <= kMaxExtent;
        call.memory.push_back(range_of(scale, 4, false));
    }
}

void check_output(const LinearArguments& args, size_t index, LinearCall& call) {
    GemvMatrix& matrix = call.params.w[index];
    const auto place = [&](const TensorView& t, const char* name, bool writable) {
        DG_CHECK(t.format == call.y, type, "linear: {} is {}, expected {} as y; cast it", name,
                 name_of(t.format), name_of(call.y));
        check_device(t, args.x.device, name);
        const RowsView rows = rows_of(t, name);
        DG_CHECK(rows.m == call.params.m && rows.k == matrix.n, value,
                 "linear: {} has shape {}, expected [{}, {}]; allocate it with a row for each of x and a "
                 "column for each row of w",
                 name, shape_text(t), call.params.m, matrix.n);
        DG_CHECK(!writable || rows.m <= 1 || rows.stride_bytes >= u64{rows.k} * bytes_of(call.y), value,
                 "linear: rows of {} overlap, expected rows of their own; allocate it contiguous", name);
        DG_CHECK(rows.address % bytes_of(call.y) == 0, value,
                 "linear: {} starts at {:#x}, expected a multiple of {}; pass a copy", name, rows.address,
                 bytes_of(call.y));
        call.memory.push_back(range_of(rows, bytes_of(call.y), writable));
        return rows;
    };
    const RowsView y = place(args.y[index], "y", true);
    matrix.y = reinterpret_cast<void*>(y.address);
    matrix.y_stride = y.stride_bytes / bytes_of(call.y);
    if (index < args.bias.size() && args.bias[index].present()) {
        const TensorView& bias = args.bias[index];
        DG_CHECK(bias.format == call.y, type, "linear: bias is {}, expected {} as y; cast it",
                 name_of(bias.format), name_of(call.y));
        check_device(bias, args.x.device, "bias");
        check_packed(bias, 0, matrix.n, "bias");
        matrix.bias = bias.data;
        call.memory.push_back({address_of(bias), u64{matrix.n} * bytes_of(call.y), false});
    }
    if (index < args.residual.size() && args.residual[index].present()) {
        const RowsView residual = place(args.residual[index], "residual", false);
        matrix.residual = reinterpret_cast<const void*>(residual.address);
        matrix.residual_stride = residual.stride_bytes / bytes_of(call.y);
    }
    call.form[index].plain_y = call.x_plain && call.y != Format::fp16 && !matrix.bias &&
                               matrix.y_stride <= kMaxExtent &&
                               (!matrix.residual || matrix.residual_stride == matrix.y_stride);
}

}  // namespace

RowsView rows_of(const TensorView& t, const char* name) {
    DG_CHECK(t.present(), type, "linear: {} is missing, expected a tensor; pass it", name);
    DG_CHECK(t.rank == 1 || t.rank == 2, value,
             "linear: {} has shape {}, expected [m, columns] or [columns]; reshape it", name, shape_text(t));
    const u32 last = t.rank - 1;
    const i64 m = t.rank == 2 ? t.shape[0] : 1, columns = t.shape[last];
    DG_CHECK(m <= kMaxExtent && columns <= kMaxExtent, value,
             "linear: {} has shape {}, expected extents below 2^31; pass slices", name, shape_text(t));
    DG_CHECK(m == 0 || columns <= 1 || t.strides[last] == 1, value,
             "linear: {} has stride {} along a row, expected 1; pass a contiguous copy", name,
             t.strides[last]);
    const i64 stride = t.rank == 2 && m > 1 ? t.strides[0] : columns;
    DG_CHECK(stride >= 0, value,
             "linear: {} has stride {} from row to row, expected none below 0; pass a contiguous copy", name,
             stride);
    return {reinterpret_cast<u64>(t.data), static_cast<u32>(m), static_cast<u32>(columns),
            static_cast<u64>(stride) * bytes_of(t.format)};
}

driver::MemoryRange range_of(const RowsView& rows, u32 element_bytes, bool writable) {
    const u64 bytes = rows.m ? (rows.m - 1) * rows.stride_bytes + u64{rows.k} * element_bytes : 0;
    return {rows.address, bytes, writable};
}

LinearCall check_linear(const LinearArguments& args) {
    const bool swiglu = args.epilogue == GemvEpilogue::swiglu;
    DG_CHECK(!args.w.empty() && args.w.size() <= kMaxGemvMatrices, value,
             "linear: got {} matrices, expected 1 to {}; call it again for the others", args.w.size(),
             kMaxGemvMatrices);
    DG_CHECK(args.swiglu_limit >= 0, value,
             "linear: limit is {}, expected 0 (none) or a positive number; pass one of them",
             args.swiglu_limit);
    DG_CHECK(
        !swiglu || args.w.size() == 2, value,
        "linear: got {} matrices, expected 2 for swiglu (gate and up); pass both, or leave the epilogue out",
        args.w.size());
    const size_t outputs = swiglu ? 1 : args.w.size();
    DG_CHECK(args.y.size() == outputs, value,
             "linear: got {} outputs, expected {}; pass one for each matrix, or one for swiglu",
             args.y.size(), outputs);
    DG_CHECK(args.bias.size() <= outputs && args.residual.size() <= outputs, value,
             "linear: got {} biases and {} residuals, expected one for each of {} outputs at most; leave the "
             "others out",
             args.bias.size(), args.residual.size(), outputs);
    DG_CHECK(args.x.present(), type, "linear: x is missing, expected a tensor; pass it");
    LinearCall call{.w = args.w[0].quant,
                    .y = args.y[0].format,
                    .epilogue = args.epilogue,
                    .strict = args.strict,
                    .invariant = args.invariant,
                    .spec = args.spec,
                    .tuning = args.tuning,
                    .device = args.x.device,
                    .stream = static_cast<driver::Stream>(args.stream),
                    .n = {},
                    .memory = {}};
    call.params.num_matrices = static_cast<u32>(args.w.size());
    call.params.swiglu_limit = args.swiglu_limit;
    DG_CHECK(call.y == Format::bf16 || call.y == Format::fp16 || call.y == Format::fp32, type,
             "linear: y is {}, expected bf16, fp16 or fp32; allocate it as one of them", name_of(call.y));
    for (size_t i = 0; i < args.w.size(); ++i) {
        const QuantMatrix& w = args.w[i];
        DG_CHECK(w.quant == call.w && w.k == args.w[0].k, value,
                 "linear: matrix {} is {} with k = {}, expected {} with k = {} as the first; multiply it in "
                 "a call of its own",
                 i, name_of(w.quant), w.k, name_of(call.w), args.w[0].k);
        call.params.w[i] = check_matrix(w, args.x.device, static_cast<u32>(i), call);
        call.n.push_back(call.params.w[i].n);
    }
    DG_CHECK(!swiglu || call.n[0] == call.n[1], value,
             "linear: swiglu got {} and {} rows, expected as many of both; pass gate and up of one layer",
             call.n[0], call.n[1]);
    call.params.k = static_cast<u32>(args.w[0].k);
    classify_x(args, call);
    const char* reason = why_no_product(call.w, call.x);
    DG_CHECK(!reason, value, "linear: got {} weights and {} activations: {}", name_of(call.w),
             name_of(call.x), reason);
    check_x(args, call);
    for (size_t i = 0; i < outputs; ++i) check_output(args, i, call);
    u64 rows = 0;
    for (const u32 n : call.n) rows += n;
    call.empty = call.params.m == 0 || rows == 0;
    if (!call.empty) check_apart(args, call);
    return call;
}

}  // namespace deep_gemm::op
