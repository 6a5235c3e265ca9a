#include "emulator/tensor/operand.h"

#include "base/error.h"
#include "emulator/formats/formats.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace deep_gemm::emulator {

namespace {

constexpr u32 kPitchElements = 32;  // the widest column block of the kernels

struct Element {
    float value = 0;
    i16 exponent = DecodedOperand::kZeroExponent;
    u8 slow = 0;
};

// Subnormals keep the smallest exponent of their format: hardware does not normalise them before aligning.
constexpr Element classify(float value, i32 min_exponent) {
    const u32 bits = std::bit_cast<u32>(value);
    const i32 field = static_cast<i32>(bits >> 23 & 0xff);
    if (field == 0xff) return {value, DecodedOperand::kZeroExponent, 1};
    if ((bits & 0x7fffffffu) == 0) return {value, DecodedOperand::kZeroExponent, 0};
    const i32 exponent = std::max((field == 0 ? -126 : field - 127), min_exponent);
    const bool slow =
        exponent < DecodedOperand::kMinFastExponent || exponent > DecodedOperand::kMaxFastExponent;
    return {value, static_cast<i16>(exponent), static_cast<u8>(slow)};
}

template <typename Decode>
constexpr std::array<Element, 256> byte_table(Decode decode, i32 min_exponent) {
    std::array<Element, 256> table{};
    for (u32 code = 0; code < 256; ++code)
        table[code] = classify(decode(static_cast<u8>(code)), min_exponent);
    return table;
}

constexpr auto kE4m3Table =
    byte_table([](u8 code) { return formats::e4m3_to_f32(code); }, formats::kE4m3.min_exponent());
constexpr auto kE5m2Table =
    byte_table([](u8 code) { return formats::e5m2_to_f32(code); }, formats::kE5m2.min_exponent());
constexpr auto kS8Table = byte_table([](u8 code) { return static_cast<float>(static_cast<i8>(code)); }, 0);
constexpr auto kU8Table = byte_table([](u8 code) { return static_cast<float>(code); }, 0);

Element decode_16(ElementType type, const std::byte* at) {
    u16 code;
    std::memcpy(&code, at, sizeof code);
    if (type == ElementType::bf16) return classify(formats::bf16_to_f32(code), formats::kBf16.min_exponent());
    return classify(formats::f16_to_f32(code), formats::kF16.min_exponent());
}

Element decode_tf32(const std::byte* at) {
    u32 bits;
    std::memcpy(&bits, at, sizeof bits);
    return classify(std::bit_cast<float>(bits & ~0x1fffu), formats::kTf32.min_exponent());
}

template <typename Decode>
void fill(DecodedOperand& out, std::span<const std::byte> bytes, u32 stride, Decode decode) {
    for (u32 row = 0; row < out.rows; ++row) {
        const std::byte* source = bytes.data() + static_cast<std::size_t>(row) * out.k * stride;
        for (u32 k = 0; k < out.k; ++k) {
            const Element element = decode(source + static_cast<std::size_t>(k) * stride);
            const u32 at = out.index(row, k);
            out.values[at] = element.value;
            out.exponents[at] = element.exponent;
            out.slow_rows[row] |= element.slow;
        }
    }
}

}  // namespace

void decode_operand(ElementType type, u32 rows, u32 k, OperandOrder order, std::span<const std::byte> bytes,
                    DecodedOperand& out) {
    const u32 stride = element_bytes(type);
    DG_CHECK(bytes.size() >= static_cast<std::size_t>(rows) * k * stride, internal,
             "decode_operand: {} bytes for {} x {} elements of {} bytes", bytes.size(), rows, k, stride);
    out.rows = rows, out.k = k, out.order = order;
    out.pitch = order == OperandOrder::row_major ? k : align_up(rows, kPitchElements);
    const std::size_t size =
        static_cast<std::size_t>(out.pitch) * (order == OperandOrder::row_major ? rows : k);
    out.values.assign(size, 0.0f);
    out.exponents.assign(size, DecodedOperand::kZeroExponent);
    out.slow_rows.assign(rows, 0);
    const auto by_table = [](const std::array<Element, 256>& table) {
        return [&table](const std::byte* at) { return table[static_cast<u8>(*at)]; };
    };
    switch (type) {
        case ElementType::f16:
        case ElementType::bf16:
            fill(out, bytes, stride, [type](const std::byte* at) { return decode_16(type, at); });
            break;
        case ElementType::tf32: fill(out, bytes, stride, decode_tf32); break;
        case ElementType::e4m3: fill(out, bytes, stride, by_table(kE4m3Table)); break;
        case ElementType::e5m2: fill(out, bytes, stride, by_table(kE5m2Table)); break;
        case ElementType::s8: fill(out, bytes, stride, by_table(kS8Table)); break;
        case ElementType::u8: fill(out, bytes, stride, by_table(kU8Table)); break;
    }
    out.any_slow = std::any_of(out.slow_rows.begin(), out.slow_rows.end(), [](u8 slow) { return slow != 0; });
}

}  // namespace deep_gemm::emulator
