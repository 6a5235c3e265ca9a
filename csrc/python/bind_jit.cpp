// The environment table, the log sink and the kernel cache for Python: what `python -m deep_gemm env`,
// `cache` and `warmup` are made of.
#include "python/casters.h"

#include "base/env.h"
#include "base/hash.h"
#include "base/log.h"

namespace deep_gemm::python {

namespace {

py::list env_rows() {
    py::list rows;
    for (const EnvRow& row : env_table()) {
        py::dict entry;
        entry["name"] = row.name;
        entry["value"] = env_text(row.key);
        entry["default"] = row.default_text;
        entry["is_set"] = env_is_set(row.key);
        entry["meaning"] = row.meaning;
        rows.append(entry);
    }
    return rows;
}

// The sink is called from any thread, also without the GIL; after the interpreter is gone messages are
// dropped.
void set_sink(const py::object& callable) {
    if (callable.is_none()) return set_log_sink(nullptr);
    // Released without the GIL at exit otherwise: the callable is leaked on purpose, there is one per
    // program.
    PyObject* const function = callable.inc_ref().ptr();
    set_log_sink([function](LogLevel level, std::string_view message) {
        if (!Py_IsInitialized()) return;
        const py::gil_scoped_acquire gil;
        py::reinterpret_borrow<py::function>(function)(name_of(level), std::string(message));
    });
}

void bind_base(py::module_& module) {
    module.def("env", &env_rows,
               "Every environment variable of the library: name, value, default, is_set, meaning.");
    module.def("unknown_env_names", &unknown_env_names,
               "DG_* variables that are set but unknown: typing errors.");
    module.def("set_log_sink", &set_sink, py::arg("sink").none(true),
               "Sends log messages to sink(level, message); None drops them. At first they go to stderr.");
    module.def(
        "hash_hex",
        [](const py::object& data) {
            const BytesView bytes(data, false);
            return hash_of(bytes.span()).hex();
        },
        py::arg("data"), "The library's 128-bit hash, as 32 hexadecimal digits.");
}

}  // namespace

void bind_jit(py::module_& module) {
    bind_base(module);
}

}  // namespace deep_gemm::python
