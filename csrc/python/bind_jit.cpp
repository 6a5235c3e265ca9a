// The environment table, the log sink and the kernel cache for Python: what `python -m deep_gemm env`,
// `cache` and `warmup` are made of.
#include "python/casters.h"

#include "base/env.h"
#include "emulator/options.h"
#include "base/hash.h"
#include "base/log.h"
#include "jit/cache.h"
#include "jit/disk_cache.h"
#include "op/gemm_kernel.h"

namespace deep_gemm::python {

namespace {

using NoGil = py::call_guard<py::gil_scoped_release>;

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
    module.def(
        "emulator_options",
        [] {
            py::list rows;
            for (const emulator::OptionRow& row : emulator::option_table())
                rows.append(py::dict(py::arg("name") = row.name, py::arg("values") = row.values,
                                     py::arg("default") = row.default_text,
                                     py::arg("meaning") = row.meaning));
            return rows;
        },
        "Every option that the name of an emulated device may carry: name, values, default, meaning.");
    module.def(
        "env_flag",
        [](const std::string& name) {
            for (const EnvRow& row : env_table())
                if (name == row.name) return env_flag(row.key);
            fail(ErrorKind::value,
                 "env_flag: got '{}', expected a variable of env(); deep_gemm.env() lists them", name);
        },
        py::arg("name"), "Whether the variable of env() that is on or off is on.");
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

using jit::Artifact;
using jit::DiskCache;
using jit::KernelSource;
using PyProgress = std::function<void(u32, u32, const std::string&, const std::string&, double)>;

// From worker threads: the caller waits without the GIL, so it can be taken here.
jit::ProgressCallback progress_of(const PyProgress& callback) {
    if (!callback) return {};
    return [&callback](const jit::Progress& p) {
        const py::gil_scoped_acquire gil;
        callback(p.done, p.total, p.name, name_of(p.origin), p.seconds);
    };
}

py::dict build_stats_of(const jit::BuildStats& stats) {
    py::dict result;
    result["registers"] = stats.registers;
    result["stack_bytes"] = stats.stack_bytes;
    result["spill_store_bytes"] = stats.spill_store_bytes;
    result["spill_load_bytes"] = stats.spill_load_bytes;
    result["static_smem_bytes"] = stats.static_smem_bytes;
    result["warnings"] = stats.warnings;
    return result;
}

jit::Target target_of(const std::string& arch, const std::string& kind) {
    return {arch, image_kind_of(kind)};
}

py::list entries_of(const std::vector<DiskCache::Entry>& entries) {
    py::list result;
    for (const DiskCache::Entry& entry : entries) {
        py::dict row;
        row["folder"] = entry.folder.string();
        row["num_bytes"] = entry.bytes;
        row["writable"] = entry.writable;
        row["damaged"] = !entry.record;
        if (entry.record) {
            row["name"] = entry.record->artifact.name;
            row["arch"] = entry.record->target.arch;
            row["kind"] = name_of(entry.record->target.kind);
            row["nvrtc"] = entry.record->artifact.nvrtc;
            row["entry"] = entry.record->entry;
            row["replay"] = entry.record->replay;
            row["stats"] = build_stats_of(entry.record->artifact.stats);
        }
        result.append(row);
    }
    return result;
}

void bind_kernels(py::module_& module) {
    py::class_<KernelSource>(module, "KernelSource",
                             "The text of one kernel and its entry: what is compiled and cached.")
        .def(py::init([](std::string name, std::string code, std::string entry, std::string replay) {
                 return KernelSource{std::move(name), std::move(code), std::move(entry), std::move(replay)};
             }),
             py::arg("name"), py::arg("code"), py::arg("entry"), py::arg("replay") = "")
        .def_readonly("name", &KernelSource::name)
        .def_readonly("code", &KernelSource::code)
        .def_readonly("entry", &KernelSource::entry)
        .def_readonly("replay", &KernelSource::replay);
    py::class_<Artifact>(module, "Artifact", "A built kernel: image, entry, and what the assembler said.")
        .def_readonly("name", &Artifact::name)
        .def_readonly("lowered_name", &Artifact::lowered_name)
        .def_property_readonly("image", [](const Artifact& a) { return py::bytes(a.image); })
        .def_readonly("log", &Artifact::log, "The compiler's log; empty where the image came from a cache.")
        .def_readonly("nvrtc", &Artifact::nvrtc)
        .def_readonly("seconds", &Artifact::seconds)
        .def_property_readonly("origin", [](const Artifact& a) { return name_of(a.origin); })
        .def_property_readonly("stats", [](const Artifact& a) { return build_stats_of(a.stats); });

    module.def("kernel_source", &op::source_of, NoGil(), py::arg("spec"),
               "The source of a GemmSpec's kernel.");
    module.def(
        "build",
        [](const KernelSource& source, const std::string& arch, const std::string& kind) {
            return jit::build(source, target_of(arch, kind));
        },
        NoGil(), py::arg("source"), py::kw_only(), py::arg("arch") = "90a", py::arg("kind") = "cubin",
        "The built kernel, from bundles, cache folders or the compiler; needs no GPU.");
    module.def(
        "build_all",
        [](const std::vector<KernelSource>& sources, const std::string& arch, const std::string& kind,
           const PyProgress& progress, u32 threads) {
            const py::gil_scoped_release no_gil;
            return jit::build_all(sources, target_of(arch, kind), progress_of(progress), threads);
        },
        py::arg("sources"), py::kw_only(), py::arg("arch") = "90a", py::arg("kind") = "cubin",
        py::arg("progress") = PyProgress(), py::arg("threads") = 0,
        "build() for many, in parallel. progress(done, total, name, origin, seconds).");
    module.def(
        "load_kernel",
        [](driver::Device& device, const KernelSource& source) {
            jit::LoadedKernel loaded;
            {
                const py::gil_scoped_release no_gil;
                loaded = jit::load(device, source);
            }
            // The kernel belongs to its module: the Python object of the one keeps the other.
            const py::object owner = py::cast(loaded.module);
            return py::make_tuple(py::cast(loaded.kernel, py::return_value_policy::reference_internal, owner),
                                  name_of(loaded.origin));
        },
        py::arg("device"), py::arg("source"),
        "The kernel on this device, and where it came from: memory, bundle, disk, compiled.");
    module.def(
        "load_all",
        [](driver::Device& device, const std::vector<KernelSource>& sources, const PyProgress& progress,
           u32 threads) {
            const py::gil_scoped_release no_gil;
            jit::warmup(device, sources, progress_of(progress), threads);
        },
        py::arg("device"), py::arg("sources"), py::kw_only(), py::arg("progress") = PyProgress(),
        py::arg("threads") = 0,
        "load_kernel() for many, in parallel. progress(done, total, name, origin, seconds).");
}

void bind_cache(py::module_& module) {
    module.def(
        "write_bundle",
        [](const std::string& path, const std::vector<KernelSource>& sources, const std::string& arch,
           const std::string& kind, const PyProgress& progress, u32 threads) {
            const py::gil_scoped_release no_gil;
            jit::write_bundle(path, sources, target_of(arch, kind), progress_of(progress), threads);
        },
        py::arg("path"), py::arg("sources"), py::kw_only(), py::arg("arch") = "90a",
        py::arg("kind") = "cubin", py::arg("progress") = PyProgress(), py::arg("threads") = 0,
        "Builds all and writes them into one file.");
    module.def("open_bundle", &jit::open_bundle, NoGil(), py::arg("path"),
               "Looks into this bundle first from now on; returns the number of kernels in it.");
    module.def(
        "cache_roots",
        [] {
            std::vector<std::string> roots;
            for (const Path& root : DiskCache().roots()) roots.push_back(root.string());
            return roots;
        },
        "The cache folders; the first is written to, if it can be.");
    module.def(
        "cache_list", [] { return entries_of(DiskCache().list(false)); }, "Every cached kernel.");
    module.def(
        "cache_clear",
        [] {
            const DiskCache::Cleared cleared = DiskCache().clear();
            return py::make_tuple(cleared.entries, cleared.bytes);
        },
        "Empties the writable cache folder; returns (kernels, bytes). Raises Error where it cannot.");
    module.def(
        "cache_verify",
        [](bool repair) {
            DiskCache cache;
            const py::list entries = entries_of(cache.list(true));
            if (repair) (void)cache.remove_damaged();
            return entries;
        },
        py::arg("repair") = false,
        "Reads and checks every cached kernel; repair removes the damaged ones of the "
        "writable folder, to be built again, and raises Error where it cannot.");
}

}  // namespace

void bind_jit(py::module_& module) {
    bind_base(module);
    bind_kernels(module);
    bind_cache(module);
}

}  // namespace deep_gemm::python
