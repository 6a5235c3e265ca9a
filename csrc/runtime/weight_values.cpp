#include "runtime/weight_values.h"

#include "base/error.h"

#include <deep_gemm/spec/codec.h>

#include <bit>
#include <cmath>
#include <cstring>

namespace deep_gemm::runtime {

namespace {

constexpr u64 kBlock = 32, kQ8Bytes = 34, kMxfp4Bytes = 17;  // of GGUF's blocks

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

const std::vector<float>& fp16_values() {
    static const std::vector<float> table = [] {
        std::vector<float> values(1u << 16);
        for (u32 bits = 0; bits < values.size(); ++bits) values[bits] = fp16_value(static_cast<u16>(bits));
        return values;
    }();
    return table;
}

template <typename Value>
void fill(std::vector<float>& values, Value&& value) {
    for (u64 i = 0; i < values.size(); ++i) values[i] = value(i);
}

}  // namespace

std::vector<float> to_fp32(const Tensor& tensor) {
    std::vector<float> values(tensor.elements());
    const std::span<const std::byte> bytes = tensor.bytes;
    const std::vector<float>& fp16 = fp16_values();
    switch (tensor.storage) {
        case Storage::f32: fill(values, [&](u64 i) { return load<float>(bytes, i); }); break;
        case Storage::bf16:
            fill(values, [&](u64 i) { return std::bit_cast<float>(u32{load<u16>(bytes, i)} << 16); });
            break;
        case Storage::f16: fill(values, [&](u64 i) { return fp16[load<u16>(bytes, i)]; }); break;
        case Storage::f8_e8m0:
            fill(values, [&](u64 i) { return codec::ue8m0_to_f32(load<u8>(bytes, i)); });
            break;
        case Storage::q8_0:
            fill(values, [&](u64 i) {
                const std::span<const std::byte> block = bytes.subspan(i / kBlock * kQ8Bytes, kQ8Bytes);
                return fp16[load<u16>(block, 0)] * static_cast<float>(load<i8>(block.subspan(2), i % kBlock));
            });
            break;
        default:
            fail(ErrorKind::internal, "weights: {} of {} as fp32", tensor.name, row_of(tensor.storage).name);
    }
    return values;
}

std::vector<u16> to_bf16(std::span<const float> values) {
    std::vector<u16> rounded(values.size());
    for (u64 i = 0; i < values.size(); ++i) {
        const u32 bits = std::bit_cast<u32>(values[i]);
        const bool nan = (bits & 0x7fffffff) > 0x7f800000;
        rounded[i] = static_cast<u16>(nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    return rounded;
}

Format format_of(Storage storage) {
    switch (storage) {
        case Storage::f32: return Format::fp32;
        case Storage::bf16: return Format::bf16;
        case Storage::f8_e4m3: return Format::fp8_e4m3;
        case Storage::f8_e8m0: return Format::fp8_ue8m0;
        case Storage::i8: return Format::int8;
        default: return Format::none;
    }
}

SplitMxfp4::SplitMxfp4(std::span<const std::byte> blocks) {
    const auto nibble = [&](u64 block, u64 element) {
        return blocks[block * kMxfp4Bytes + 1 + element % 16] >> (element / 16 * 4) & std::byte{15};
    };
    for (u64 block = 0; block < blocks.size() / kMxfp4Bytes; ++block) {
        scales.push_back(blocks[block * kMxfp4Bytes]);
        for (u64 i = 0; i < kBlock; i += 2) codes.push_back(nibble(block, i) | nibble(block, i + 1) << 4);
    }
}

}  // namespace deep_gemm::runtime
