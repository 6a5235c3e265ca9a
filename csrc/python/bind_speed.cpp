// ModelSpeed for bench/model.py: times of whole models with random weights.
#include "python/casters.h"
#include "python/tensor.h"

#include "runtime/speed.h"

namespace deep_gemm::python {

namespace {

using NoGil = py::call_guard<py::gil_scoped_release>;
using runtime::ModelSpeed;
using runtime::PassKind;

PassKind kind_of(const std::string& name) {
    if (name == "decode") return PassKind::decode;
    if (name == "verify") return PassKind::verify;
    if (name == "draft") return PassKind::draft;
    if (name == "iterate") return PassKind::iterate;
    if (name == "head") return PassKind::head;
    DG_CHECK(name == "prefill", value,
             "speed: got a pass '{}', expected 'decode', 'verify', 'draft', 'iterate', 'prefill' or 'head'; "
             "pass one of them",
             name);
    return PassKind::prefill;
}

}  // namespace

void bind_speed(py::module_& module) {
    py::class_<ModelSpeed>(module, "ModelSpeed",
                           "Times of a model's passes, with random weights and caches; see bench/model.py.")
        .def(py::init([](const std::string& config, const py::object& device, u32 context, u32 sequences,
                         u32 max_rows) {
                 Device& target = device_of(device);
                 const py::gil_scoped_release no_gil;
                 return std::make_unique<ModelSpeed>(
                     target,
                     runtime::SpeedOptions{
                         .config = config, .context = context, .sequences = sequences, .max_rows = max_rows});
             }),
             py::arg("config"), py::kw_only(), py::arg("device") = py::none(), py::arg("context") = 4096,
             py::arg("sequences") = 1, py::arg("max_rows") = 64,
             "config: the text of a config.json. Weights are random, in the formats of released checkpoints.")
        .def_property_readonly("tensors", &ModelSpeed::tensors, "(name, stored bytes) of each tensor.")
        .def_property_readonly("has_mtp", [](const ModelSpeed& s) { return s.engine().facts().drafts; })
        .def(
            "kernels",
            [](ModelSpeed& s, const std::string& kind, u32 rows) { return s.kernels(kind_of(kind), rows); },
            NoGil(), py::arg("kind"), py::arg("rows"), "The kernels that a pass launches, in order.")
        .def(
            "pass_us",
            [](ModelSpeed& s, const std::string& kind, u32 rows, u32 repeats, u32 pending) {
                return s.pass_us(kind_of(kind), rows, repeats, pending);
            },
            NoGil(), py::arg("kind"), py::arg("rows"), py::arg("repeats") = 20, py::arg("pending") = 1,
            "Median time of a pass, replayed as a graph. kind: 'decode' (a row for each of `rows` "
            "sequences), 'verify' (`rows` rows of one), 'draft' (the MTP block), 'iterate' (a speculative "
            "step of `rows` rows after one that added `pending` tokens), 'prefill' (the first `rows` "
            "tokens), 'head' (logits and maxima alone).")
        .def(
            "launch_times",
            [](ModelSpeed& s, const std::string& kind, u32 rows, u32 repeats) {
                std::vector<std::tuple<std::string, u32, u32, float>> times;
                for (const runtime::LaunchTime& t : s.launch_times(kind_of(kind), rows, repeats))
                    times.emplace_back(t.kernel, t.blocks, t.threads, t.us);
                return times;
            },
            NoGil(), py::arg("kind"), py::arg("rows"), py::arg("repeats") = 5,
            "(kernel, blocks, threads of a block, us) of each launch of a pass, in order: what the pass "
            "takes longer for it.");
}

}  // namespace deep_gemm::python
