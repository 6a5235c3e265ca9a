// Number formats for Python: the scalar codecs of spec/codec.h over arrays, and quantisation on a device.
#include "op/quantize.h"
#include "python/casters.h"
#include "python/tensor.h"

#include <deep_gemm/spec/codec.h>
#include <pybind11/numpy.h>

namespace deep_gemm::python {

namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Codes = py::array_t<u8, py::array::c_style | py::array::forcecast>;

struct Codec {
    const char* name;
    u32 (*encode)(float);
    float (*decode)(u32);
};

constexpr Codec kCodecs[] = {
    {"e2m1", codec::f32_to_e2m1, codec::e2m1_to_f32},
    {"e4m3", codec::f32_to_e4m3, codec::e4m3_to_f32},
    {"e5m2", codec::f32_to_e5m2, codec::e5m2_to_f32},
    {"ue4m3", codec::f32_to_ue4m3, codec::ue4m3_to_f32},
    {"ue8m0_up", codec::f32_to_ue8m0_up, codec::ue8m0_to_f32},
    {"e2m1_scale_up", codec::f32_to_e2m1_scale_up, codec::ue8m0_to_f32},
    {"ue8m0_nearest", codec::f32_to_ue8m0_nearest, codec::ue8m0_to_f32},
};

const Codec& codec_of(const std::string& name) {
    for (const Codec& codec : kCodecs)
        if (name == codec.name) return codec;
    fail(
        ErrorKind::value,
        "format: got '{}', expected e2m1, e4m3, e5m2, ue4m3, ue8m0_up, ue8m0_nearest or e2m1_scale_up; pass one of them",
        name);
}

template <typename To, typename From, typename F>
py::array_t<To> map(const From& from, F&& f) {
    py::array_t<To> to(std::vector<py::ssize_t>(from.shape(), from.shape() + from.ndim()));
    const auto* source = from.data();
    To* destination = to.mutable_data();
    const auto count = static_cast<size_t>(from.size());
    const py::gil_scoped_release no_gil;
    for (size_t i = 0; i < count; ++i) destination[i] = static_cast<To>(f(source[i]));
    return to;
}

void run_quantize(const std::string& recipe, const std::string& rule, const py::object& x,
                  const py::object& codes, const py::object& scales, const py::object& global_scale,
                  bool given, const py::object& source_rows, const py::object& num_rows, u32 divisor,
                  const py::object& device, const StreamArgument& stream) {
    TensorReader reader(device.ptr());
    QuantizeArguments a;
    a.recipe = enum_named(recipe, "recipe", {Recipe::fp8_128, Recipe::fp8_row, Recipe::mxfp4, Recipe::nvfp4});
    a.rule = scale_rule_of(rule);
    const bool fp8 = a.recipe == Recipe::fp8_128 || a.recipe == Recipe::fp8_row;
    a.x = reader.read(x.ptr(), "x");
    a.codes = fp8 ? reader.read(codes.ptr(), "codes", true) : reader.read_bytes(codes.ptr(), "codes", true);
    a.scales =
        fp8 ? reader.read(scales.ptr(), "scales", true) : reader.read_bytes(scales.ptr(), "scales", true);
    if (!global_scale.is_none()) a.global_scale = reader.read(global_scale.ptr(), "global_scale", !given);
    if (!source_rows.is_none()) a.source_rows = reader.read(source_rows.ptr(), "source_rows");
    if (!num_rows.is_none()) a.num_rows = reader.read(num_rows.ptr(), "num_rows");
    a.given = given;
    a.divisor = divisor;
    a.stream = reader.stream(stream);
    const py::gil_scoped_release no_gil;
    quantize(a);
}

}  // namespace

void bind_quantize(py::module_& module) {
    module.def(
        "encode",
        [](const Floats& values, const std::string& format) {
            return map<u8>(values, codec_of(format).encode);
        },
        py::arg("values"), py::arg("format"),
        "Codes, one in a byte, of fp32 values: e2m1, e4m3, e5m2, ue4m3 (nearest even, saturating), ue8m0_up "
        "or ue8m0_nearest.");
    module.def(
        "decode",
        [](const Codes& codes, const std::string& format) {
            return map<float>(codes, codec_of(format).decode);
        },
        py::arg("codes"), py::arg("format"), "The fp32 values of codes, one in a byte; exact.");
    module.def(
        "quantize_into", &run_quantize, py::arg("recipe"), py::arg("scale_rule"), py::arg("x"),
        py::arg("codes"), py::arg("scales"), py::arg("global_scale") = py::none(), py::arg("given") = false,
        py::arg("source_rows") = py::none(), py::arg("num_rows") = py::none(), py::arg("divisor") = 1,
        py::kw_only(), py::arg("device") = py::none(), py::arg("stream") = py::none(),
        "Quantises rows of x into codes and scales on their device; deep_gemm.fp4_formats.quantize_tokens "
        "says what they are. With source_rows and num_rows (int32 [rows] and [1]) row r < num_rows comes "
        "from row source_rows[r] / divisor of x, and is left alone where that is negative.");
}

}  // namespace deep_gemm::python
