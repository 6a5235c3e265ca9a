#include "runtime/inventory.h"

#include "base/error.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <unordered_set>

namespace deep_gemm::runtime {

namespace {

class List {
  public:
    void plain(std::string name, std::vector<u64> shape) {
        entries.push_back({std::move(name), Role::plain, std::move(shape)});
    }
    void linear(std::string name, u64 n, u64 k) {
        entries.push_back({std::move(name), Role::linear, {n, k}});
    }
    std::vector<Expected> entries;
};

void add_compressor(List& list, const DeepseekV4Config& c, const LayerConfig& layer, const std::string& at,
                    u64 dim) {
    const u64 width = layer.overlap() * dim;
    list.linear(at + "wkv", width, c.hidden);
    list.linear(at + "wgate", width, c.hidden);
    list.plain(at + "ape", {layer.compress_ratio, width});
    list.plain(at + "norm.weight", {dim});
}

void add_attention(List& list, const DeepseekV4Config& c, const LayerConfig& layer, const std::string& at) {
    const u64 heads = c.num_heads;
    list.linear(at + "wq_a", c.q_rank, c.hidden);
    list.plain(at + "q_norm.weight", {c.q_rank});
    list.linear(at + "wq_b", heads * c.head_dim, c.q_rank);
    list.linear(at + "wkv", c.head_dim, c.hidden);
    list.plain(at + "kv_norm.weight", {c.head_dim});
    list.plain(at + "attn_sink", {heads});
    list.linear(at + "wo_a", u64{c.o_groups} * c.o_rank, heads / c.o_groups * c.head_dim);
    list.linear(at + "wo_b", c.hidden, u64{c.o_groups} * c.o_rank);
    if (layer.compressed()) add_compressor(list, c, layer, at + "compressor.", c.head_dim);
    if (!layer.indexed()) return;
    list.linear(at + "indexer.wq_b", u64{c.index_heads} * c.index_dim, c.q_rank);
    list.linear(at + "indexer.weights_proj", c.index_heads, c.hidden);
    add_compressor(list, c, layer, at + "indexer.compressor.", c.index_dim);
}

void add_expert(List& list, const DeepseekV4Config& c, const std::string& at) {
    list.linear(at + "w1", c.expert_width, c.hidden);
    list.linear(at + "w2", c.hidden, c.expert_width);
    list.linear(at + "w3", c.expert_width, c.hidden);
}

void add_block(List& list, const DeepseekV4Config& c, const LayerConfig& layer, const std::string& at) {
    for (const char* site : {"hc_attn", "hc_ffn"}) {
        list.plain(at + site + "_fn", {c.mixes(), u64{c.streams} * c.hidden});
        list.plain(at + site + "_base", {c.mixes()});
        list.plain(at + site + "_scale", {3});
    }
    list.plain(at + "attn_norm.weight", {c.hidden});
    list.plain(at + "ffn_norm.weight", {c.hidden});
    add_attention(list, c, layer, at + "attn.");
    list.linear(at + "ffn.gate", c.num_experts, c.hidden);
    if (layer.hash_routed)
        list.entries.push_back({at + "ffn.gate.tid2eid", Role::ids, {c.vocab, c.top_k}});
    else
        list.plain(at + "ffn.gate.bias", {c.num_experts});
    for (u32 e = 0; e < c.num_experts; ++e) add_expert(list, c, fmt::format("{}ffn.experts.{}.", at, e));
    add_expert(list, c, at + "ffn.shared_experts.");
}

void add_head(List& list, const DeepseekV4Config& c, const std::string& at) {
    list.plain(at + "hc_head_fn", {c.streams, u64{c.streams} * c.hidden});
    list.plain(at + "hc_head_base", {c.streams});
    list.plain(at + "hc_head_scale", {1});
    list.plain(at + "norm.weight", {c.hidden});
}

bool is_one_of(Storage storage, std::initializer_list<Storage> allowed) {
    return std::find(allowed.begin(), allowed.end(), storage) != allowed.end();
}

class Checker {
  public:
    explicit Checker(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

    void check(const Expected& expected) {
        if (expected.role == Role::linear) return check_linear(expected);
        const Tensor* tensor = find(expected.name, expected.shape);
        if (!tensor) return;
        const bool right = expected.role == Role::ids
                               ? is_one_of(tensor->storage, {Storage::i64, Storage::i32})
                               : is_one_of(tensor->storage, {Storage::f32, Storage::bf16, Storage::f16});
        if (!right) wrong_storage(*tensor, expected.role == Role::ids ? "I64 or I32" : "F32, BF16 or F16");
    }

    void check_extra() {
        for (const Tensor& tensor : checkpoint_.tensors())
            if (!used_.contains(tensor.name))
                problems.push_back(fmt::format("extra: {} {} {}", tensor.name, row_of(tensor.storage).name,
                                               text_of(tensor.shape)));
    }

    std::vector<std::string> problems;

  private:
    const Tensor* find(const std::string& name, const std::vector<u64>& shape) {
        const Tensor* tensor = checkpoint_.find(name);
        if (!tensor) {
            problems.push_back(fmt::format("missing: {} {}", name, text_of(shape)));
            return nullptr;
        }
        used_.insert(tensor->name);
        if (tensor->shape == shape) return tensor;
        problems.push_back(
            fmt::format("shape: {} is {}, expected {}", name, text_of(tensor->shape), text_of(shape)));
        return nullptr;
    }
    void wrong_storage(const Tensor& tensor, const char* expected) {
        problems.push_back(
            fmt::format("dtype: {} is {}, expected {}", tensor.name, row_of(tensor.storage).name, expected));
    }
    void check_linear(const Expected& expected) {
        const u64 n = expected.shape[0], k = expected.shape[1];
        const std::string weight = expected.name + ".weight", scale = expected.name + ".scale";
        const Tensor* stored = checkpoint_.find(weight);
        const bool fp4 = stored && stored->storage == Storage::i8;
        const Tensor* tensor = find(weight, fp4 ? std::vector<u64>{n, k / 2} : expected.shape);
        if (!tensor) {
            if (checkpoint_.find(scale)) used_.insert(checkpoint_.find(scale)->name);
            return;
        }
        if (fp4) {
            const Tensor* scales = find(scale, {n, (k + 31) / 32});
            if (scales && scales->storage != Storage::f8_e8m0) wrong_storage(*scales, "F8_E8M0");
        } else if (tensor->storage == Storage::f8_e4m3) {
            const Tensor* scales = find(scale, {(n + 127) / 128, (k + 127) / 128});
            if (scales && !is_one_of(scales->storage, {Storage::f8_e8m0, Storage::f32, Storage::bf16}))
                wrong_storage(*scales, "F8_E8M0, F32 or BF16");
        } else if (!is_one_of(tensor->storage, {Storage::f32, Storage::bf16, Storage::f16, Storage::q8_0})) {
            wrong_storage(*tensor, "F8_E4M3, I8, BF16, F16, F32 or Q8_0");
        }
    }

    const Checkpoint& checkpoint_;
    std::unordered_set<std::string_view> used_;
};

}  // namespace

std::vector<Expected> expected_tensors(const DeepseekV4Config& c) {
    List list;
    list.linear("embed", c.vocab, c.hidden);
    list.linear("head", c.vocab, c.hidden);
    add_head(list, c, "");
    for (size_t i = 0; i < c.layers.size(); ++i)
        add_block(list, c, c.layers[i], fmt::format("layers.{}.", i));
    for (u32 i = 0; i < c.num_mtp; ++i) {
        const std::string at = fmt::format("mtp.{}.", i);
        add_block(list, c, LayerConfig{}, at);
        add_head(list, c, at);
        list.linear(at + "e_proj", c.hidden, c.hidden);
        list.linear(at + "h_proj", c.hidden, c.hidden);
        list.plain(at + "enorm.weight", {c.hidden});
        list.plain(at + "hnorm.weight", {c.hidden});
    }
    return std::move(list.entries);
}

std::vector<std::string> problems_of(const Checkpoint& checkpoint, const std::vector<Expected>& expected) {
    Checker checker(checkpoint);
    for (const Expected& entry : expected) checker.check(entry);
    checker.check_extra();
    return std::move(checker.problems);
}

void check_complete(const Checkpoint& checkpoint, const std::vector<Expected>& expected) {
    const std::vector<std::string> problems = problems_of(checkpoint, expected);
    const size_t shown = std::min<size_t>(problems.size(), 12);
    DG_CHECK(problems.empty(), value,
             "checkpoint: {} of its tensors are not as the configuration asks:\n  {}{}", problems.size(),
             fmt::join(problems.begin(), problems.begin() + static_cast<i64>(shown), "\n  "),
             problems.size() > shown ? "\n  ..." : "");
}

}  // namespace deep_gemm::runtime
