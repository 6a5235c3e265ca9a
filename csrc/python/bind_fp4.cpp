// Packed FP4 weights for Python: the host packer and the object that the operations take.
#include "op/fp4_pack_device.h"
#include "python/casters.h"
#include "python/fp4_weights.h"
#include "python/tensor.h"

#include <deep_gemm/spec/nvfp4_weights.h>
#include <fmt/format.h>
#include <pybind11/numpy.h>
#include <pybind11/typing.h>

#include <optional>

namespace deep_gemm::python {

namespace {

using Globals = py::array_t<float, py::array::c_style | py::array::forcecast>;

Fp4Form form_of(const std::string& name) {
    for (const Fp4Form form : kFp4Forms)
        if (name == name_of(form)) return form;
    fail(ErrorKind::value,
         "form: got '{}', expected 'mx_e4m3', 'mx_e5m2', 'nv_single' or 'nv_exact'; pass one of them", name);
}

// An array that owns the vector's memory.
template <typename Element, typename Value>
py::array array_of(std::vector<Value>&& values) {
    static_assert(sizeof(Element) == sizeof(Value));
    auto* owner = new std::vector<Value>(std::move(values));
    const py::capsule free(owner, [](void* p) { delete static_cast<std::vector<Value>*>(p); });
    return py::array_t<Element>(static_cast<py::ssize_t>(owner->size()),
                                reinterpret_cast<Element*>(owner->data()), free);
}

Fp4Weights pack(const py::handle& codes, const py::handle& scales, u32 experts, u32 n, u32 k,
                const std::optional<std::string>& form, const std::optional<Globals>& globals) {
    const BytesView code_bytes(codes, false), scale_bytes(scales, false);
    const auto bytes = [](const BytesView& view) {
        return std::span(reinterpret_cast<const u8*>(view.span().data()), view.span().size());
    };
    std::optional<Fp4Form> forced;
    if (form) forced = form_of(*form);
    op::PackedFp4 packed;
    {
        const std::span code_span = bytes(code_bytes), scale_span = bytes(scale_bytes);
        std::span<const float> global_span;
        if (globals) global_span = {globals->data(), static_cast<size_t>(globals->size())};
        const py::gil_scoped_release no_gil;
        packed = op::pack_fp4({experts, n, k}, code_span, scale_span, forced, global_span);
    }
    Fp4Weights weights{.blobs = array_of<i8>(std::move(packed.blobs)),
                       .row_scales = array_of<float>(std::move(packed.row_scales)),
                       .runs = py::none(),
                       .shape = packed.shape,
                       .form = packed.form,
                       .report = packed.report};
    if (packed.split) weights.runs = array_of<i32>(std::move(packed.runs));
    return weights;
}

std::optional<Fp4Weights> pack_on_device(const py::object& codes, const py::object& scales,
                                         const py::object& globals, Fp4Weights& outputs, bool forced,
                                         const py::object& device, const StreamArgument& stream) {
    TensorReader reader(device.ptr());
    op::Fp4PackArguments a{.shape = outputs.shape, .form = outputs.form, .forced = forced};
    a.codes = reader.read_bytes(codes.ptr(), "codes");
    a.scales = reader.read_bytes(scales.ptr(), "scales");
    if (!globals.is_none()) a.globals = reader.read(globals.ptr(), "global_scale");
    a.blobs = reader.read_bytes(outputs.blobs.ptr(), "blobs", true);
    a.row_scales = reader.read(outputs.row_scales.ptr(), "row_scales", true);
    const bool split = !outputs.runs.is_none();
    if (split) a.runs = reader.read(outputs.runs.ptr(), "runs");
    a.stream = reader.stream(stream);
    op::Fp4Packing packing;
    {
        const py::gil_scoped_release no_gil;
        packing = op::pack_fp4_on_device(a);
    }
    outputs.report = packing.report;
    if (packing.form == outputs.form && packing.runs.empty() != split) return {};
    Fp4Weights wanted{.blobs = py::none(),
                      .row_scales = py::none(),
                      .runs = py::none(),
                      .shape = outputs.shape,
                      .form = packing.form,
                      .report = packing.report};
    if (!packing.runs.empty()) wanted.runs = array_of<i32>(std::move(packing.runs));
    return wanted;
}

Fp4Weights make(py::object blobs, py::object row_scales, py::object runs, u32 experts, u32 n, u32 k,
                const std::string& form) {
    return {.blobs = std::move(blobs),
            .row_scales = std::move(row_scales),
            .runs = std::move(runs),
            .shape = {experts, n, k},
            .form = form_of(form),
            .report = {}};
}

std::string repr_of_weights(const Fp4Weights& w) {
    return fmt::format("Fp4Weights(experts={}, n={}, k={}, form='{}'{})", w.shape.experts, w.shape.n,
                       w.shape.k, name_of(w.form), w.runs.is_none() ? "" : ", split");
}

}  // namespace

void bind_fp4(py::module_& module) {
    py::class_<Fp4Weights> type(
        module, "Fp4Weights",
        "FP4 weights [experts, n, k] in the order kernels read them; pack_fp4_weights makes one. "
        "The layout is written down in spec/fp4_weights.h.");
    type.def(py::init(&make), py::arg("blobs"), py::arg("row_scales"), py::arg("runs"), py::arg("experts"),
             py::arg("n"), py::arg("k"), py::arg("form"),
             "From tensors that are packed already: blobs int8, row_scales fp32, runs int32 or None.");
    type.def_readonly("blobs", &Fp4Weights::blobs,
                      "The packed codes and scales, int8, in the kernels' order.");
    type.def_readonly("row_scales", &Fp4Weights::row_scales, "fp32, what a row is multiplied by.");
    type.def_readonly("runs", &Fp4Weights::runs,
                      "Where rows that need several scales have them; None: no row does.");
    type.def_property_readonly(
        "experts", [](const Fp4Weights& w) { return w.shape.experts; }, "Matrices.");
    type.def_property_readonly(
        "n", [](const Fp4Weights& w) { return w.shape.n; }, "Rows of a matrix: outputs.");
    type.def_property_readonly(
        "k", [](const Fp4Weights& w) { return w.shape.k; }, "Columns of a matrix: inputs.");
    type.def_property_readonly(
        "form", [](const Fp4Weights& w) { return name_of(w.form); },
        "mx_e4m3, mx_e5m2, nv_single or nv_exact: what a weight is decoded to.");
    type.def_property_readonly(
        "split", [](const Fp4Weights& w) { return !w.runs.is_none(); },
        "Whether some row has several scales, in runs.");
    type.def_property_readonly(
        "report",
        [](const Fp4Weights& w) {
            py::typing::Dict<py::str, py::object> report;
            report["rows"] = py::int_(w.report.rows);
            report["extra_runs"] = py::int_(w.report.extra_runs);
            report["widest"] = py::int_(w.report.widest);
            if (is_nvfp4(w.form)) {
                report["rows_beyond_window"] = py::int_(w.report.rows_beyond_window);
                report["worst_error"] = py::float_(w.report.worst_error);
                report["rms_error"] = py::float_(w.report.rms_error);
            } else {
                report["rows_beyond_e4m3"] = py::int_(w.report.rows_beyond_e4m3);
                report["rows_beyond_e5m2"] = py::int_(w.report.rows_beyond_e5m2);
            }
            return report;
        },
        "What packing found: rows, how many have more scales than one run of a form holds, runs added for "
        "them, the widest row in octaves; of NVFP4 also the largest |error| / |weight| and the root mean "
        "square error over that of the weights, both 0 for nv_exact.");
    type.def(
        "with_tensors",
        [](Fp4Weights w, py::object blobs, py::object row_scales, py::object runs) {
            w.blobs = std::move(blobs);
            w.row_scales = std::move(row_scales);
            w.runs = std::move(runs);
            return w;
        },
        py::arg("blobs"), py::arg("row_scales"), py::arg("runs"), "The same weights in other memory.");
    type.def("__repr__", &repr_of_weights);
    module.def(
        "pack_fp4", &pack, py::arg("codes"), py::arg("scales"), py::arg("experts"), py::arg("n"),
        py::arg("k"), py::arg("form") = py::none(), py::arg("globals") = py::none(),
        "Packs host memory: codes [experts, n, k / 2], UE8M0 scales [experts, n, k / 32], or E4M3 scales "
        "[experts, n, k / 16] and fp32 globals [experts, n]; deep_gemm.pack_fp4_weights takes tensors.");
    module.def("pack_fp4_on_device", &pack_on_device, py::arg("codes"), py::arg("scales"), py::arg("globals"),
               py::arg("outputs"), py::arg("forced"), py::kw_only(), py::arg("device") = py::none(),
               py::arg("stream") = py::none(),
               "Packs memory of a device, and waits for it: codes [experts, n, k / 2], scales [experts, n, "
               "k / group], fp32 globals [experts, n] or None, into the tensors of `outputs`, whose form "
               "is taken unless it is not forced and another takes fewer bytes. None: done, and "
               "outputs.report says what was found. Else what the outputs must be, form and runs (in host "
               "memory): call again with tensors for these.");
    module.def(
        "fp4_packed_sizes",
        [](u32 experts, u32 n, u32 k, const std::string& form, std::optional<u64> num_runs) {
            const u64 blocks = static_cast<u64>(experts) * fp4_row_blocks(n);
            const op::Fp4PackedSizes sizes =
                op::fp4_packed_sizes({experts, n, k}, form_of(form), num_runs.value_or(blocks));
            return std::pair(sizes.blobs, sizes.row_scales);
        },
        py::arg("experts"), py::arg("n"), py::arg("k"), py::arg("form"), py::arg("num_runs") = py::none(),
        "Elements of the blobs (int8) and row_scales (fp32) of packed weights, by default of one run for "
        "each block of 64 rows.");
    module.def(
        "nvfp4_bytes",
        [](const std::string& form, u32 code) {
            const NvBytes bytes = nv_bytes(form_of(form), code);
            return std::pair(bytes.high, bytes.low);
        },
        py::arg("form"), py::arg("code"),
        "What the eight magnitudes become with the E4M3 scale of a code, in the window of packed NVFP4 "
        "weights: bytes of e4m3, the first magnitude's lowest, of the first and the second term.");
}

}  // namespace deep_gemm::python
