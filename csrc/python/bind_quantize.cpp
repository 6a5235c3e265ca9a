// Number formats for Python: the scalar codecs of spec/codec.h over arrays.
#include "python/casters.h"

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
    {"ue8m0_up", codec::f32_to_ue8m0_up, codec::ue8m0_to_f32},
    {"ue8m0_nearest", codec::f32_to_ue8m0_nearest, codec::ue8m0_to_f32},
};

const Codec& codec_of(const std::string& name) {
    for (const Codec& codec : kCodecs)
        if (name == codec.name) return codec;
    fail(ErrorKind::value, "format: got '{}', expected e2m1, e4m3, e5m2, ue8m0_up or ue8m0_nearest", name);
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

}  // namespace

void bind_quantize(py::module_& module) {
    module.def(
        "encode",
        [](const Floats& values, const std::string& format) {
            return map<u8>(values, codec_of(format).encode);
        },
        py::arg("values"), py::arg("format"),
        "Codes, one in a byte, of fp32 values: e2m1, e4m3, e5m2 (nearest even, saturating), ue8m0_up or "
        "ue8m0_nearest.");
    module.def(
        "decode",
        [](const Codes& codes, const std::string& format) {
            return map<float>(codes, codec_of(format).decode);
        },
        py::arg("codes"), py::arg("format"), "The fp32 values of codes, one in a byte; exact.");
}

}  // namespace deep_gemm::python
