#include "runtime/synthetic.h"

#include "base/error.h"
#include "base/hash.h"
#include "runtime/model.h"

#include <algorithm>
#include <cstring>
#include <map>

namespace deep_gemm::runtime {

namespace {

constexpr u64 kPeriod = u64{16} << 20;  // bytes after which values repeat
constexpr u64 kShift = u64{64} << 10;   // between the starts of tensors that share a pool
constexpr u32 kStarts = 4;

// SplitMix64: the same values everywhere.
class Random {
  public:
    explicit Random(u64 seed) : state_(seed) {}
    u64 next() {
        u64 z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }

  private:
    u64 state_;
};

bool ends_with_one_of(std::string_view name, std::initializer_list<std::string_view> ends) {
    return std::any_of(ends.begin(), ends.end(), [&](std::string_view end) { return name.ends_with(end); });
}

// What released checkpoints store a matrix as.
Storage storage_of(std::string_view architecture, bool fp8, std::string_view name) {
    if (architecture != "DeepSeek-V4")
        return !fp8 || ends_with_one_of(name, {"embed_tokens", "lm_head", "mlp.gate"}) ? Storage::bf16
                                                                                       : Storage::f8_e4m3;
    if (name.find("ffn.experts.") != std::string_view::npos) return Storage::i8;
    return ends_with_one_of(name, {"embed", "head", "gate", "compressor.wkv", "weights_proj"})
               ? Storage::bf16
               : Storage::f8_e4m3;
}

// Sixteen bits of bf16, or of the upper half of fp32: 2^-8 to 2^-4 with a sign; around one for norms.
u16 real_bits(u64 random, bool norm) {
    if (norm) return static_cast<u16>(0x3f80 | (random & 0x1f));
    const u16 exponent = static_cast<u16>(119 + (random >> 32) % 4);
    return static_cast<u16>((random & 0x807f) | exponent << 7);
}

class Pools {
  public:
    explicit Pools(std::vector<std::vector<std::byte>>& memory) : memory_(memory) {}

    // Asks for room for `bytes` of a kind; all must have asked before the first take().
    void want(Storage storage, bool norm, u64 bytes) {
        u64& most = wanted_[{storage, norm}];
        most = std::max(most, bytes);
    }
    std::span<const std::byte> take(const std::string& name, Storage storage, bool norm, u64 bytes) {
        const std::vector<std::byte>& pool = pool_of(storage, norm);
        // Scales start as their weights do, so that few pairs of the two exist.
        const u64 start = hash_of(std::string_view(name).substr(0, name.rfind('.'))).low % kStarts * kShift;
        return std::span(pool).subspan(start, bytes);
    }
    // Ids below `count`, of a tensor of their own.
    std::span<const std::byte> ids(u64 elements, u64 count) {
        std::vector<std::byte>& values = memory_.emplace_back(elements * sizeof(i64));
        Random random(elements);
        for (u64 i = 0; i < elements; ++i) {
            const u64 id = random.next() % count;
            std::memcpy(values.data() + i * sizeof(i64), &id, sizeof id);
        }
        return values;
    }

  private:
    const std::vector<std::byte>& pool_of(Storage storage, bool norm) {
        const std::pair key(storage, norm);
        const auto found = made_.find(key);
        if (found != made_.end()) return memory_[found->second];
        std::vector<std::byte>& pool =
            memory_.emplace_back(align_up(wanted_[key] + kStarts * kShift, u64{8}));
        made_[key] = memory_.size() - 1;
        const u64 fresh = std::min<u64>(pool.size(), kPeriod);
        Random random(static_cast<u64>(storage) + 1);
        for (u64 at = 0; at < fresh; at += 8) {
            const u64 word = word_of(random, storage, norm);
            std::memcpy(pool.data() + at, &word, sizeof word);
        }
        for (u64 at = fresh; at < pool.size(); at += kPeriod)
            std::memcpy(pool.data() + at, pool.data(), std::min(kPeriod, pool.size() - at));
        return pool;
    }
    static u64 word_of(Random& random, Storage storage, bool norm) {
        const u64 bits = random.next();
        switch (storage) {
            case Storage::f8_e4m3: return bits & 0xbfbfbfbfbfbfbfbf;                         // below 2
            case Storage::f8_e8m0: return (bits & 0x0101010101010101) + 0x7979797979797979;  // 2^-6, 2^-5
            case Storage::bf16: {
                u64 word = 0;
                for (u32 i = 0; i < 4; ++i) word |= u64{real_bits(random.next(), norm)} << 16 * i;
                return word;
            }
            case Storage::f32:
                return u64{real_bits(bits, norm)} << 16 | u64{real_bits(random.next(), norm)} << 48;
            default: return bits;  // pairs of E2M1
        }
    }

    std::vector<std::vector<std::byte>>& memory_;
    std::map<std::pair<Storage, bool>, u64> wanted_;
    std::map<std::pair<Storage, bool>, size_t> made_;
};

Tensor tensor_of(std::string name, Storage storage, std::vector<u64> shape) {
    return {.name = std::move(name), .storage = storage, .shape = std::move(shape), .bytes = {}, .file = 0};
}

}  // namespace

Checkpoint synthetic_checkpoint(const std::string& text) {
    constexpr const char* kSource = "synthetic config";
    Json json = Json::parse(text, kSource);
    const std::unique_ptr<const ModelConfig> config = parse_config(json, kSource);
    const bool fp8 = json.find("quantization_config") != nullptr;  // of Qwen3: DeepSeek-V4 always is
    std::vector<Tensor> tensors;
    for (const Expected& entry : config->expected_tensors()) {
        if (entry.role != Role::linear && entry.role != Role::table) {
            const bool norm = entry.name.find("norm") != std::string::npos;
            tensors.push_back(tensor_of(entry.name,
                                        entry.role == Role::ids ? Storage::i64
                                        : norm                  ? Storage::bf16
                                                                : Storage::f32,
                                        entry.shape));
            continue;
        }
        const Storage storage = storage_of(config->facts().architecture, fp8, entry.name);
        const u64 n = entry.shape[0], k = entry.shape[1];
        tensors.push_back(
            tensor_of(entry.name + ".weight", storage, {n, storage == Storage::i8 ? k / 2 : k}));
        if (storage == Storage::i8)
            tensors.push_back(tensor_of(entry.name + ".scale", Storage::f8_e8m0, {n, k / 32}));
        if (storage == Storage::f8_e4m3)
            tensors.push_back(tensor_of(entry.name + ".scale", Storage::f8_e8m0,
                                        {ceil_div(n, u64{128}), ceil_div(k, u64{128})}));
    }
    std::vector<std::vector<std::byte>> memory;
    Pools pools(memory);
    const auto is_norm = [](const Tensor& t) { return t.name.find("norm") != std::string::npos; };
    for (const Tensor& t : tensors)
        if (t.storage != Storage::i64) pools.want(t.storage, is_norm(t), bytes_of(t.storage, t.elements()));
    const Json* experts = json.find("n_routed_experts");
    for (Tensor& t : tensors)
        t.bytes = t.storage == Storage::i64
                      ? pools.ids(t.elements(), experts ? experts->as_unsigned(kSource) : 1)
                      : pools.take(t.name, t.storage, is_norm(t), bytes_of(t.storage, t.elements()));
    return Checkpoint::in_memory(std::move(tensors), std::move(memory), std::move(json));
}

}  // namespace deep_gemm::runtime
