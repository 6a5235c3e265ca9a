// Process-wide settings and view_as, as Python functions.
#include <algorithm>

#include "python/checked.h"
#include "python/tensor.h"

namespace deep_gemm::python {

void bind_settings(py::module_& module) {
    module.def(
        "get_num_sms",
        [](const py::object& device) {
            const u32 chosen = settings().num_sms, there = num_sms_of(device_of(device));
            return chosen ? std::min(chosen, there) : there;
        },
        py::arg("device") = py::none(),
        "Streaming multiprocessors that kernels may fill: set_num_sms's, else "
        "all.");
    module.def(
        "set_num_sms",
        [](const Checked<i64, NumSms>& wanted) {
            const i64 num_sms = wanted.value;
            constexpr i64 kMost =
                1024;  // beyond any device: a plan takes the smaller of this and what is there
            DG_CHECK(num_sms >= 0 && num_sms <= kMost, value,
                     "set_num_sms: got {}, expected a number up to {}, or 0 for all; get_num_sms() says "
                     "what is there",
                     num_sms, kMost);
            Settings changed = settings();
            changed.num_sms = static_cast<u32>(num_sms);
            set_settings(changed);
        },
        py::arg("new_num_sms"), "Leaves multiprocessors to other work; 0 for all.");
    module.def(
        "get_pdl", [] { return settings().pdl; }, "Whether kernels use programmatic dependent launch.");
    module.def(
        "set_pdl",
        [](const Checked<bool, Pdl>& enable) {
            Settings changed = settings();
            changed.pdl = enable.value;
            set_settings(changed);
        },
        py::arg("new_enable_pdl"),
        "Programmatic dependent launch: a kernel's prologue overlaps its "
        "predecessor's end.");
}

void bind_tensor(py::module_& module) {
    py::class_<TypedTensor>(module, "TypedTensor", "What view_as returns.")
        .def("__repr__", [](const TypedTensor& typed) {
            const auto shape = py::getattr(typed.tensor, "shape", py::str("?"));
            return fmt::format("TypedTensor({}, shape={})", name_of(typed.format),
                               py::str(py::tuple(shape)).cast<std::string>());
        });
    module.def(
        "view_as",
        [](py::object tensor, const std::string& format) {
            for (u32 i = 1; i <= static_cast<u32>(Format::int32); ++i)
                if (format == name_of(static_cast<Format>(i)))
                    return TypedTensor{std::move(tensor), static_cast<Format>(i)};
            fail(ErrorKind::value,
                 "view_as: got '{}', expected a format such as fp8_e4m3, bf16 or "
                 "fp32; docs/formats.md lists them",
                 format);
        },
        py::arg("tensor"), py::arg("format"),
        "A tensor whose bytes mean `format` ('fp8_e4m3', 'bf16', ...), for frameworks without such a type: "
        "pass the result where the operation expects a tensor.");
}

}  // namespace deep_gemm::python
