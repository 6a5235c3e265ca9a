// The C++ twin of Python's quantize(), from_parts() of nibbles and dequantize(): W in host memory. Every
// operation is fp32 and rounded once, in the order of python/deep_gemm/quantized_codecs.py, so that both give
// the same bytes.
#include "base/error.h"
#include "op/host_codes.h"
#include "op/linear.h"
#include "op/tensor_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace deep_gemm {

namespace op {

namespace {

constexpr float kE2m1Max = codec::kE2m1Max, kUe4m3Max = 480, kSmallestFp8Amax = 1e-4f;
constexpr float kSmallestMxAmax = 6 * 0x1p-126f;

// NaN stays.
float larger(float a, float b) {
    return a != a ? a : b != b || b > a ? b : a;
}
float clamped(float x, float low, float high) {
    return x < low ? low : x > high ? high : x;
}
u32 integer(float x, float low, float high) {
    return x != x ? 0 : static_cast<u32>(static_cast<i32>(clamped(x, low, high)));
}
float divisor_of(float scale) {
    return scale == 0 ? 1 : scale;
}

u16 fp16_of(float value, const QuantRow& row, const char* what) {
    const u16 code = f32_to_f16(value);
    DG_CHECK(
        !std::isfinite(value) || std::isfinite(f16_to_f32(code)), value,
        "quantize_weights: a {} of {} is {}, expected at most {}, the largest of fp16; divide the weights, "
        "or take a layout with fp32 scales",
        what, row.name, value, kF16Max);
    return code;
}

// The elements of W that share a scale, as they lie: rows of a block, elements of each.
struct Block {
    const float* first;
    i64 stride, rows, columns;

    template <typename F>
    void each(F&& f) const {
        for (i64 r = 0; r < rows; ++r)
            for (i64 c = 0; c < columns; ++c) f(r, c, first[r * stride + c]);
    }
    [[nodiscard]] float amax() const {
        float most = 0;
        each([&](i64, i64, float x) { most = larger(most, std::fabs(x)); });
        return most;
    }
};

class Quantizer {
  public:
    Quantizer(std::span<const float> w, i64 n, i64 k, Quant quant, bool nearest)
        : w_(w), row_(row_of(quant)), nearest_(nearest), bytes_(row_bytes_of(quant, static_cast<u64>(k))) {
        made_.quant = quant;
        made_.n = n;
        made_.k = k;
        const i64 rows = row_.block_rows, columns = row_.block_k ? row_.block_k : k;
        step_rows_ = rows;
        step_columns_ = columns;
        const u64 scales = ceil_div(static_cast<u64>(n), u64{row_.block_rows}) *
                           scale_columns_of(quant, static_cast<u64>(k));
        made_.data.resize(static_cast<u64>(n) * bytes_);
        made_.scales.resize(scales * bytes_of(row_.scale));
        made_.zeros.resize(row_.has_zero ? scales : 0);
    }

    HostMatrix run() {
        if (row_.has_global) find_global();
        std::vector<u8> codes;
        if (row_.element_bits == 4) codes.resize(static_cast<u64>(made_.k));
        u64 block = 0;
        for (i64 r = 0; r < made_.n; r += step_rows_) {
            for (i64 c = 0; c < made_.k; c += step_columns_, ++block) {
                const Block part{w_.data() + r * made_.k + c, made_.k, std::min(step_rows_, made_.n - r),
                                 std::min(step_columns_, made_.k - c)};
                encode(part, r, c, block, codes.data() + (codes.empty() ? 0 : c));
            }
            if (!codes.empty())
                pack_row(row_.packing, codes, made_.data.data() + static_cast<u64>(r) * bytes_);
        }
        return std::move(made_);
    }

  private:
    void find_global() {
        const Block all{w_.data(), made_.k, made_.n, made_.k};
        const float limit = row_.scale == ScaleType::e4m3 ? codec::kE4m3Max : kUe4m3Max;
        const auto global = static_cast<float>(double{all.amax()} / (double{limit} * double{kE2m1Max}));
        made_.global_scale = global == 0 ? 1 : global;
    }

    template <typename T>
    void put(std::vector<u8>& to, u64 index, T value) {
        std::memcpy(to.data() + index * sizeof(T), &value, sizeof(T));
    }
    template <typename F>
    void bytes(const Block& part, i64 r, i64 c, F&& code) {
        part.each([&](i64 i, i64 j, float x) {
            made_.data[static_cast<u64>(r + i) * bytes_ + static_cast<u64>(c + j)] = static_cast<u8>(code(x));
        });
    }

    void encode(const Block& part, i64 r, i64 c, u64 block, u8* codes) {
        if (row_.element_bits == 16) return encode_16(part, r);
        if (row_.element == Format::fp4_e2m1) return encode_e2m1(part, block, codes);
        if (row_.element_bits == 4) return encode_int4(part, block, codes, part.columns < step_columns_);
        if (row_.element == Format::fp8_e4m3) return encode_fp8(part, r, c, block);
        encode_int8(part, r, c, block);
    }
    void encode_16(const Block& part, i64 r) {
        part.each([&](i64 i, i64 j, float x) {
            const u16 code = made_.quant == Quant::bf16 ? f32_to_bf16(x) : fp16_of(x, row_, "weight");
            put(made_.data, static_cast<u64>((r + i) * made_.k + j), code);
        });
    }
    void encode_fp8(const Block& part, i64 r, i64 c, u64 block) {
        const bool whole_row = row_.block_k == 0;
        const float amax = part.amax();
        const float scale = (whole_row ? amax : larger(amax, kSmallestFp8Amax)) / codec::kE4m3Max;
        put(made_.scales, block, scale);
        const float divisor = divisor_of(scale), inverse = 1 / scale;
        // Saturates: a subnormal scale is rounded by so much that a quotient passes 448.
        bytes(part, r, c, [&](float x) { return codec::f32_to_e4m3(whole_row ? x / divisor : x * inverse); });
    }
    void encode_int8(const Block& part, i64 r, i64 c, u64 block) {
        constexpr float kMax = 127;
        const float scale = part.amax() / kMax, divisor = divisor_of(scale);
        if (made_.quant == Quant::int8_row) {
            put(made_.scales, block, scale);
            return bytes(part, r, c,
                         [&](float x) { return integer(std::nearbyint(x / divisor), -kMax, kMax); });
        }
        const float inverse = (scale != 0 ? 1.0f : 0.0f) / divisor;
        const auto code = [&](float x) { return integer(std::nearbyint(x * inverse), -kMax - 1, kMax); };
        const u16 stored = fp16_of(scale, row_, "scale");
        if (made_.quant == Quant::q8_0_split) {
            put(made_.scales, block, stored);
            return bytes(part, r, c, code);
        }
        u8* to = made_.data.data() + block * kQ8BlockBytes;
        std::memcpy(to, &stored, sizeof(stored));
        part.each([&](i64, i64 j, float x) { to[2 + j] = static_cast<u8>(code(x)); });
    }
    void encode_int4(const Block& part, u64 block, u8* codes, bool short_block) {
        constexpr float kMiddle = 8, kMost = 15;
        // Beyond k stand zeros.
        float high = short_block ? 0 : -INFINITY, low = short_block ? 0 : -INFINITY;
        part.each([&](i64, i64, float x) { high = larger(high, x), low = larger(low, -x); });
        low = -low;
        float scale, zero = kMiddle;
        if (row_.has_zero) {
            low = low > 0 ? 0 : low;
            high = high < 0 ? 0 : high;
            scale = (high - low) / kMost;
            DG_CHECK(
                !std::isinf(scale) || std::isinf(high) || std::isinf(low), value,
                "quantize_weights: weights of a group of {} are further apart than the largest of fp32, "
                "expected a scale of at most {}, the largest of fp16; divide the weights, or take a layout "
                "with fp32 scales",
                row_.name, kF16Max);
        } else {
            scale = (high * (high > -low ? 1.0f : 0.0f) + low * (high <= -low ? 1.0f : 0.0f)) / -kMiddle;
        }
        const u16 stored = fp16_of(scale, row_, "scale");
        put(made_.scales, block, stored);
        const float divisor = divisor_of(f16_to_f32(stored));
        if (row_.has_zero) {
            zero = static_cast<float>(integer(std::nearbyint(-low / divisor), 0, kMost));
            made_.zeros[block] = static_cast<u8>(zero);
        }
        part.each([&](i64, i64 j, float x) {
            codes[j] = static_cast<u8>(integer(std::nearbyint(x / divisor) + zero, 0, kMost));
        });
    }
    void encode_e2m1(const Block& part, u64 block, u8* codes) {
        const float amax = part.amax(), global = made_.global_scale;
        float small;
        if (row_.scale == ScaleType::ue8m0) {
            const float wide = larger(amax, kSmallestMxAmax) / kE2m1Max;
            const u32 code = nearest_ ? codec::f32_to_ue8m0_nearest(wide) : codec::f32_to_e2m1_scale_up(wide);
            made_.scales[block] = static_cast<u8>(code);
            small = codec::ue8m0_to_f32(code);
        } else {
            const float ratio = amax / (kE2m1Max * global);
            const bool e4m3 = row_.scale == ScaleType::e4m3;
            const u32 code = e4m3 ? codec::f32_to_e4m3(ratio) : codec::f32_to_ue4m3(ratio);
            made_.scales[block] = static_cast<u8>(code);
            small = e4m3 ? codec::e4m3_to_f32(code) : codec::ue4m3_to_f32(code);
        }
        const float factor = small != 0 ? 1 / (small * global) : 0;
        part.each([&](i64, i64 j, float x) { codes[j] = static_cast<u8>(codec::f32_to_e2m1(x * factor)); });
    }

    std::span<const float> w_;
    QuantRow row_;
    bool nearest_;
    u64 bytes_;
    i64 step_rows_ = 1, step_columns_ = 1;
    HostMatrix made_;
};

template <typename T>
T taken(const std::vector<u8>& from, u64 index) {
    T value;
    std::memcpy(&value, from.data() + index * sizeof(T), sizeof(T));
    return value;
}

float scale_at(const HostMatrix& w, const QuantRow& row, u64 index) {
    switch (row.scale) {
        case ScaleType::none: return 1;
        case ScaleType::fp32: return taken<float>(w.scales, index);
        case ScaleType::fp16: return f16_to_f32(taken<u16>(w.scales, index));
        case ScaleType::ue8m0: return codec::ue8m0_to_f32(w.scales[index]);
        case ScaleType::e4m3: return codec::e4m3_to_f32(w.scales[index]);
        case ScaleType::ue4m3: return codec::ue4m3_to_f32(w.scales[index]);
    }
    return 1;
}

void check_extents(const char* function, i64 n, i64 k) {
    DG_CHECK(n >= 0 && k >= 1, value,
             "{}: got {} x {}, expected at least one column; pass weights with columns", function, n, k);
    DG_CHECK(n <= kMaxExtent && k <= kMaxExtent, value,
             "{}: got {} x {}, expected extents below 2^31; pass slices of the weights", function, n, k);
}

}  // namespace

}  // namespace op

HostMatrix quantize_weights(std::span<const float> w, i64 n, i64 k, Quant quant, bool nearest_exponent) {
    op::check_extents("quantize_weights", n, k);
    DG_CHECK(w.size() == static_cast<u64>(n) * static_cast<u64>(k), value,
             "quantize_weights: got {} weights, expected {} x {}; pass the tensor of that shape", w.size(), n,
             k);
    return op::Quantizer(w, n, k, quant, nearest_exponent).run();
}

std::vector<u8> pack_codes(std::span<const u8> nibbles, i64 n, i64 k, Quant quant) {
    op::check_extents("pack_codes", n, k);
    const QuantRow row = row_of(quant);
    DG_CHECK(row.element_bits == 4, value,
             "pack_codes: got {}, expected a layout of 4 bits; pass bytes as they are", row.name);
    const u64 columns = static_cast<u64>(k), half = ceil_div(columns, u64{2}),
              bytes = row_bytes_of(quant, columns);
    DG_CHECK(nibbles.size() == static_cast<u64>(n) * half, value,
             "pack_codes: got {} bytes, expected {} rows of {}; pass the codes of that shape", nibbles.size(),
             n, half);
    std::vector<u8> data(static_cast<u64>(n) * bytes), codes(columns);
    for (u64 r = 0; r < static_cast<u64>(n); ++r) {
        op::unpack_row(Packing::linear, nibbles.data() + r * half, codes);
        op::pack_row(row.packing, codes, data.data() + r * bytes);
    }
    return data;
}

std::vector<float> dequantize_weights(const HostMatrix& w) {
    op::check_extents("dequantize_weights", w.n, w.k);
    const QuantRow row = row_of(w.quant);
    const u64 n = static_cast<u64>(w.n), k = static_cast<u64>(w.k), bytes = row_bytes_of(w.quant, k);
    const u64 columns = scale_columns_of(w.quant, k);
    const u64 scales = ceil_div(n, u64{row.block_rows}) * columns;
    DG_CHECK(w.data.size() == n * bytes && w.scales.size() == scales * bytes_of(row.scale) * (columns != 0) &&
                 w.zeros.size() == (row.has_zero ? scales : 0),
             value,
             "dequantize_weights: got {}, {} and {} bytes, which are not those of {} x {} of {}; "
             "pass the tensors of one quantize()",
             w.data.size(), w.scales.size(), w.zeros.size(), n, k, row.name);
    std::vector<float> values(n * k);
    std::vector<u8> codes(k);
    for (u64 r = 0; r < n; ++r) {
        const u8* data = w.data.data() + r * bytes;
        if (row.element_bits == 4) op::unpack_row(row.packing, data, codes);
        for (u64 c = 0; c < k; ++c) {
            float& value = values[r * k + c];
            if (row.element_bits == 16) {
                const u16 code = op::taken<u16>(w.data, r * k + c);
                value = w.quant == Quant::bf16 ? op::bf16_to_f32(code) : op::f16_to_f32(code);
                continue;
            }
            if (row.packing == Packing::blocks) {
                const u64 block = r * bytes + c / kQ8Block * kQ8BlockBytes;
                u16 scale;
                std::memcpy(&scale, w.data.data() + block, sizeof(scale));
                value = static_cast<float>(static_cast<i8>(w.data[block + 2 + c % kQ8Block])) *
                        op::f16_to_f32(scale);
                continue;
            }
            const u64 at = r / row.block_rows * columns + (row.block_k ? c / row.block_k : 0);
            const u8 code = row.element_bits == 4 ? codes[c] : data[c];
            float element;
            if (row.element == Format::fp4_e2m1)
                element = codec::e2m1_to_f32(code);
            else if (row.element == Format::fp8_e4m3)
                element = codec::e4m3_to_f32(code);
            else if (row.element_bits == 4)
                element = static_cast<float>(static_cast<i32>(code) - (row.has_zero ? w.zeros[at] : 8));
            else
                element = static_cast<float>(static_cast<i8>(code));
            value = element * op::scale_at(w, row, at);
            if (row.has_global) value *= w.global_scale;
        }
    }
    return values;
}

}  // namespace deep_gemm
