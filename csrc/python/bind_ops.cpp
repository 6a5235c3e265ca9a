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
        : function_(function + 3),
          rest_(given.attr("copy")()),
          device_(take("device")),
          reader_(device_.ptr(), function_) {}

    void in(const char* name, TensorView& view) { read(name, view, false); }
    void out(const char* name, TensorView& view) { read(name, view, true); }
    template <typename T>
    void value(const char* name, T& field) {
        const py::object given = take(name);
        if (given.is_none()) return;
        try {
            field = given.cast<T>();
        } catch (const py::cast_error&) {
            fail(ErrorKind::type, "{}: {} is {}, expected a number; convert it", function_, name,
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
        fail(ErrorKind::value, "{}: {} is '{}', expected one of {}; pass one of them", function_, name, text,
             expected);
    }
    // The stream: given, or the framework's current one. Call last.
    [[nodiscard]] void* finish() {
        const py::object stream = take("stream");
        for (const auto& [key, ignored] : rest_)
            fail(ErrorKind::type, "{}() has no argument '{}'", function_, py::cast<std::string>(key));
        return reader_.stream(stream.ptr());
    }

  private:
    py::object take(const char* name) {
        return rest_.contains(name) ? rest_.attr("pop")(name).cast<py::object>() : py::none();
    }
    void read(const char* name, TensorView& view, bool writable) {
        const py::object given = take(name);
        if (!given.is_none()) view = reader_.read(given.ptr(), name, writable);
    }

    const char* function_;  // without "op_"
    py::dict rest_;
    py::object device_;
    TensorReader reader_;
};

constexpr std::initializer_list<RowFinish> kFinishes = {RowFinish::none, RowFinish::fp8_round_trip,
                                                        RowFinish::hadamard, RowFinish::hadamard_fp4};

void rows(Keywords& k, const char* name, const char* page_rows, const char* table, LatentRows& rows,
          bool writable) {
    writable ? k.out(name, rows.data) : k.in(name, rows.data);
    k.value(page_rows, rows.page_rows);
    k.in(table, rows.table);
}

void fields(Keywords& k, ProjectArguments& a) {
    k.in("x", a.x);
    k.in("x_scale", a.x_scale);
    k.in("w", a.w);
    k.in("w_scale", a.w_scale);
    k.in("add", a.add);
    k.value("round_x", a.round_x);
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
void narrow(Keywords& k, NarrowCopy& copy) {
    k.choice("recipe", copy.recipe, {Recipe::fp8_128, Recipe::mxfp4, Recipe::nvfp4});
    k.out("codes", copy.codes);
    k.out("scales", copy.scales);
    k.out("global_scale", copy.global_scale);
}
void fields(Keywords& k, RmsNormArguments& a) {
    k.in("x", a.x);
    k.in("weight", a.weight);
    k.value("eps", a.eps);
    k.choice("rule", a.narrow.rule, {ScaleRule::exact, ScaleRule::up, ScaleRule::nearest});
    k.out("y", a.y);
    narrow(k, a.narrow);
}
void fields(Keywords& k, HcPreArguments& a) {
    k.in("add", a.add);
    a.add.present() ? k.out("x", a.x) : k.in("x", a.x);
    narrow(k, a.narrow);
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
    rows(k, "rows", "page_rows", "table", a.rows, true);
}
void fields(Keywords& k, CacheWriteArguments& a) {
    k.in("x", a.x);
    k.in("positions", a.positions);
    k.in("sequences", a.sequences);
    k.in("table", a.table);
    k.out("rows", a.rows);
}
void fields(Keywords& k, IndexQueryArguments& a) {
    k.in("x", a.x);
    k.in("frequencies", a.frequencies);
    k.in("positions", a.positions);
    k.choice("finish", a.finish, kFinishes);
    k.out("y", a.y);
}
void fields(Keywords& k, CompressorArguments& a) {
    k.in("kv", a.kv);
    k.in("gate", a.gate);
    k.in("ape", a.ape);
    k.in("weight", a.weight);
    k.in("frequencies", a.frequencies);
    k.in("positions", a.positions);
    k.in("sequences", a.sequences);
    k.out("state", a.state);
    k.out("journal", a.journal);
    k.value("ratio", a.ratio);
    k.value("overlap", a.overlap);
    k.choice("finish", a.finish, kFinishes);
    k.value("eps", a.eps);
    rows(k, "rows", "page_rows", "table", a.rows, true);
}
void fields(Keywords& k, CompressorRestoreArguments& a) {
    k.in("journal", a.journal);
    k.in("row", a.row);
    k.value("sequence", a.sequence);
    k.out("state", a.state);
}
void fields(Keywords& k, IndexScoreArguments& a) {
    k.in("query", a.query);
    k.in("weights", a.weights);
    rows(k, "rows", "page_rows", "table", a.rows, false);
    k.in("positions", a.positions);
    k.in("sequences", a.sequences);
    k.value("ratio", a.ratio);
    k.value("only_above", a.only_above);
    k.value("scale", a.scale);
    k.out("scores", a.scores);
    k.out("peaks", a.peaks);
}
void fields(Keywords& k, IndexSelectArguments& a) {
    k.in("query", a.query);
    k.in("frequencies", a.frequencies);
    k.in("weights", a.weights);
    rows(k, "rows", "page_rows", "table", a.rows, false);
    k.in("positions", a.positions);
    k.in("sequences", a.sequences);
    k.choice("finish", a.finish, kFinishes);
    k.value("ratio", a.ratio);
    k.value("scale", a.scale);
    k.out("picks", a.picks);
}
void fields(Keywords& k, TopKArguments& a) {
    k.in("scores", a.scores);
    k.in("positions", a.positions);
    k.in("peaks", a.peaks);
    k.value("ratio", a.ratio);
    k.out("picks", a.picks);
}
void fields(Keywords& k, LatentAttentionArguments& a) {
    k.in("q", a.q);
    rows(k, "ring", "ring_page_rows", "ring_table", a.ring, false);
    rows(k, "compressed", "compressed_page_rows", "compressed_table", a.compressed, false);
    k.in("picks", a.picks);
    k.in("sinks", a.sinks);
    k.in("frequencies", a.frequencies);
    k.in("positions", a.positions);
    k.in("sequences", a.sequences);
    k.value("window", a.window);
    k.value("ratio", a.ratio);
    k.value("scale", a.scale);
    k.value("raw_queries", a.raw_queries);
    k.value("eps", a.eps);
    k.out("records", a.records);
    k.out("out", a.out);
}
void fields(Keywords& k, GqaArguments& a) {
    k.in("q", a.q);
    k.in("keys", a.keys);
    k.in("values", a.values);
    k.in("positions", a.positions);
    k.in("sequences", a.sequences);
    k.in("table", a.table);
    k.value("scale", a.scale);
    k.out("records", a.records);
    k.out("out", a.out);
    k.out("codes", a.codes);
    k.out("scales", a.scales);
}
void fields(Keywords& k, ArgmaxArguments& a) {
    k.in("logits", a.logits);
    k.out("tokens", a.tokens);
}
void fields(Keywords& k, DistributionArguments& a) {
    k.in("logits", a.logits);
    k.in("temperature", a.temperature);
    k.in("top_k", a.top_k);
    k.in("top_p", a.top_p);
    k.in("min_p", a.min_p);
    k.out("probabilities", a.probabilities);
}
void fields(Keywords& k, DrawArguments& a) {
    k.in("probabilities", a.probabilities);
    k.in("seed", a.seed);
    k.in("positions", a.positions);
    k.value("purpose", a.purpose);
    k.out("tokens", a.tokens);
}
void fields(Keywords& k, AcceptArguments& a) {
    k.in("tokens", a.tokens);
    k.in("targets", a.targets);
    k.in("p", a.p);
    k.in("q", a.q);
    k.in("seed", a.seed);
    k.in("positions", a.positions);
    k.out("record", a.record);
}
void fields(Keywords& k, PositionsArguments& a) {
    k.in("base", a.base);
    k.in("count", a.count);
    k.value("offset", a.offset);
    k.out("positions", a.positions);
}

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

void bind_ops(py::module_& module) {
    bind(module, "op_project", &project);
    bind(module, "op_expert_up", &expert_up);
    bind(module, "op_expert_down", &expert_down);
    bind(module, "op_embed", &embed);
    bind(module, "op_expand_streams", &expand_streams);
    bind(module, "op_rms_norm", &rms_norm);
    bind(module, "op_hc_pre", &hc_pre);
    bind(module, "op_hc_post", &hc_post);
    bind(module, "op_hc_head", &hc_head);
    bind(module, "op_route", &route);
    bind(module, "op_rope", &rope);
    bind(module, "op_latent_write", &latent_write);
    bind(module, "op_cache_write", &cache_write);
    bind(module, "op_index_query", &index_query);
    module.def("op_gqa_records_shape", &gqa_records_shape, py::arg("tokens"), py::arg("heads"),
               py::arg("rows"), py::arg("d"));
    module.def(
        "op_rope_frequencies",
        [](u32 dims, double theta, double yarn_factor, double yarn_original_context, double yarn_beta_fast,
           double yarn_beta_slow) {
            return rope_frequencies(
                {dims, theta, yarn_factor, yarn_original_context, yarn_beta_fast, yarn_beta_slow});
        },
        py::arg("dims"), py::arg("theta"), py::arg("yarn_factor"), py::arg("yarn_original_context"),
        py::arg("yarn_beta_fast"), py::arg("yarn_beta_slow"), "See deep_gemm.ops.");
    bind(module, "op_compressor_update", &compressor_update);
    bind(module, "op_compressor_restore", &compressor_restore);
    bind(module, "op_index_scores", &index_scores);
    bind(module, "op_index_select", &index_select);
    bind(module, "op_top_k", &top_k);
    bind(module, "op_latent_attention", &latent_attention);
    bind(module, "op_gqa_attention", &gqa_attention);
    bind(module, "op_argmax", &argmax);
    bind(module, "op_sample_distribution", &sample_distribution);
    bind(module, "op_sample_draw", &sample_draw);
    bind(module, "op_accept_drafts", &accept_drafts);
    bind(module, "op_fill_positions", &fill_positions);
}

}  // namespace deep_gemm::python
