// The runtime for Python: checkpoints. Everything here releases the GIL while it works.
#include "python/casters.h"

#include "runtime/checkpoint.h"
#include "runtime/inventory.h"

namespace deep_gemm::python {

namespace {

using runtime::Checkpoint;

py::list tensors_of(const Checkpoint& checkpoint) {
    py::list rows;
    for (const runtime::Tensor& tensor : checkpoint.tensors()) {
        py::dict row;
        row["name"] = tensor.name;
        row["dtype"] = runtime::row_of(tensor.storage).name;
        row["shape"] = py::tuple(py::cast(tensor.shape));
        row["num_bytes"] = tensor.bytes.size();
        row["file"] = checkpoint.files()[tensor.file]->path().filename().string();
        rows.append(row);
    }
    return rows;
}

std::vector<std::string> problems_of(const Checkpoint& checkpoint) {
    DG_CHECK(checkpoint.config(), value,
             "checkpoint: no config.json beside the tensors; expected one to compare with");
    const auto config = runtime::parse_deepseek_v4(*checkpoint.config(), "config.json");
    return runtime::problems_of(checkpoint, runtime::expected_tensors(config));
}

void bind_checkpoint(py::module_& module) {
    py::class_<Checkpoint>(module, "Checkpoint",
                           "The tensors of a safetensors file or folder, or of a GGUF file, memory-mapped.")
        .def(py::init([](const std::string& path) {
                 const py::gil_scoped_release no_gil;
                 return Checkpoint::open(path);
             }),
             py::arg("path"))
        .def("tensors", &tensors_of, "One dict for each tensor: name, dtype, shape, num_bytes, file.")
        .def_property_readonly("num_bytes", &Checkpoint::bytes)
        .def_property_readonly("has_config", [](const Checkpoint& c) { return c.config() != nullptr; })
        .def("problems", &problems_of, py::call_guard<py::gil_scoped_release>(),
             "What is missing, misshapen, wrongly stored or extra, compared with the folder's config.json; "
             "one sentence "
             "each.");
}

}  // namespace

void bind_runtime(py::module_& module) {
    bind_checkpoint(module);
}

}  // namespace deep_gemm::python
