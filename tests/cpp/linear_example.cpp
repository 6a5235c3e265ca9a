// y = x W^T with 8-bit and 4-bit weights through the C++ API, few and many tokens, every element checked:
//   linear_example [device]        cuda, emulator, ... ; nothing: the default device
// Integers below 256: every product and sum is exact, so both forms of linear() must give the same result.
#include <deep_gemm/linear.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

namespace dg = deep_gemm;

namespace {

constexpr int kN = 200, kK = 256;

int weight(int row, int k) {
    return (row * 7 + k * 5) % 17 - 8;
}
int token(int row, int k) {
    return (row + k) % 3 - 1;
}

uint16_t bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<uint16_t>(bits >> 16);
}

bool multiply(dg::Device& device, int m, bool invariant) {
    std::vector<int8_t> w(static_cast<size_t>(kN) * kK);
    std::vector<uint16_t> x(static_cast<size_t>(m) * kK);
    std::vector<float> scales(kN), y(static_cast<size_t>(m) * kN);
    for (int row = 0; row < kN; ++row) scales[row] = row % 2 ? 0.5f : 2.0f;
    for (int row = 0; row < kN; ++row)
        for (int k = 0; k < kK; ++k)
            w[static_cast<size_t>(row) * kK + k] = static_cast<int8_t>(weight(row, k));
    for (int row = 0; row < m; ++row)
        for (int k = 0; k < kK; ++k)
            x[static_cast<size_t>(row) * kK + k] = bf16(static_cast<float>(token(row, k)));

    dg::Buffer w_memory(device, w.size()), x_memory(device, x.size() * 2),
        scale_memory(device, scales.size() * 4), y_memory(device, y.size() * 4);
    w_memory.copy_from_host(w.data());
    x_memory.copy_from_host(x.data());
    scale_memory.copy_from_host(scales.data());
    const dg::QuantMatrix matrix{
        .quant = dg::Quant::int8_row,
        .n = kN,
        .k = kK,
        .data = dg::make_view(device, w_memory.data(), dg::Format::int8, {kN, kK}),
        .scales = dg::make_view(device, scale_memory.data(), dg::Format::fp32, {kN, 1})};
    const dg::TensorView out = dg::make_view(device, y_memory.data(), dg::Format::fp32, {m, kN});
    dg::linear({.x = dg::make_view(device, x_memory.data(), dg::Format::bf16, {m, kK}),
                .w = {&matrix, 1},
                .y = {&out, 1},
                .invariant = invariant});
    y_memory.copy_to_host(y.data());
    for (int row = 0; row < m; ++row)
        for (int column = 0; column < kN; ++column) {
            int sum = 0;
            for (int k = 0; k < kK; ++k) sum += token(row, k) * weight(column, k);
            if (y[static_cast<size_t>(row) * kN + column] != static_cast<float>(sum) * scales[column])
                return false;
        }
    return true;
}

// W quantised on the host: integers that E2M1 has, so nothing is rounded.
bool multiply_mxfp4(dg::Device& device, int m) {
    std::vector<float> w(static_cast<size_t>(kN) * kK), y(static_cast<size_t>(m) * kN);
    constexpr float kValues[] = {0, 1, -1, 2, -3, 4, -6};
    for (size_t i = 0; i < w.size(); ++i) w[i] = i % 32 == 0 ? 6.0f : kValues[i * 5 % 7];
    const dg::HostMatrix made = dg::quantize_weights(w, kN, kK, dg::Quant::mxfp4);
    if (dg::dequantize_weights(made) != w) return false;
    std::vector<uint16_t> x(static_cast<size_t>(m) * kK);
    for (int row = 0; row < m; ++row)
        for (int k = 0; k < kK; ++k)
            x[static_cast<size_t>(row) * kK + k] = bf16(static_cast<float>(token(row, k)));
    dg::Buffer w_memory(device, made.data.size()), scale_memory(device, made.scales.size()),
        x_memory(device, x.size() * 2), y_memory(device, y.size() * 4);
    w_memory.copy_from_host(made.data.data());
    scale_memory.copy_from_host(made.scales.data());
    x_memory.copy_from_host(x.data());
    const auto bytes = [&](dg::Buffer& memory, size_t size) {
        return dg::make_view(device, memory.data(), dg::Format::int8, {kN, static_cast<dg::i64>(size / kN)});
    };
    const dg::QuantMatrix matrix{.quant = made.quant,
                                 .n = made.n,
                                 .k = made.k,
                                 .data = bytes(w_memory, made.data.size()),
                                 .scales = bytes(scale_memory, made.scales.size())};
    const dg::TensorView out = dg::make_view(device, y_memory.data(), dg::Format::fp32, {m, kN});
    dg::linear({.x = dg::make_view(device, x_memory.data(), dg::Format::bf16, {m, kK}),
                .w = {&matrix, 1},
                .y = {&out, 1}});
    y_memory.copy_to_host(y.data());
    for (int row = 0; row < m; ++row)
        for (int column = 0; column < kN; ++column) {
            float sum = 0;
            for (int k = 0; k < kK; ++k)
                sum += static_cast<float>(token(row, k)) * w[static_cast<size_t>(column) * kK + k];
            if (y[static_cast<size_t>(row) * kN + column] != sum) return false;
        }
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    dg::Device& device = dg::find_device(argc > 1 ? argv[1] : "");
    const bool right = multiply(device, 3, false) && multiply(device, 80, false) &&
                       multiply(device, 80, true) && multiply_mxfp4(device, 3);
    std::printf("linear of int8 and mxfp4 weights on %s: %s\n", dg::name_of(device).c_str(),
                right ? "exact" : "WRONG");
    for (const dg::DispatchCount& count : dg::dispatch_counts())
        std::printf("  %s form, %u tokens a block: %llu\n", count.large ? "large-batch" : "small-batch",
                    count.tokens, count.launches);
    return right ? 0 : 1;
}
