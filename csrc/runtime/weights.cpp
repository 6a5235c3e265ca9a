#include "runtime/weights.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace deep_gemm::runtime {

namespace {

template <typename T>
T load(std::span<const std::byte> bytes, u64 index) {
    T value;
    std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
    return value;
}

float fp16_value(u16 bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float sign = bits >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
    return sign * (exponent ? std::ldexp(1024.0f + static_cast<float>(mantissa), exponent - 25)
                            : std::ldexp(static_cast<float>(mantissa), -24));
}

// Exact: every format here is a subset of fp32.
std::vector<float> to_fp32(const Tensor& tensor) {
    std::vector<float> values(tensor.elements());
    for (u64 i = 0; i < values.size(); ++i) {
        switch (tensor.storage) {
            case Storage::f32: values[i] = load<float>(tensor.bytes, i); break;
            case Storage::bf16:
                values[i] = std::bit_cast<float>(u32{load<u16>(tensor.bytes, i)} << 16);
                break;
            case Storage::f16: values[i] = fp16_value(load<u16>(tensor.bytes, i)); break;
            case Storage::f8_e8m0:
                values[i] = std::ldexp(1.0f, static_cast<int>(load<u8>(tensor.bytes, i)) - 127);
                break;
            case Storage::q8_0: {
                const std::span<const std::byte> block = tensor.bytes.subspan(i / 32 * 34, 34);
                values[i] =
                    fp16_value(load<u16>(block, 0)) * static_cast<float>(load<i8>(block.subspan(2), i % 32));
                break;
            }
            default:
                fail(ErrorKind::internal, "weights: {} of {} as fp32", tensor.name,
                     row_of(tensor.storage).name);
        }
    }
    return values;
}

class Loader {
  public:
    Loader(Device& device, const DeepseekV4Config& config, const Checkpoint& checkpoint,
           const LoadProgress& progress)
        : device_(device),
          config_(config),
          checkpoint_(checkpoint),
          progress_(progress),
          total_(checkpoint.bytes()) {}

    DeviceTensor plain(const std::string& name) {
        const Tensor& tensor = get(name);
        const std::vector<float> values = to_fp32(tensor);
        std::vector<i64> shape(tensor.shape.begin(), tensor.shape.end());
        DeviceTensor result = allocate(Format::fp32, std::move(shape));
        upload(result, 0, std::as_bytes(std::span(values)), tensor.bytes.size());
        return result;
    }

    DeviceTensor ids(const std::string& name) {
        const Tensor& tensor = get(name);
        std::vector<i32> values(tensor.elements());
        for (u64 i = 0; i < values.size(); ++i)
            values[i] = tensor.storage == Storage::i64 ? static_cast<i32>(load<i64>(tensor.bytes, i))
                                                       : load<i32>(tensor.bytes, i);
        for (const i32 id : values)
            DG_CHECK(id >= 0 && static_cast<u32>(id) < config_.num_experts, value,
                     "checkpoint: {} names expert {}, expected 0 to {}", name, id, config_.num_experts - 1);
        DeviceTensor result =
            allocate(Format::int32, {static_cast<i64>(tensor.shape[0]), static_cast<i64>(tensor.shape[1])});
        upload(result, 0, std::as_bytes(std::span(values)), tensor.bytes.size());
        return result;
    }

    // Matrices of one shape, stacked if there are several names or `groups` (rows of one matrix as groups).
    Linear linear(const std::vector<std::string>& names, i64 groups = 0) {
        Linear result;
        const Storage storage = get(names[0] + ".weight").storage;
        for (size_t i = 0; i < names.size(); ++i) {
            const Tensor& weight = get(names[i] + ".weight");
            DG_CHECK(weight.storage == storage, value,
                     "checkpoint: {} is {}, {} is {}; expected one format for all", weight.name,
                     row_of(weight.storage).name, names[0] + ".weight", row_of(storage).name);
            append(result.data, weight, i, names.size(), groups);
            if (storage == Storage::i8 || storage == Storage::f8_e4m3)
                append(result.scale, get(names[i] + ".scale"), i, names.size(), groups);
        }
        return result;
    }
    Linear linear(const std::string& name) { return linear(std::vector{name}); }

    HcWeights hc(const std::string& at) {
        return {plain(at + "_fn"), plain(at + "_base"), plain(at + "_scale")};
    }

    HeadWeights head(const std::string& at) { return {hc(at + "hc_head"), plain(at + "norm.weight")}; }

    BlockWeights block(const LayerConfig& layer, const std::string& at) {
        BlockWeights w;
        const std::string attn = at + "attn.", ffn = at + "ffn.";
        w.layer = layer;
        w.attention_hc = hc(at + "hc_attn");
        w.ffn_hc = hc(at + "hc_ffn");
        w.attention_norm = plain(at + "attn_norm.weight");
        w.ffn_norm = plain(at + "ffn_norm.weight");
        w.q_norm = plain(attn + "q_norm.weight");
        w.kv_norm = plain(attn + "kv_norm.weight");
        w.sinks = plain(attn + "attn_sink");
        w.wq_a = linear(attn + "wq_a");
        w.wq_b = linear(attn + "wq_b");
        w.wkv = linear(attn + "wkv");
        w.wo_a = linear({attn + "wo_a"}, config_.o_groups);
        w.wo_b = linear(attn + "wo_b");
        if (layer.compressed()) w.compressor = compressor(attn + "compressor.");
        if (layer.indexed()) {
            w.index_compressor = compressor(attn + "indexer.compressor.");
            w.index_wq_b = linear(attn + "indexer.wq_b");
            w.index_weights = linear(attn + "indexer.weights_proj");
        }
        w.gate = linear(ffn + "gate");
        if (layer.hash_routed)
            w.hash = ids(ffn + "gate.tid2eid");
        else
            w.gate_bias = plain(ffn + "gate.bias");
        w.experts = {experts(ffn, "w1"), experts(ffn, "w2"), experts(ffn, "w3")};
        const std::string shared = ffn + "shared_experts.";
        w.shared = {linear({shared + "w1"}, 1), linear({shared + "w2"}, 1), linear({shared + "w3"}, 1)};
        return w;
    }

    MtpWeights mtp(const std::string& at) {
        MtpWeights w;
        w.block = block(LayerConfig{}, at);
        w.head = head(at);
        w.e_proj = linear(at + "e_proj");
        w.h_proj = linear(at + "h_proj");
        w.e_norm = plain(at + "enorm.weight");
        w.h_norm = plain(at + "hnorm.weight");
        return w;
    }

    [[nodiscard]] u64 device_bytes() const { return device_bytes_; }

  private:
    [[nodiscard]] const Tensor& get(const std::string& name) const {
        const Tensor* tensor = checkpoint_.find(name);
        DG_CHECK(tensor, internal, "weights: {} was not checked", name);
        return *tensor;
    }

    DeviceTensor allocate(Format format, std::vector<i64> shape) {
        DeviceTensor tensor(device_, format, std::move(shape));
        device_bytes_ += tensor.bytes();
        return tensor;
    }

    void upload(const DeviceTensor& target, u64 offset, std::span<const std::byte> bytes, u64 stored_bytes) {
        device_.copy_to_device(target.address() + offset, bytes, nullptr);
        done_ += stored_bytes;
        if (progress_) progress_(done_, total_);
    }

    // Part `index` of `count` of a stacked tensor; the first part allocates all.
    void append(DeviceTensor& stacked, const Tensor& part, size_t index, size_t count, i64 groups) {
        Format format = Format::fp32;  // F32, and what has no format of its own on the device
        switch (part.storage) {
            case Storage::bf16: format = Format::bf16; break;
            case Storage::f8_e4m3: format = Format::fp8_e4m3; break;
            case Storage::f8_e8m0: format = Format::fp8_ue8m0; break;
            case Storage::i8: format = Format::int8; break;
            default: break;
        }
        // Scales of FP8 matrices in BF16 containers become fp32.
        if (part.storage == Storage::bf16 && part.name.ends_with(".scale")) format = Format::fp32;
        if (index == 0) {
            const i64 rows = static_cast<i64>(part.shape[0]), columns = static_cast<i64>(part.shape[1]);
            std::vector<i64> shape{rows, columns};
            if (groups > 0) {
                DG_CHECK(rows % groups == 0, value,
                         "checkpoint: {} has {} rows, expected a multiple of {} groups", part.name, rows,
                         groups);
                shape = {groups, rows / groups, columns};
            } else if (count > 1) {
                shape = {static_cast<i64>(count), rows, columns};
            }
            stacked = allocate(format, std::move(shape));
        }
        const u64 offset = index * (stacked.bytes() / count);
        const bool raw = format != Format::fp32 || part.storage == Storage::f32;
        if (raw) return upload(stacked, offset, part.bytes, part.bytes.size());
        const std::vector<float> values = to_fp32(part);
        upload(stacked, offset, std::as_bytes(std::span(values)), part.bytes.size());
    }

    CompressorWeights compressor(const std::string& at) {
        return {linear(at + "wkv"), linear(at + "wgate"), plain(at + "ape"), plain(at + "norm.weight")};
    }

    Linear experts(const std::string& ffn, const char* name) {
        std::vector<std::string> names;
        for (u32 e = 0; e < config_.num_experts; ++e)
            names.push_back(fmt::format("{}experts.{}.{}", ffn, e, name));
        return linear(names, names.size() == 1 ? 1 : 0);
    }

    Device& device_;
    const DeepseekV4Config& config_;
    const Checkpoint& checkpoint_;
    const LoadProgress& progress_;
    u64 total_ = 0, done_ = 0, device_bytes_ = 0;
};

}  // namespace

ModelWeights load_weights(Device& device, const DeepseekV4Config& config, const Checkpoint& checkpoint,
                          const LoadProgress& progress) {
    Loader loader(device, config, checkpoint, progress);
    ModelWeights weights;
    weights.embed = loader.linear("embed");
    weights.head = loader.linear("head");
    weights.output = loader.head("");
    for (size_t i = 0; i < config.layers.size(); ++i)
        weights.layers.push_back(loader.block(config.layers[i], fmt::format("layers.{}.", i)));
    if (config.num_mtp) weights.mtp = loader.mtp("mtp.0.");
    device.synchronize(nullptr);
    weights.bytes = loader.device_bytes();
    return weights;
}

}  // namespace deep_gemm::runtime
