#include "emulator/tensor/wgmma.h"

#include "base/error.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

namespace deep_gemm::emulator {

namespace {

// The same B tile is multiplied by several warpgroups, and an A tile by several column blocks: decoding is
// kept per host thread and found again by content, so nobody has to tell the cache that shared memory
// changed.
class DecodeCache {
  public:
    const DecodedOperand& decode(ElementType type, u32 rows, OperandOrder order,
                                 std::span<const std::byte> bytes) {
        for (Entry& entry : entries_) {
            if (entry.matches(type, rows, order, bytes)) return entry.decoded;
        }
        Entry& entry = entries_[next_];
        next_ = (next_ + 1) % entries_.size();
        entry.type = type;
        entry.bytes.assign(bytes.begin(), bytes.end());
        decode_operand(type, rows, kWgmmaKBytes / element_bytes(type), order, bytes, entry.decoded);
        return entry.decoded;
    }

  private:
    struct Entry {
        ElementType type = ElementType::f16;
        std::vector<std::byte> bytes;
        DecodedOperand decoded;

        bool matches(ElementType other, u32 rows, OperandOrder order,
                     std::span<const std::byte> other_bytes) const {
            return type == other && decoded.rows == rows && decoded.order == order &&
                   bytes.size() == other_bytes.size() &&
                   std::memcmp(bytes.data(), other_bytes.data(), bytes.size()) == 0;
        }
    };
    std::array<Entry, 8> entries_;  // two stages of four k-steps
    std::size_t next_ = 0;
};

struct Decoded {
    const DecodedOperand& a;
    const DecodedOperand& b;
};

Decoded decode_operands(const WgmmaShape& shape, const WgmmaOperands& operands) {
    thread_local DecodeCache a_cache, b_cache;  // apart: a reference into one outlives a look-up in the other
    thread_local std::vector<std::byte> a_bytes, b_bytes;
    std::span<const std::byte> a = operands.a_registers;
    if (a.empty()) {
        gather_operand(decode_descriptor(operands.a_descriptor), kWgmmaRows, kWgmmaKBytes, shape.a_major,
                       operands.smem, a_bytes);
        a = a_bytes;
    }
    DG_CHECK(a.size() == kWgmmaRows * kWgmmaKBytes, internal,
             "wgmma: register operand of {} bytes, expected {}", a.size(), kWgmmaRows * kWgmmaKBytes);
    gather_operand(decode_descriptor(operands.b_descriptor), shape.n, kWgmmaKBytes, shape.b_major,
                   operands.smem, b_bytes);
    const DecodedOperand& decoded_a = a_cache.decode(shape.a, kWgmmaRows, OperandOrder::row_major, a);
    return {decoded_a, b_cache.decode(shape.b, shape.n, OperandOrder::k_major, b_bytes)};
}

bool compatible(ElementType a, ElementType b) {
    return a == b || (is_fp8(a) && is_fp8(b)) || (is_integer(a) && is_integer(b));
}

}  // namespace

void check_wgmma(const WgmmaShape& shape) {
    DG_CHECK(shape.n % 8 == 0 && shape.n >= 8 && shape.n <= 256, emulator,
             "wgmma: n = {}, expected a multiple of 8 up to 256", shape.n);
    DG_CHECK(compatible(shape.a, shape.b), emulator,
             "wgmma: operand types {} and {} cannot be multiplied together", static_cast<u32>(shape.a),
             static_cast<u32>(shape.b));
    const bool k_major = shape.a_major == Major::k && shape.b_major == Major::k;
    DG_CHECK(k_major || element_bytes(shape.a) == 2, emulator, "wgmma: only 16-bit operands can be MN-major");
    DG_CHECK(shape.accumulator == AccumulatorType::f32 || shape.a == ElementType::f16 || is_fp8(shape.a),
             emulator, "wgmma: an fp16 accumulator needs fp16 or fp8 operands");
}

void wgmma(const WgmmaShape& shape, const WgmmaOperands& operands, float* d, AccumulatorMode mode) {
    check_wgmma(shape);
    const Decoded decoded = decode_operands(shape, operands);
    const AccumulateOptions options{.mode = mode,
                                    .type = shape.accumulator,
                                    .fp8 = is_fp8(shape.a),
                                    .negate = shape.negate_a != shape.negate_b,
                                    .scale_d = operands.scale_d};
    accumulate(options, decoded.a, decoded.b, d);
}

void wgmma_integer(const WgmmaShape& shape, const WgmmaOperands& operands, i32* d, bool saturate) {
    check_wgmma(shape);
    const Decoded decoded = decode_operands(shape, operands);
    // 32 products of at most 255 * 255 sum exactly in fp32.
    std::vector<float> products(kWgmmaRows * shape.n);
    accumulate({.mode = AccumulatorMode::exact, .scale_d = false}, decoded.a, decoded.b, products.data());
    for (u32 i = 0; i < products.size(); ++i) {
        const i64 sum = (operands.scale_d ? i64{d[i]} : 0) + static_cast<i64>(products[i]);
        const i64 clamped =
            std::clamp<i64>(sum, std::numeric_limits<i32>::min(), std::numeric_limits<i32>::max());
        d[i] = static_cast<i32>(saturate ? clamped : sum);
    }
}

}  // namespace deep_gemm::emulator
