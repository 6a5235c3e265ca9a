// The runtime for Python: checkpoints, engines and sessions. Everything here releases the GIL while it works.
#include "python/casters.h"
#include "python/errors.h"
#include "python/tensor.h"

#include "runtime/batch.h"
#include "runtime/session.h"

#include <pybind11/numpy.h>

#include <atomic>

namespace deep_gemm::python {

namespace {

using NoGil = py::call_guard<py::gil_scoped_release>;
using runtime::Checkpoint;
using runtime::Engine;
using runtime::Session;

py::list tensors_of(const Checkpoint& checkpoint) {
    py::list rows;
    for (const runtime::Tensor& tensor : checkpoint.tensors()) {
        py::dict row;
        row["name"] = printable(tensor.name);
        row["dtype"] = runtime::row_of(tensor.storage).name;
        row["shape"] = py::tuple(py::cast(tensor.shape));
        row["num_bytes"] = tensor.bytes.size();
        row["file"] = checkpoint.files()[tensor.file]->path().filename().string();
        rows.append(row);
    }
    return rows;
}

std::unique_ptr<const runtime::ModelConfig> config_of(const Checkpoint& checkpoint) {
    DG_CHECK(
        checkpoint.config(), value,
        "checkpoint: no config.json beside the tensors; expected one to compare with: pass the folder of "
        "the model");
    return runtime::parse_config(*checkpoint.config(), "config.json");
}

std::vector<py::str> problems_of(const Checkpoint& checkpoint) {
    std::vector<std::string> found;
    {
        const py::gil_scoped_release release;
        found = runtime::problems_of(checkpoint, config_of(checkpoint)->expected_tensors());
    }
    std::vector<py::str> problems;
    for (const std::string& problem : found) problems.push_back(printable(problem));
    return problems;
}

runtime::Numerics numerics_of(const std::string& name) {
    if (name == "exact") return runtime::Numerics::exact;
    if (name == "released") return runtime::Numerics::released;
    DG_CHECK(name == "fp8_cache", value,
             "engine: got numerics '{}', expected 'released', 'exact' or 'fp8_cache'; pass one of them",
             name);
    return runtime::Numerics::fp8_cache;
}

// The file stays mapped as long as the array lives.
py::array bytes_of_tensor(const py::object& self, const std::string& name) {
    const auto& checkpoint = self.cast<const Checkpoint&>();
    const runtime::Tensor* tensor = checkpoint.find(name);
    DG_CHECK(tensor != nullptr, value,
             "checkpoint: got '{}', expected the name of a tensor; its tensors() lists them", name);
    py::array_t<u8> array(static_cast<py::ssize_t>(tensor->bytes.size()),
                          reinterpret_cast<const u8*>(tensor->bytes.data()), self);
    array.attr("setflags")(py::arg("write") = false);
    return array;
}

void bind_checkpoint(py::module_& module) {
    py::class_<Checkpoint>(module, "Checkpoint",
                           "The tensors of a safetensors file or folder, or of a GGUF file, memory-mapped.")
        .def(py::init([](const std::string& path) { return Checkpoint::open(path); }), NoGil(),
             py::arg("path"))
        .def("tensors", &tensors_of, "One dict for each tensor: name, dtype, shape, num_bytes, file.")
        .def("read", &bytes_of_tensor, py::arg("name"),
             "The bytes of a tensor as they lie in the file: uint8 [num_bytes], not writable, not copied.")
        .def_property_readonly("num_bytes", &Checkpoint::bytes)
        .def(
            "device_bytes",
            [](const Checkpoint& c, const std::string& numerics) {
                return runtime::device_bytes_of(c, config_of(c)->expected_tensors(),
                                                runtime::activations_of(numerics_of(numerics)));
            },
            NoGil(), py::arg("numerics") = "released", "Bytes that the model's tensors take on a device.")
        .def(
            "layers_that_fit",
            [](const Checkpoint& c, u64 room, const std::string& numerics) {
                const runtime::LayersThatFit layers =
                    runtime::layers_that_fit(c, config_of(c)->expected_tensors(),
                                             runtime::activations_of(numerics_of(numerics)), room);
                return std::pair(layers.fit, layers.of);
            },
            NoGil(), py::arg("room"), py::arg("numerics") = "released",
            "(how many layers, from the first on, `room` bytes hold beside what belongs to none, of how "
            "many).")
        .def(
            "page_bytes",
            [](const Checkpoint& c, const std::string& numerics) {
                return runtime::PagePool::page_bytes(config_of(c)->page_shapes(numerics_of(numerics)));
            },
            NoGil(), py::arg("numerics") = "released",
            "Bytes of the cache that page_tokens tokens of a session take.")
        .def_property_readonly("page_tokens", [](const Checkpoint&) { return runtime::kPageTokens; })
        .def_property_readonly("max_positions",
                               [](const Checkpoint& c) { return config_of(c)->facts().max_positions; })
        .def_property_readonly("architecture",
                               [](const Checkpoint& c) { return config_of(c)->facts().architecture; })
        .def_property_readonly("has_config", [](const Checkpoint& c) { return c.config() != nullptr; })
        .def("problems", &problems_of,
             "What is missing, misshapen, wrongly stored or extra, compared with the folder's config.json; "
             "one sentence each.");
}

std::shared_ptr<const Engine> load_engine(const std::string& path, const py::object& device,
                                          const std::string& numerics, u32 context, u32 max_rows,
                                          u64 cache_tokens,
                                          const std::optional<std::function<void(u64, u64)>>& progress) {
    Device& target = device_of(device);
    runtime::EngineOptions options{.numerics = numerics_of(numerics),
                                   .context = context,
                                   .max_rows = max_rows,
                                   .cache_tokens = cache_tokens};
    if (progress)
        options.progress = [&](u64 done, u64 total) {
            const py::gil_scoped_acquire gil;
            (*progress)(done, total);
        };
    const py::gil_scoped_release no_gil;
    return Engine::load(target, path, options);
}

void bind_engine(py::module_& module) {
    py::class_<Engine, std::shared_ptr<Engine>>(module, "Engine",
                                                "A loaded model: weights and configuration.")
        .def(py::init([](const std::string& path, const py::object& device, const std::string& numerics,
                         u32 context, u32 max_rows, u64 cache_tokens,
                         const std::optional<std::function<void(u64, u64)>>& progress) {
                 return std::const_pointer_cast<Engine>(
                     load_engine(path, device, numerics, context, max_rows, cache_tokens, progress));
             }),
             py::arg("path"), py::kw_only(), py::arg("device") = py::none(), py::arg("numerics") = "released",
             py::arg("context") = 0, py::arg("max_rows") = 0, py::arg("cache_tokens") = 0,
             py::arg("progress") = py::none(),
             "Reads, checks and uploads a checkpoint of a model that the runtime knows. numerics: "
             "'released' (bf16 activations, FP8 products and cache), 'exact' (fp32 throughout) or "
             "'fp8_cache' (fp32 with the released cache). context 0: what the model allows, at most 8192. "
             "cache_tokens: of all sessions together. progress(done_bytes, total_bytes). max_rows 0: 256 "
             "rows of a pass, or 64 on the emulated GPU.")
        .def_property_readonly("context", &Engine::context)
        .def_property_readonly("max_rows", &Engine::max_rows)
        .def_property_readonly("page_tokens", [](const Engine&) { return runtime::kPageTokens; })
        .def_property_readonly("num_pages", [](const Engine& e) { return e.pages().count(); })
        .def_property_readonly("free_pages", [](const Engine& e) { return e.pages().free(); })
        .def_property_readonly("vocab", [](const Engine& e) { return e.facts().vocab; })
        .def_property_readonly("architecture", [](const Engine& e) { return e.facts().architecture; })
        .def_property_readonly("bos", [](const Engine& e) { return e.facts().bos; })
        .def_property_readonly("eos", [](const Engine& e) { return e.facts().eos; })
        .def_property_readonly("num_layers", [](const Engine& e) { return e.facts().num_layers; })
        .def_property_readonly("has_mtp", [](const Engine& e) { return e.facts().drafts; })
        .def_property_readonly("weight_bytes", [](const Engine& e) { return e.model().weight_bytes(); });
}

py::dict session_stats_of(const Session& session) {
    const runtime::SessionStats& s = session.stats();
    py::dict result;
    result["steps"] = s.steps;
    result["tokens"] = s.tokens;
    result["drafted"] = s.drafted;
    result["accepted"] = s.accepted;
    result["rollbacks"] = s.rollbacks;
    result["graph_replays"] = s.graph_replays;
    return result;
}

py::bytes fp32_bytes(const std::vector<float>& values) {
    return bytes_of(std::as_bytes(std::span(values)));
}

// A session or a batch, and whether a call is at work in it. Calls release the GIL: without this, two threads
// could be in one at once.
template <typename T>
class Exclusive {
  public:
    template <typename... Arguments>
    explicit Exclusive(Arguments&&... arguments) : value_(std::forward<Arguments>(arguments)...) {}

    template <typename Work>
    auto use(Work&& work) {
        DG_CHECK(!busy_.exchange(true), value,
                 "{}: another thread is in a call of it; let one thread use it, or guard it with a lock",
                 std::is_same_v<T, Session> ? "session" : "batch");
        const std::unique_ptr<std::atomic<bool>, void (*)(std::atomic<bool>*)> done(
            &busy_, [](std::atomic<bool>* busy) { *busy = false; });
        return work(value_);
    }

  private:
    T value_;
    std::atomic<bool> busy_{false};
};

// A method of T, given as a lambda without captures, as one of Exclusive<T>.
template <typename T, typename Result, typename... Arguments>
auto alone_of(Result (*method)(T&, Arguments...)) {
    return [method](Exclusive<T>& owner, Arguments... arguments) -> Result {
        return owner.use(
            [&](T& value) -> Result { return method(value, std::forward<Arguments>(arguments)...); });
    };
}
template <typename Lambda>
auto alone(Lambda method) {
    return alone_of(+method);
}

void bind_session(py::module_& module) {
    using Ids = std::vector<i32>;
    py::class_<Exclusive<Session>>(module, "Session", "One timeline of tokens on an Engine.")
        .def(py::init([](const std::shared_ptr<Engine>& engine, u32 window, bool adaptive, bool strict,
                         bool graphs, u32 restore_points) {
                 return std::make_unique<Exclusive<Session>>(
                     engine, runtime::SessionOptions{window, adaptive, strict, graphs, restore_points});
             }),
             NoGil(), py::arg("engine"), py::kw_only(), py::arg("window") = 0, py::arg("adaptive") = false,
             py::arg("strict") = false, py::arg("graphs") = true, py::arg("restore_points") = 2)
        .def_property_readonly("tokens", alone([](Session& s) { return Ids(s.tokens()); }))
        .def_property_readonly("room", alone([](Session& s) { return s.room(); }))
        .def_property_readonly("stats", alone([](Session& s) { return session_stats_of(s); }))
        .def_property_readonly("last_drafts", alone([](Session& s) { return Ids(s.last_drafts()); }))
        .def("sync", alone([](Session& s, const Ids& tokens, bool restore_point) {
                 return s.sync(tokens, restore_point);
             }),
             NoGil(), py::arg("tokens"), py::arg("restore_point") = true,
             "Makes the session hold exactly these tokens; returns how many were kept.")
        .def("step", alone([](Session& s, u32 budget, i32 eos) {
                 runtime::Step step = s.step(budget, eos);
                 return std::make_tuple(std::move(step.tokens), step.drafted, step.accepted);
             }),
             NoGil(), py::arg("budget"), py::arg("eos") = -1, "(new tokens, drafted, accepted)")
        .def("set_sampling",
             alone([](Session& s, float temperature, i32 top_k, float top_p, float min_p, u64 seed) {
                 s.set_sampling({temperature, top_k, top_p, min_p, seed});
             }),
             NoGil(), py::kw_only(), py::arg("temperature") = 0.0f, py::arg("top_k") = 0,
             py::arg("top_p") = 1.0f, py::arg("min_p") = 0.0f, py::arg("seed") = 0)
        .def("logits", alone([](Session& s) { return fp32_bytes(s.logits()); }), "fp32 [vocab] as bytes.")
        .def("last_logits", alone([](Session& s) { return fp32_bytes(s.last_logits()); }),
             "fp32 [tokens of the last step, vocab] as bytes.")
        .def("logits_of", alone([](Session& s, const Ids& tokens, u32 chunk) {
                 std::vector<float> values;
                 {
                     const py::gil_scoped_release no_gil;
                     values = s.logits_of(tokens, chunk);
                 }
                 return fp32_bytes(values);
             }),
             py::arg("tokens"), py::arg("chunk") = 0,
             "fp32 [len(tokens), vocab] as bytes, from an empty session.")
        .def("trace_of", alone([](Session& s, const Ids& tokens, u32 chunk, u32 depth) {
                 std::vector<runtime::Traced> all;
                 {
                     const py::gil_scoped_release no_gil;
                     all = s.trace_of(tokens, chunk, depth);
                 }
                 py::dict result;
                 for (const runtime::Traced& t : all)
                     result[py::str(t.name)] =
                         py::make_tuple(t.floats, t.width, bytes_of(std::as_bytes(std::span(t.values))));
                 return result;
             }),
             py::arg("tokens"), py::arg("chunk") = 0, py::arg("depth") = 0,
             "name -> (whether fp32, else int32; width; [rows, width] as bytes)")
        .def("rewind", alone([](Session& s, u32 length) { s.rewind(length); }), NoGil(), py::arg("length"))
        .def("save", alone([](Session& s, const std::string& path) { s.save(path); }), NoGil(),
             py::arg("path"))
        .def("load", alone([](Session& s, const std::string& path) { s.load(path); }), NoGil(),
             py::arg("path"))
        .def("state_digest", alone([](Session& s) { return s.state_digest(); }), NoGil())
        .def("state_parts", alone([](Session& s) { return s.state_parts(); }), NoGil(),
             "(name, digest) of each tensor of the state.")
        .def("damage", alone([](Session& s, const std::string& part) { s.damage(part); }), NoGil(),
             py::arg("part"), "Flips a bit of one tensor of the state; for tests.")
        .def("force_drafts", alone([](Session& s, Ids drafts) { s.force_drafts(std::move(drafts)); }),
             NoGil(), py::arg("drafts"), "Replaces the drafts of the next step; for tests.");
}

void bind_batch(py::module_& module) {
    using runtime::Batch;
    py::class_<Exclusive<Batch>>(module, "Batch", "Several timelines of an Engine, decoded together.")
        .def(py::init([](const std::shared_ptr<Engine>& engine, u32 slots) {
                 return std::make_unique<Exclusive<Batch>>(engine, slots);
             }),
             NoGil(), py::arg("engine"), py::arg("slots"))
        .def_property_readonly("num_slots", alone([](Batch& b) { return b.num_slots(); }))
        .def("tokens", alone([](Batch& b, u32 slot) { return std::vector<i32>(b.tokens(slot)); }),
             py::arg("slot"))
        .def("room", alone([](Batch& b, u32 slot) { return b.room(slot); }), py::arg("slot"))
        .def("start",
             alone([](Batch& b, u32 slot, const std::vector<i32>& tokens, float temperature, i32 top_k,
                      float top_p, float min_p, u64 seed) {
                 b.start(slot, tokens, {temperature, top_k, top_p, min_p, seed});
             }),
             NoGil(), py::arg("slot"), py::arg("tokens"), py::kw_only(), py::arg("temperature") = 0.0f,
             py::arg("top_k") = 0, py::arg("top_p") = 1.0f, py::arg("min_p") = 0.0f, py::arg("seed") = 0)
        .def("stop", alone([](Batch& b, u32 slot) { b.stop(slot); }), py::arg("slot"))
        .def("step", alone([](Batch& b) { return b.step(); }), NoGil(),
             "The next token of each slot; -1 where there is none.")
        .def("logits", alone([](Batch& b, u32 slot) { return fp32_bytes(b.logits(slot)); }), py::arg("slot"));
}

}  // namespace

void bind_runtime(py::module_& module) {
    bind_checkpoint(module);
    bind_engine(module);
    bind_session(module);
    bind_batch(module);
}

}  // namespace deep_gemm::python
