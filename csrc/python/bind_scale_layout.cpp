// Layouts of scales for Python: the kernels behind deep_gemm.utils.layout.
#include "op/scale_layout.h"
#include "python/tensor.h"

namespace deep_gemm::python {

namespace {

void run_transpose(const py::object& sf, const py::object& out, const py::object& device,
                   const StreamArgument& stream) {
    TensorReader reader(device.ptr());
    ScaleLayoutArguments a;
    a.sf = reader.read(sf.ptr(), "sf");
    a.out = reader.read(out.ptr(), "out", true);
    a.stream = reader.stream(stream);
    const py::gil_scoped_release no_gil;
    transpose_fp32(a);
}

void run_pack(const py::object& sf, const py::object& out, const py::object& group_ks, u32 gran_k, bool gaps,
              const py::object& device, const StreamArgument& stream) {
    TensorReader reader(device.ptr());
    ScaleLayoutArguments a{.gran_k = gran_k, .gaps = gaps};
    a.sf = reader.read(sf.ptr(), "sf");
    a.out = reader.read(out.ptr(), "out", true);
    if (!group_ks.is_none()) a.group_ks = reader.read(group_ks.ptr(), "group_ks");
    a.stream = reader.stream(stream);
    const py::gil_scoped_release no_gil;
    pack_fp32_into_ue8m0(a);
}

}  // namespace

void bind_scale_layout(py::module_& module) {
    module.def("transpose_fp32", &run_transpose, py::arg("sf"), py::arg("out"), py::kw_only(),
               py::arg("device") = py::none(), py::arg("stream") = py::none(),
               "Copies fp32 scales [..., mn, columns] of any strides to out, whose rows are neighbours.");
    module.def("pack_fp32_into_ue8m0", &run_pack, py::arg("sf"), py::arg("out"),
               py::arg("group_ks") = py::none(), py::arg("gran_k") = 128, py::arg("gaps") = false,
               py::kw_only(), py::arg("device") = py::none(), py::arg("stream") = py::none(),
               "Packs the exponents of fp32 scales [..., mn, columns] into out, int32 [..., mn, words], "
               "whose rows are "
               "neighbours. With group_ks, int32 [groups], columns belong to groups of ceil(k / gran_k), and "
               "no word "
               "to two groups. Scales must be powers of two; gaps says that some were never written.");
}

}  // namespace deep_gemm::python
