#include "runtime/weight_loader.h"

#include "base/error.h"
#include "runtime/weight_values.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>

namespace deep_gemm::runtime {

namespace {

// How a matrix, or its scales, lie on a device: as stored; what has no format there as `wide`; scales are
// fp32 or exponents.
Format device_format(Storage storage, bool scale, Format wide) {
    const Format format = format_of(storage);
    if (scale) return format == Format::fp8_ue8m0 ? format : Format::fp32;
    return format == Format::none ? wide : format;
}

// One matrix of packed experts in the smaller form.
u64 packed_bytes_of(u64 n, u64 k) {
    const u64 blocks = fp4_row_blocks(static_cast<u32>(n));
    return blocks * (fp4_k_blocks(static_cast<u32>(k)) * u64{fp4_blob_bytes_of(Fp4Form::mx_e4m3)} +
                     kFp4BlockRows * sizeof(float));
}

// The 3 of "layers.3.attn.wq_a" and of "model.layers.3.mlp.gate".
std::optional<u32> layer_of(std::string_view name) {
    constexpr std::string_view kModel = "model.", kLayers = "layers.";
    if (name.starts_with(kModel)) name.remove_prefix(kModel.size());
    if (!name.starts_with(kLayers)) return std::nullopt;
    name.remove_prefix(kLayers.size());
    u32 layer = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
    return error == std::errc() && end != name.data() + name.size() && *end == '.' ? std::optional(layer)
                                                                                   : std::nullopt;
}

}  // namespace

u64 device_bytes_of(const Checkpoint& checkpoint, const std::vector<Expected>& expected, Format wide) {
    u64 total = 0;
    const auto add = [&](const Tensor* tensor, bool scale) {
        if (!tensor) return;
        if (tensor->storage == Storage::mxfp4_gguf)
            total += tensor->bytes.size();
        else
            total += tensor->elements() * bytes_of(device_format(tensor->storage, scale, wide));
    };
    for (const Expected& entry : expected) {
        if (entry.role == Role::linear || entry.role == Role::table) {
            const Tensor* stored = checkpoint.find(entry.name + ".weight");
            // Experts that are packed, or else as stored, whichever takes more.
            if (stored && wide == Format::bf16 && entry.name.find(".experts.") != std::string::npos &&
                (stored->storage == Storage::i8 || stored->storage == Storage::mxfp4_gguf)) {
                const u64 n = entry.shape[0], k = entry.shape[1];
                total += std::max(n * k / 2 + n * k / 32, packed_bytes_of(n, k));
                continue;
            }
            add(checkpoint.find(entry.name + ".weight"), false);
            add(find_scale(checkpoint, entry.name), true);
        } else if (const Tensor* tensor = checkpoint.find(entry.name)) {
            total += tensor->elements() * sizeof(float);
        }
    }
    return total;
}

LayersThatFit layers_that_fit(const Checkpoint& checkpoint, const std::vector<Expected>& expected,
                              Format wide, u64 room) {
    std::map<u32, std::vector<Expected>> layers;
    std::vector<Expected> rest;
    for (const Expected& entry : expected) {
        const std::optional<u32> layer = layer_of(entry.name);
        (layer ? layers[*layer] : rest).push_back(entry);
    }
    LayersThatFit result{.fit = 0, .of = static_cast<u32>(layers.size())};
    u64 used = device_bytes_of(checkpoint, rest, wide);
    for (const auto& [layer, entries] : layers) {
        used += device_bytes_of(checkpoint, entries, wide);
        result.fit += used <= room;
    }
    return result;
}

Loader::Loader(Device& device, const Checkpoint& checkpoint, Format wide, const LoadProgress& progress)
    : device_(device),
      checkpoint_(checkpoint),
      wide_(wide),
      progress_(progress),
      total_(checkpoint.bytes()) {}

const Tensor& Loader::get(const std::string& name) const {
    const Tensor* tensor = checkpoint_.find(name);
    DG_CHECK(tensor, internal, "weights: {} was not checked", name);
    return *tensor;
}

DeviceTensor Loader::allocate(Format format, std::vector<i64> shape) {
    DeviceTensor tensor(device_, format, std::move(shape));
    device_bytes_ += tensor.bytes();
    return tensor;
}

void Loader::upload(const DeviceTensor& target, u64 offset, std::span<const std::byte> bytes,
                    u64 stored_bytes) {
    device_.copy_to_device(target.address() + offset, bytes, nullptr);
    done_ += stored_bytes;
    if (progress_) progress_(done_, total_);
}

DeviceTensor Loader::plain(const std::string& name) {
    const Tensor& tensor = get(name);
    const std::vector<float> values = to_fp32(tensor);
    DeviceTensor result = allocate(Format::fp32, {tensor.shape.begin(), tensor.shape.end()});
    upload(result, 0, std::as_bytes(std::span(values)), tensor.bytes.size());
    return result;
}

DeviceTensor Loader::ids(const std::string& name, u32 count) {
    const Tensor& tensor = get(name);
    std::vector<i32> values(tensor.elements());
    for (u64 i = 0; i < values.size(); ++i) {
        const u64 size = row_of(tensor.storage).block_bytes;
        i64 id = 0;  // little-endian: I32 is its lower half
        std::memcpy(&id, tensor.bytes.data() + i * size, size);
        if (tensor.storage == Storage::i32) id = static_cast<i32>(id);  // its sign
        DG_CHECK(id >= 0 && id < i64{count}, value,
                 "checkpoint: {} names expert {}, expected 0 to {}; the checkpoint does not fit its "
                 "configuration: get both again",
                 name, id, count - 1);
        values[i] = static_cast<i32>(id);
    }
    DeviceTensor result = allocate(Format::int32, {tensor.shape.begin(), tensor.shape.end()});
    upload(result, 0, std::as_bytes(std::span(values)), tensor.bytes.size());
    return result;
}

Linear Loader::linear(const std::vector<std::string>& names, i64 groups) {
    Linear result;
    const Storage storage = get(names[0] + ".weight").storage;
    for (size_t i = 0; i < names.size(); ++i) {
        const Tensor& weight = get(names[i] + ".weight");
        DG_CHECK(weight.storage == storage, value,
                 "checkpoint: {} is {}, {} is {}; expected one format for all: convert the checkpoint",
                 weight.name, row_of(weight.storage).name, names[0] + ".weight", row_of(storage).name);
        if (storage == Storage::mxfp4_gguf) {
            append_mxfp4(result, weight, i, names.size(), groups);
            continue;
        }
        append(result.data, weight, i, names.size(), groups, device_format(storage, false, wide_));
        if (storage == Storage::i8 || storage == Storage::f8_e4m3) {
            const Tensor& scale = *find_scale(checkpoint_, names[i]);
            append(result.scale, scale, i, names.size(), groups, device_format(scale.storage, true, wide_));
        }
    }
    return result;
}

Linear Loader::experts(const std::string& at, u32 count, const std::string& name) {
    std::vector<std::string> names;
    for (u32 e = 0; e < count; ++e) names.push_back(fmt::format("{}{}.{}", at, e, name));
    return linear(names, count == 1 ? 1 : 0);
}

bool Loader::are_stored(const std::string& at, const std::vector<std::string>& names,
                        std::initializer_list<Storage> as) const {
    return std::all_of(names.begin(), names.end(), [&](const std::string& name) {
        return std::count(as.begin(), as.end(), get(fmt::format("{}0.{}.weight", at, name)).storage) > 0;
    });
}

bool Loader::should_group(const std::string& at, const std::vector<std::string>& names, i64 count, i64 hidden,
                          i64 width, i64 top_k) const {
    return wide_ == Format::bf16 && are_stored(at, names, {Storage::f8_e4m3}) &&
           can_group_experts(device_, count, hidden, width, top_k);
}

Linear Loader::grouped_experts(const std::string& at, u32 count, const std::vector<std::string>& names) {
    Linear result;
    const size_t parts = count * names.size();
    for (size_t part = 0; part < parts; ++part) {
        const std::string name = fmt::format("{}{}.{}", at, part / names.size(), names[part % names.size()]);
        const Tensor& weight = get(name + ".weight");
        DG_CHECK(weight.storage == Storage::f8_e4m3, value,
                 "checkpoint: {} is {}, the first expert's is FP8; expected one format for all: convert the "
                 "checkpoint",
                 weight.name, row_of(weight.storage).name);
        append(result.data, weight, part, parts, 0, Format::fp8_e4m3);
        append(result.scale, *find_scale(checkpoint_, name), part, parts, 0, Format::fp32);
    }
    return result;
}

void Loader::append_mxfp4(Linear& stacked, const Tensor& part, size_t index, size_t count, i64 groups) {
    const SplitMxfp4 split(part.bytes);
    Tensor codes{.name = part.name, .storage = Storage::i8, .shape = part.shape, .bytes = split.codes};
    Tensor scales{.name = part.name, .storage = Storage::f8_e8m0, .shape = part.shape, .bytes = split.scales};
    codes.shape.back() /= 2;
    scales.shape.back() /= 32;
    append(stacked.data, codes, index, count, groups, Format::int8);
    append(stacked.scale, scales, index, count, groups, Format::fp8_ue8m0);
}

// Part `index` of `count` of a stacked tensor; the first part allocates all.
void Loader::append(DeviceTensor& stacked, const Tensor& part, size_t index, size_t count, i64 groups,
                    Format format) {
    if (index == 0) {
        const i64 rows = static_cast<i64>(part.shape[0]), columns = static_cast<i64>(part.shape[1]);
        std::vector<i64> shape{rows, columns};
        if (groups > 0) {
            DG_CHECK(
                rows % groups == 0, value,
                "checkpoint: {} has {} rows, expected a multiple of {} groups; the checkpoint does not fit "
                "its configuration: get both again",
                part.name, rows, groups);
            shape = {groups, rows / groups, columns};
        } else if (count > 1) {
            shape = {static_cast<i64>(count), rows, columns};
        }
        stacked = allocate(format, std::move(shape));
    }
    const u64 offset = index * (stacked.bytes() / count);
    if (format == format_of(part.storage)) return upload(stacked, offset, part.bytes, part.bytes.size());
    const std::vector<float> values = to_fp32(part);
    if (format == Format::fp32)
        return upload(stacked, offset, std::as_bytes(std::span(values)), part.bytes.size());
    const std::vector<u16> rounded = to_bf16(values);
    upload(stacked, offset, std::as_bytes(std::span(rounded)), part.bytes.size());
}

}  // namespace deep_gemm::runtime
