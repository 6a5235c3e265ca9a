// The checks of linear() on W: elements, scales and zero points of the layout's own formats, where they lie, and
// what that leaves the kernels.
#include "base/error.h"
#include "op/linear_check.h"
#include "op/tensor_check.h"

#include <algorithm>

namespace deep_gemm::op {

namespace {

// What scales of a type are, besides bytes: none for UE4M3, which no tensor type has.
Format format_of(ScaleType type) {
    switch (type) {
        case ScaleType::fp32: return Format::fp32;
        case ScaleType::fp16: return Format::fp16;
        case ScaleType::ue8m0: return Format::fp8_ue8m0;
        case ScaleType::e4m3: return Format::fp8_e4m3;
        case ScaleType::none:
        case ScaleType::ue4m3: return Format::none;
    }
    return Format::none;
}

std::string expectation(Format own, bool bytes) {
    if (own == Format::none || own == Format::int8) return "int8";
    return bytes ? fmt::format("{} (or its bytes as int8)", name_of(own)) : name_of(own);
}

// Whether the scales (and zero points) of a stage of the large-batch kernels are aligned vectors.
bool loads_whole(Quant quant, i64 k, u64 scales, u64 zeros) {
    const QuantRow row = row_of(quant);
    if (row.block_k == 0 || row.element_bits == 16) return true;
    const u32 stage_k = weight_stage_k_of(quant), count = stage_k / row.block_k;
    return static_cast<u64>(k) % stage_k == 0 && scales % (count * bytes_of(row.scale)) == 0 &&
           (!row.has_zero || zeros % count == 0);
}

}  // namespace

void check_device(const TensorView& t, const Device* device, const char* name) {
    DG_CHECK(t.device == device, value, "linear: {} is on another device than x; move it to x's device",
             name);
}

void check_packed(const TensorView& t, i64 rows, i64 columns, const char* name) {
    const bool matrix = t.rank == 2 && t.shape[0] == rows && t.shape[1] == columns;
    const bool vector =
        t.rank == 1 && t.shape[0] == (columns == 1 || rows == 0 ? (rows ? rows : columns) : -1);
    DG_CHECK(matrix || vector, value,
             "linear: {} has shape {}, expected {}; reshape it, or quantise the weights again", name,
             shape_text(t), rows ? fmt::format("[{}, {}]", rows, columns) : fmt::format("[{}]", columns));
    const bool packed = matrix ? t.shape[0] == 0 || ((columns <= 1 || t.strides[1] == 1) &&
                                                     (rows <= 1 || t.strides[0] == columns))
                               : t.shape[0] <= 1 || t.strides[0] == 1;
    DG_CHECK(packed, value,
             "linear: {} is strided, expected a packed row-major tensor; pass a contiguous copy", name);
}

GemvMatrix check_matrix(const QuantMatrix& w, const Device* device, u32 index, LinearCall& call) {
    FormFacts& form = call.form[index];
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
    // Four bits are in an order of their own, which no type of two to a byte says.
    const Format own = row.element_bits == 4 ? Format::int8 : row.element;
    DG_CHECK(data.present() && (data.format == own || data.format == Format::int8), type,
             "linear: w ({}) holds {}, expected {}; quantise it, or view what are its bytes as int8",
             row.name, name_of(data.format), expectation(own, true));
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
                                : align_up(row_bytes, kRowVectorBytes);
    const u64 unit = row.packing == Packing::blocks ? 2 : 1;
    DG_CHECK(address_of(data) % unit == 0 && matrix.row_stride % unit == 0, value,
             "linear: rows of w start at odd addresses, expected multiples of {} for {}; copy it", unit,
             row.name);
    // Blocks of 34 bytes are aligned by the kernel itself.
    const u64 places = address_of(data) | (w.n > 1 ? matrix.row_stride : 0);
    form.vectors = address_of(data) % kRowVectorBytes == 0;
    if (row.packing != Packing::blocks)
        form.vectors = form.vectors && matrix.row_stride % kRowVectorBytes == 0;
    else
        call.row_alignment = std::min(call.row_alignment, q8_row_alignment(places));
    const u64 bytes = w.n ? static_cast<u64>(w.n - 1) * matrix.row_stride + row_bytes : 0;
    call.bulk = call.bulk && has_bulk_rows(w.quant, address_of(data), address_of(data) + bytes);
    call.memory.push_back({address_of(data), bytes, false});
    const auto scale_columns = static_cast<i64>(scale_columns_of(w.quant, static_cast<u64>(w.k)));
    const auto scale_rows =
        static_cast<i64>(ceil_div(static_cast<u64>(w.n), u64{row.block_rows ? row.block_rows : 1}));
    if (scale_columns != 0) {
        const Format kind = format_of(row.scale);
        const bool bytes = bytes_of(row.scale) == 1;
        DG_CHECK(
            w.scales.present() && (w.scales.format == kind || (bytes && w.scales.format == Format::int8)),
            type, "linear: the scales of w ({}) are {}, expected {}; cast them", row.name,
            name_of(w.scales.format), expectation(kind, bytes));
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
        form.whole_scales = loads_whole(w.quant, w.k, address_of(w.scales), address_of(w.zeros));
        const u64 count = static_cast<u64>(scale_rows) * static_cast<u64>(scale_columns);
        call.memory.push_back({address_of(w.scales), count * bytes_of(row.scale), false});
    }
    DG_CHECK(
        scale_columns != 0 || !w.scales.present(), value,
        "linear: got scales beside w ({}), expected none: the layout has none apart from data; leave them "
        "out",
        row.name);
    DG_CHECK(row.has_zero || !w.zeros.present(), value,
             "linear: got zero points beside w ({}), expected none: the layout has none; leave them out",
             row.name);
    if (row.has_zero) {
        DG_CHECK(w.zeros.present() && w.zeros.format == Format::int8, type,
                 "linear: the zero points of w ({}) are {}, expected int8; view them as bytes", row.name,
                 name_of(w.zeros.format));
        check_device(w.zeros, device, "the zero points of w");
        check_packed(w.zeros, scale_rows, scale_columns, "zero points of w");
        matrix.zeros = static_cast<const u8*>(w.zeros.data);
        call.memory.push_back({address_of(w.zeros), static_cast<u64>(scale_rows * scale_columns), false});
    }
    return matrix;
}

}  // namespace deep_gemm::op
