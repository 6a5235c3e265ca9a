// The small-batch family for Python: linear, quantize_activations, the table of layouts, dispatch counters.
// deep_gemm/linear_ops.py puts the user's interface on top.
#include "op/gemv_kernel.h"
#include "op/linear.h"
#include "python/casters.h"
#include "python/quant_names.h"
#include "python/tensor.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <array>
#include <span>

namespace deep_gemm::python {

namespace {

TensorView read_optional(TensorReader& reader, const py::handle& object, const char* name) {
    return object.is_none() ? TensorView{} : reader.read(object.ptr(), name);
}

std::vector<TensorView> read_list(TensorReader& reader, const py::sequence& objects, const char* name,
                                  bool writable) {
    std::vector<TensorView> views;
    for (const py::handle object : objects)
        views.push_back(object.is_none() ? TensorView{} : reader.read(object.ptr(), name, writable));
    return views;
}

void* stream_of(const TensorReader& reader, const std::optional<u64>& stream) {
    return stream ? reinterpret_cast<void*>(*stream) : reader.current_stream();
}

// A matrix is (quant, n, k, data, scales or None, zeros or None, global scale).
QuantMatrix read_matrix(TensorReader& reader, const py::handle& object) {
    constexpr size_t kFields = 7;
    DG_CHECK(py::isinstance<py::tuple>(object), type,
             "linear: a matrix is a {}, expected a tuple of {} fields; pass the parts of a QuantizedMatrix",
             Py_TYPE(object.ptr())->tp_name, kFields);
    const auto matrix = py::reinterpret_borrow<py::tuple>(object);
    DG_CHECK(matrix.size() == kFields, type,
             "linear: a matrix has {} fields, expected {}; pass the parts of a QuantizedMatrix",
             matrix.size(), kFields);
    return {.quant = quant_of(matrix[0].cast<std::string>()),
            .n = matrix[1].cast<i64>(),
            .k = matrix[2].cast<i64>(),
            .data = reader.read(py::object(matrix[3]).ptr(), "w"),
            .scales = read_optional(reader, py::object(matrix[4]), "scales of w"),
            .zeros = read_optional(reader, py::object(matrix[5]), "zero points of w"),
            .global_scale = matrix[6].cast<float>()};
}

void run_linear(const py::object& x, const py::object& x_scale, const py::sequence& matrices,
                const py::sequence& y, const py::sequence& bias, const py::sequence& residual, bool swiglu,
                float swiglu_limit, bool strict, bool invariant, const std::optional<WeightGemmSpec>& spec,
                const py::object& device, std::optional<u64> stream, const std::array<u32, 5>& tuning) {
    TensorReader reader(device.is_none() ? nullptr : device.ptr());
    std::vector<QuantMatrix> w;
    LinearArguments arguments;
    arguments.x = reader.read(x.ptr(), "x");
    arguments.x_scale = read_optional(reader, x_scale, "x_scale");
    for (const py::handle matrix : matrices) w.push_back(read_matrix(reader, matrix));
    const std::vector<TensorView> outputs = read_list(reader, y, "y", true),
                                  biases = read_list(reader, bias, "bias", false),
                                  residuals = read_list(reader, residual, "residual", false);
    arguments.w = w;
    arguments.y = outputs;
    arguments.bias = biases;
    arguments.residual = residuals;
    arguments.epilogue = swiglu ? GemvEpilogue::swiglu : GemvEpilogue::none;
    arguments.swiglu_limit = swiglu_limit;
    arguments.strict = strict;
    arguments.invariant = invariant;
    arguments.spec = spec ? &*spec : nullptr;
    arguments.tuning = {.row_tiles = tuning[0],
                        .stages = tuning[1],
                        .groups = tuning[2],
                        .grid_x = tuning[3],
                        .form = tuning[4]};
    arguments.stream = stream_of(reader, stream);
    const py::gil_scoped_release no_gil;
    linear(arguments);
}

void run_quantize(const py::object& x, const std::string& to, const py::object& values,
                  const py::object& scales, const py::object& device, std::optional<u64> stream) {
    TensorReader reader(device.is_none() ? nullptr : device.ptr());
    const TensorView source = reader.read(x.ptr(), "x"), narrow = reader.read(values.ptr(), "values", true),
                     factors = reader.read(scales.ptr(), "scales", true);
    void* const where = stream_of(reader, stream);
    const py::gil_scoped_release no_gil;
    quantize_activations(source, activation_of(to), narrow, factors, where);
}

const char* name_of_packing(Packing packing) {
    switch (packing) {
        case Packing::linear: return "linear";
        case Packing::blocks: return "blocks";
        case Packing::fragments: return "fragments";
        case Packing::interleaved: return "interleaved";
    }
    return "?";
}

py::dict quant_formats() {
    py::dict formats;
    for (u32 i = 0; i < kNumQuants; ++i) {
        const QuantRow row = row_of(static_cast<Quant>(i));
        py::dict entry;
        entry["element"] = name_of(row.element);
        entry["element_bits"] = row.element_bits;
        entry["block_rows"] = row.block_rows;
        entry["block_k"] = row.block_k;
        entry["scale"] = name_of(row.scale);
        entry["has_zero"] = row.has_zero;
        entry["has_global"] = row.has_global;
        entry["packing"] = name_of_packing(row.packing);
        formats[row.name] = entry;
    }
    return formats;
}

py::list counts() {
    py::list rows;
    for (const DispatchCount& count : dispatch_counts()) {
        py::dict row;
        row["w"] = name_of(count.w);
        row["x"] = name_of(count.x);
        row["tokens"] = count.tokens;
        row["strict"] = count.strict;
        row["form"] = count.large ? "large" : "small";
        row["launches"] = count.launches;
        rows.append(row);
    }
    return rows;
}

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Codes = py::array_t<u8, py::array::c_style | py::array::forcecast>;

py::array bytes_array(const std::vector<u8>& bytes) {
    return py::array_t<u8>(static_cast<py::ssize_t>(bytes.size()), bytes.data());
}

// (data, scales, zeros, global scale), bytes in one dimension.
py::tuple quantize_host(const Floats& w, const std::string& format, bool nearest_exponent) {
    DG_CHECK(w.ndim() == 2, value, "quantize_weights: got {} dimensions, expected 2; reshape it", w.ndim());
    const std::span values(w.data(), static_cast<size_t>(w.size()));
    HostMatrix made;
    {
        const py::gil_scoped_release no_gil;
        made = quantize_weights(values, w.shape(0), w.shape(1), quant_of(format), nearest_exponent);
    }
    return py::make_tuple(bytes_array(made.data), bytes_array(made.scales), bytes_array(made.zeros),
                          made.global_scale);
}

py::array dequantize_host(const std::string& format, i64 n, i64 k, const Codes& data, const Codes& scales,
                          const Codes& zeros, float global_scale) {
    const auto bytes = [](const Codes& codes) {
        return std::vector<u8>(codes.data(), codes.data() + codes.size());
    };
    const std::vector<float> values = dequantize_weights({.quant = quant_of(format),
                                                          .n = n,
                                                          .k = k,
                                                          .data = bytes(data),
                                                          .scales = bytes(scales),
                                                          .zeros = bytes(zeros),
                                                          .global_scale = global_scale});
    return py::array_t<float>({static_cast<py::ssize_t>(n), static_cast<py::ssize_t>(k)}, values.data());
}

}  // namespace

void bind_linear(py::module_& module) {
    module.def("linear", &run_linear, py::arg("x"), py::arg("x_scale").none(true), py::arg("matrices"),
               py::arg("y"), py::arg("bias"), py::arg("residual"), py::arg("swiglu"), py::arg("swiglu_limit"),
               py::arg("strict"), py::arg("invariant"), py::arg("spec").none(true),
               py::arg("device").none(true), py::arg("stream").none(true),
               py::arg("tuning") = std::array<u32, 5>{},
               "y = x W^T of one to four matrices (quant, n, k, data, scales, zeros, global scale); see "
               "deep_gemm.linear.");
    module.def("quantize_activations", &run_quantize, py::arg("x"), py::arg("to"), py::arg("values"),
               py::arg("scales"), py::arg("device").none(true), py::arg("stream").none(true),
               "x [m, k] into values and fp32 scales: 'q8', 'fp8_128' or 'fp8_32'.");
    module.def("quant_formats", &quant_formats, "The rows of spec/quant.h by name.");
    module.def("quantize_weights", &quantize_host, py::arg("w"), py::arg("format"),
               py::arg("nearest_exponent") = false,
               "The bytes of data, scales and zero points, and the global scale, of W [n, k]: C++'s twin of "
               "deep_gemm.quantize.");
    module.def("dequantize_weights", &dequantize_host, py::arg("format"), py::arg("n"), py::arg("k"),
               py::arg("data"), py::arg("scales"), py::arg("zeros"), py::arg("global_scale"),
               "fp32 [n, k] of such bytes.");
    module.def(
        "pack_codes",
        [](const Codes& nibbles, i64 n, i64 k, const std::string& format) {
            return bytes_array(
                pack_codes({nibbles.data(), static_cast<size_t>(nibbles.size())}, n, k, quant_of(format)));
        },
        py::arg("nibbles"), py::arg("n"), py::arg("k"), py::arg("format"),
        "The data of 4-bit codes [n, k / 2], the first of two in the low nibble.");
    module.def("dispatch_counts", &counts,
               "Launches of linear()'s kernels by this process: rows of w, x, tokens (of a block), strict, "
               "form (small or large), launches.");
    module.def("reset_dispatch_counts", &reset_dispatch_counts, "Sets all of them to 0.");
    module.def(
        "row_bytes", [](const std::string& quant, u64 k) { return row_bytes_of(quant_of(quant), k); },
        py::arg("quant"), py::arg("k"), "Bytes of a row of k elements.");
    module.def(
        "scale_columns", [](const std::string& quant, u64 k) { return scale_columns_of(quant_of(quant), k); },
        py::arg("quant"), py::arg("k"), "Scales along a row of k elements.");
    module.def(
        "gemv_source",
        [](const std::string& w, const std::string& x, const std::string& y, bool swiglu, u32 tokens,
           u32 row_tiles, u32 stages, u32 groups, bool vector, u32 row_alignment, bool resident, bool bulk,
           bool dependent_launch, bool native_fp8) {
            GemvSpec spec{.w = quant_of(w),
                          .x = activation_of(x),
                          .y = format_of(y),
                          .epilogue = swiglu ? GemvEpilogue::swiglu : GemvEpilogue::none,
                          .tokens = tokens,
                          .row_tiles = row_tiles,
                          .stages = stages,
                          .groups = groups,
                          .vector = vector,
                          .row_alignment = row_alignment,
                          .resident = resident,
                          .bulk = bulk,
                          .dependent_launch = dependent_launch,
                          .native_fp8 = native_fp8};
            if (spec.groups == 0) spec.groups = std::min(2u, max_groups_of(spec));
            return op::source_of(spec);
        },
        py::arg("w"), py::arg("x"), py::kw_only(), py::arg("y") = "bf16", py::arg("swiglu") = false,
        py::arg("tokens") = 8, py::arg("row_tiles") = 1, py::arg("stages") = 4, py::arg("groups") = 0,
        py::arg("vector") = true, py::arg("row_alignment") = 16, py::arg("resident") = false,
        py::arg("bulk") = false, py::arg("dependent_launch") = true, py::arg("native_fp8") = true,
        "The source of a small-batch kernel. groups 0: as many as a plan would take.");
}

}  // namespace deep_gemm::python
