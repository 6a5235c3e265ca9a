// The checks of linear(). Each failure is one sentence of got, expected, remedy; nothing is launched.
#include "op/linear_check.h"

#include "base/error.h"
#include "op/tensor_check.h"

#include <algorithm>

namespace deep_gemm::op {

namespace {

constexpr u64 kVectorBytes = 16;

void check_device(const TensorView& t, const Device* device, const char* name) {
    DG_CHECK(t.device == device, value, "linear: {} is on another device than x; move it to x's device",
             name);
}

bool is_bytes(Format format) {
    return bits_of(format) == 8;
}

// A packed row-major tensor of `rows` x `columns`, or of `columns` where rows is 0.
void check_packed(const TensorView& t, i64 rows, i64 columns, const char* name) {
    const bool matrix = t.rank == 2 && t.shape[0] == rows && t.shape[1] == columns;
    const bool vector =
        t.rank == 1 && t.shape[0] == (columns == 1 || rows == 0 ? (rows ? rows : columns) : -1);
    DG_CHECK(matrix || vector, value,
             "linear: {} has shape {}, expected {}; reshape it, or quantise the weights again", name,
             shape_text(t), rows ? fmt::format("[{}, {}]", rows, columns) : fmt::format("[{}]", columns));
    const bool packed = matrix ? (columns <= 1 || t.strides[1] == 1) && (rows <= 1 || t.strides[0] == columns)
                               : t.shape[0] <= 1 || t.strides[0] == 1;
    DG_CHECK(packed, value,
             "linear: {} is strided, expected a packed row-major tensor; pass a contiguous copy", name);
}

const char* scale_expectation(ScaleType type) {
    return type == ScaleType::fp32 ? "fp32" : type == ScaleType::fp16 ? "fp16" : "bytes (int8)";
}

bool scale_format_fits(ScaleType type, Format format) {
    if (type == ScaleType::fp32) return format == Format::fp32;
    if (type == ScaleType::fp16) return format == Format::fp16;
    return is_bytes(format);
}

// Whether the scales (and zero points) of a stage of the large-batch kernels are aligned vectors.
bool loads_whole(Quant quant, i64 k, u64 scales, u64 zeros) {
    const QuantRow row = row_of(quant);
    if (row.block_k == 0 || row.element_bits == 16) return true;
    const u32 stage_k = weight_stage_k_of(quant), count = stage_k / row.block_k;
    return static_cast<u64>(k) % stage_k == 0 && scales % (count * bytes_of(row.scale)) == 0 &&
           (!row.has_zero || zeros % count == 0);
}

GemvMatrix check_matrix(const QuantMatrix& w, const Device* device, LinearCall& call) {
    const QuantRow row = row_of(w.quant);
    DG_CHECK(w.n >= 0 && w.n <= kMaxExtent && w.k >= 1 && w.k <= kMaxExtent, value,
             "linear: w is [{}, {}], expected at least one column and extents below 2^31; pass slices of the "
             "weights",
             w.n, w.k);
    GemvMatrix matrix{};
    matrix.n = static_cast<u32>(w.n);
    matrix.global_scale = w.global_scale;
    DG_CHECK(row.has_global || w.global_scale == 1, value,
             "linear: the global scale of w is {}, expected 1: {} has none; scale y, or the scales of w",
             w.global_scale, row.name);
    const u64 row_bytes = row_bytes_of(w.quant, static_cast<u64>(w.k));
    const TensorView& data = w.data;
    const bool native = data.format == row.element && row.element_bits == bits_of(data.format);
    DG_CHECK(data.present() && (native || is_bytes(data.format)), type,
             "linear: w ({}) holds {}, expected {} or bytes (int8); view it as one of them", row.name,
             name_of(data.format), name_of(row.element));
    check_device(data, device, "w");
    const i64 columns = static_cast<i64>(row_bytes / bytes_of(data.format));
    DG_CHECK(data.rank == 2 && data.shape[0] == w.n && data.shape[1] == columns, value,
             "linear: the data of w ({} of {} x {}) has shape {}, expected [{}, {}]; quantize() makes data "
             "of this layout",
             row.name, w.n, w.k, shape_text(data), w.n, columns);
    DG_CHECK(w.n == 0 || columns <= 1 || data.strides[1] == 1, value,
             "linear: the data of w has stride {} along a row, expected 1; pass a contiguous copy",
             data.strides[1]);
    DG_CHECK(w.n <= 1 || data.strides[0] >= columns, value,
             "linear: rows of w are {} elements apart but {} long, expected rows that do not overlap; pass a "
             "contiguous copy",
             data.strides[0], columns);
    matrix.data = static_cast<const u8*>(data.data);
    matrix.row_stride = w.n > 1 ? static_cast<u64>(data.strides[0]) * bytes_of(data.format)
                                : align_up(row_bytes, kVectorBytes);
    const u64 unit = row.packing == Packing::blocks ? 2 : 1;
    DG_CHECK(address_of(data) % unit == 0 && matrix.row_stride % unit == 0, value,
             "linear: rows of w start at odd addresses, expected multiples of {} for {}; copy it", unit,
             row.name);
    call.aligned = call.aligned && address_of(data) % kVectorBytes == 0;
    // Blocks of 34 bytes are aligned by the kernel itself.
    const u64 places = address_of(data) | (w.n > 1 ? matrix.row_stride : 0);
    if (row.packing != Packing::blocks)
        call.aligned = call.aligned && matrix.row_stride % kVectorBytes == 0;
    else
        call.row_alignment = std::min(call.row_alignment, q8_row_alignment(places));
    call.bulk = call.bulk && has_bulk_rows(w.quant, static_cast<u64>(w.k), places);
    call.memory.push_back({address_of(data), w.n ? (w.n - 1) * matrix.row_stride + row_bytes : 0, false});
    const auto scale_columns = static_cast<i64>(scale_columns_of(w.quant, static_cast<u64>(w.k)));
    const auto scale_rows =
        static_cast<i64>(ceil_div(static_cast<u64>(w.n), u64{row.block_rows ? row.block_rows : 1}));
    if (scale_columns != 0) {
        DG_CHECK(w.scales.present() && scale_format_fits(row.scale, w.scales.format), type,
                 "linear: the scales of w ({}) are {}, expected {}; cast them", row.name,
                 name_of(w.scales.format), scale_expectation(row.scale));
        check_device(w.scales, device, "the scales of w");
        check_packed(w.scales, scale_rows, scale_columns, "scales of w");
        DG_CHECK(address_of(w.scales) % bytes_of(row.scale) == 0, value,
                 "linear: scales of w start at {:#x}, expected a multiple of {}; pass a copy",
                 address_of(w.scales), bytes_of(row.scale));
        call.scale_pairs =
            call.scale_pairs && (row.scale != ScaleType::e4m3 || address_of(w.scales) % 2 == 0);
        matrix.scales = w.scales.data;
        call.scale_alignment = std::min(
            call.scale_alignment,
            scale_alignment_of(w.quant, static_cast<u64>(w.k), address_of(w.scales), address_of(w.zeros)));
        call.whole_scales =
            call.whole_scales && loads_whole(w.quant, w.k, address_of(w.scales), address_of(w.zeros));
        const u64 count = static_cast<u64>(scale_rows) * static_cast<u64>(scale_columns);
        call.memory.push_back({address_of(w.scales), count * bytes_of(row.scale), false});
    }
    if (row.has_zero) {
        DG_CHECK(w.zeros.present() && is_bytes(w.zeros.format), type,
                 "linear: the zero points of w ({}) are {}, expected bytes (int8); view them as bytes",
                 row.name, name_of(w.zeros.format));
        check_device(w.zeros, device, "the zero points of w");
        check_packed(w.zeros, scale_rows, scale_columns, "zero points of w");
        matrix.zeros = static_cast<const u8*>(w.zeros.data);
        call.memory.push_back({address_of(w.zeros), static_cast<u64>(scale_rows * scale_columns), false});
    }
    return matrix;
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
    call.params.x_stride = x.m > 1 ? x.stride_bytes : align_up(x.stride_bytes, kVectorBytes);
    const u32 element_bytes = bytes_of(args.x.format);
    call.memory.push_back(range_of(x, element_bytes, false));
    if (call.quantize_x != Format::none) return;
    const bool vectors = x.address % kVectorBytes == 0 && call.params.x_stride % kVectorBytes == 0;
    if (call.x == Activation::q8)
        DG_CHECK(vectors, value,
                 "linear: rows of x start at {:#x} and are {} bytes apart, expected multiples of 16; use "
                 "quantize_activations",
                 x.address, x.stride_bytes);
    call.aligned = call.aligned && vectors;
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
                    .aligned = true,
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
        call.params.w[i] = check_matrix(w, args.x.device, call);
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
