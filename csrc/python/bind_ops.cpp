// The model operations (op/model_ops.h) for Python. Every function takes keywords only: tensors by the names
// of the arguments struct, None or nothing for absent ones, numbers by value, `device` and `stream` as the
// GEMMs do. deep_gemm.ops has the documented signatures.
#include "op/model_ops.h"
#include "python/casters.h"
#include "python/tensor.h"

#include "base/error.h"

#include <pybind11/stl.h>

namespace deep_gemm::python {

namespace {

using namespace op;

// Takes arguments out of the keywords; what is left at the end is an error.
class Keywords {
  public:
    Keywords(const char* function, const py::kwargs& given)
        : function_(function), rest_(given.attr("copy")()), device_(take("device")), reader_(device_.ptr()) {}

    void in(const char* name, TensorView& view) { read(name, view, false); }
    void out(const char* name, TensorView& view) { read(name, view, true); }
    template <typename T>
    void value(const char* name, T& field) {
        const py::object given = take(name);
        if (given.is_none()) return;
        try {
            field = given.cast<T>();
        } catch (const py::cast_error&) {
            fail(ErrorKind::type, "{}: {} is {}, expected a number", function_, name,
                 py::cast<std::string>(py::repr(given)));
        }
    }
    template <typename Enum>
    void choice(const char* name, Enum& field, std::initializer_list<Enum> all) {
        const py::object given = take(name);
        if (given.is_none()) return;
        const auto text = py::cast<std::string>(py::str(given));
        std::string expected;
        for (const Enum one : all) {
            if (text == name_of(one)) {
                field = one;
                return;
            }
            expected += fmt::format("{}{}", expected.empty() ? "" : ", ", name_of(one));
        }
        fail(ErrorKind::value, "{}: {} is '{}', expected one of {}", function_, name, text, expected);
    }
    // The stream: given, or the framework's current one. Call last.
    [[nodiscard]] void* finish() {
        const py::object stream = take("stream");
        for (const auto& [key, ignored] : rest_)
            fail(ErrorKind::type, "{}() has no argument '{}'", function_, py::cast<std::string>(key));
        return stream.is_none() ? reader_.current_stream() : reinterpret_cast<void*>(stream.cast<u64>());
    }

  private:
    py::object take(const char* name) {
        return rest_.contains(name) ? rest_.attr("pop")(name).cast<py::object>() : py::none();
    }
    void read(const char* name, TensorView& view, bool writable) {
        const py::object given = take(name);
        if (!given.is_none()) view = reader_.read(given.ptr(), name, writable);
    }

    const char* function_;
    py::dict rest_;
    py::object device_;
    TensorReader reader_;
};

constexpr std::initializer_list<RowFinish> kFinishes = {RowFinish::none, RowFinish::fp8_round_trip,
                                                        RowFinish::hadamard, RowFinish::hadamard_fp4};

void rows(Keywords& k, const char* name, const char* page_rows, LatentRows& rows, bool writable) {
    writable ? k.out(name, rows.data) : k.in(name, rows.data);
    k.value(page_rows, rows.page_rows);
}

void fields(Keywords& k, ProjectArguments& a) {
    k.in("x", a.x);
    k.in("x_scale", a.x_scale);
    k.in("w", a.w);
    k.in("w_scale", a.w_scale);
    k.in("add", a.add);
    k.out("y", a.y);
}
void fields(Keywords& k, ExpertUpArguments& a) {
    k.in("x", a.x);
    k.in("x_scale", a.x_scale);
    k.in("w1", a.w1);
    k.in("w1_scale", a.w1_scale);
    k.in("w3", a.w3);
    k.in("w3_scale", a.w3_scale);
    k.in("experts", a.experts);
    k.in("weights", a.weights);
    k.value("limit", a.limit);
    k.out("mid", a.mid);
}
void fields(Keywords& k, ExpertDownArguments& a) {
    k.in("mid", a.mid);
    k.in("mid_scale", a.mid_scale);
    k.in("w2", a.w2);
    k.in("w2_scale", a.w2_scale);
    k.in("experts", a.experts);
    k.in("weights", a.weights);
    k.in("add", a.add);
    k.out("y", a.y);
}
void fields(Keywords& k, EmbedArguments& a) {
    k.in("tokens", a.tokens);
    k.in("table", a.table);
    k.out("x", a.x);
}
void fields(Keywords& k, ExpandArguments& a) {
    k.in("value", a.value);
    k.value("accumulate", a.accumulate);
    k.out("x", a.x);
}
void fields(Keywords& k, RmsNormArguments& a) {
    k.in("x", a.x);
    k.in("weight", a.weight);
    k.value("eps", a.eps);
    k.out("y", a.y);
}
void fields(Keywords& k, HcPreArguments& a) {
    k.in("x", a.x);
    k.in("fn", a.fn);
    k.in("base", a.base);
    k.in("scale", a.scale);
    k.in("weight", a.weight);
    k.value("sinkhorn_iterations", a.sinkhorn_iterations);
    k.value("hc_eps", a.hc_eps);
    k.value("rms_eps", a.rms_eps);
    k.out("y", a.y);
    k.out("post", a.post);
    k.out("comb", a.comb);
}
void fields(Keywords& k, HcPostArguments& a) {
    k.in("x", a.x);
    k.in("y", a.y);
    k.in("post", a.post);
    k.in("comb", a.comb);
    k.out("out", a.out);
}
void fields(Keywords& k, HcHeadArguments& a) {
    k.in("x", a.x);
    k.in("fn", a.fn);
    k.in("base", a.base);
    k.in("scale", a.scale);
    k.in("weight", a.weight);
    k.value("hc_eps", a.hc_eps);
    k.value("rms_eps", a.rms_eps);
    k.out("y", a.y);
}
void fields(Keywords& k, RouterArguments& a) {
    k.in("logits", a.logits);
    k.in("bias", a.bias);
    k.in("hash", a.hash);
    k.in("tokens", a.tokens);
    k.choice("score", a.score, {RouterScore::sqrt_softplus, RouterScore::softmax});
    k.value("normalize", a.normalize);
    k.value("scale", a.scale);
    k.out("experts", a.experts);
    k.out("weights", a.weights);
}
void fields(Keywords& k, RopeArguments& a) {
    k.in("x", a.x);
    k.in("weight", a.weight);
    k.in("frequencies", a.frequencies);
    k.in("positions", a.positions);
    k.value("norm", a.norm);
    k.value("inverse", a.inverse);
    k.choice("pairs", a.pairs, {RopePairs::interleaved, RopePairs::halves});
    k.value("eps", a.eps);
    k.out("y", a.y);
}
void fields(Keywords& k, LatentWriteArguments& a) {
    k.in("x", a.x);
    k.in("weight", a.weight);
    k.in("frequencies", a.frequencies);
    k.in("positions", a.positions);
    k.in("sequences", a.sequences);
    k.value("fp8_round_trip", a.fp8_round_trip);
    k.value("eps", a.eps);
    rows(k, "rows", "page_rows", a.rows, true);
}
void fields(Keywords& k, CacheWriteArguments& a) {
    k.in("x", a.x);
    k.in("positions", a.positions);
    k.in("sequences", a.sequences);
    k.out("rows", a.rows);
}
void fields(Keywords& k, IndexQueryArguments& a) {
    k.in("x", a.x);
    k.in("frequencies", a.frequencies);
    k.in("positions", a.positions);
    k.choice("finish", a.finish, kFinishes);
    k.out("y", a.y);
}
//@@FIELDS

template <typename Arguments>
void bind(py::module_& module, const char* name, void (*operation)(const Arguments&)) {
    module.def(
        name,
        [name, operation](const py::kwargs& given) {
            Keywords keywords(name, given);
            Arguments arguments;
            fields(keywords, arguments);
            arguments.stream = keywords.finish();
            const py::gil_scoped_release no_gil;
            operation(arguments);
        },
        "See deep_gemm.ops.");
}

}  // namespace

void bind_ops(py::module_& parent) {
    py::module_ module = parent.def_submodule("ops", "The model operations; deep_gemm.ops documents them.");
    bind(module, "project", &project);
    bind(module, "expert_up", &expert_up);
    bind(module, "expert_down", &expert_down);
    bind(module, "embed", &embed);
    bind(module, "expand_streams", &expand_streams);
    bind(module, "rms_norm", &rms_norm);
    bind(module, "hc_pre", &hc_pre);
    bind(module, "hc_post", &hc_post);
    bind(module, "hc_head", &hc_head);
    bind(module, "route", &route);
    bind(module, "rope", &rope);
    bind(module, "latent_write", &latent_write);
    bind(module, "cache_write", &cache_write);
    bind(module, "index_query", &index_query);
    module.def(
        "rope_frequencies",
        [](u32 dims, double theta, double yarn_factor, double yarn_original_context, double yarn_beta_fast,
           double yarn_beta_slow) {
            return rope_frequencies({dims, theta, yarn_factor, yarn_original_context, yarn_beta_fast,
                                     yarn_beta_slow});
        },
        py::arg("dims"), py::arg("theta"), py::arg("yarn_factor"), py::arg("yarn_original_context"),
        py::arg("yarn_beta_fast"), py::arg("yarn_beta_slow"), "See deep_gemm.ops.");
    //@@BIND
}

}  // namespace deep_gemm::python
