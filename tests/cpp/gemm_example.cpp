// Multiplies two small FP8 matrices through the C++ API and checks every element:
//   gemm_example [device]        cuda, emulator, ... ; nothing: the default device
// The inputs are chosen so that every product and sum is exact in FP8, fp32 and bf16: the result must be
// equal.
#include <deep_gemm/api.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace dg = deep_gemm;

namespace {

constexpr int kM = 48, kN = 136, kK = 256, kKBlocks = kK / 128, kNBlocks = (kN + 127) / 128;

// E4M3 of -1, 0 and 1.
constexpr uint8_t kCodes[] = {0xb8, 0x00, 0x38};

int element(int row, int column, int seed) {
    return (row * 7 + column * 5 + row * column + seed) % 3 - 1;
}

std::vector<uint8_t> matrix(int rows, int seed) {
    std::vector<uint8_t> values(static_cast<size_t>(rows) * kK);
    for (int row = 0; row < rows; ++row)
        for (int k = 0; k < kK; ++k)
            values[static_cast<size_t>(row) * kK + k] = kCodes[element(row, k, seed) + 1];
    return values;
}

float scale_a(int row, int block) {
    return std::ldexp(1.0f, row % 3 - block);
}
float scale_b(int block_n, int block) {
    return std::ldexp(1.0f, block_n + block);
}

int expected(int row, int column) {
    float sum = 0;
    for (int k = 0; k < kK; ++k)
        sum += scale_a(row, k / 128) * scale_b(column / 128, k / 128) *
               static_cast<float>(element(row, k, 1)) * static_cast<float>(element(column, k, 2));
    return static_cast<int>(sum);
}

template <typename T>
void upload(dg::Buffer& buffer, const std::vector<T>& values) {
    buffer.copy_from_host(values.data());
}

int run(const char* device_name) {
    dg::Device& device = dg::find_device(device_name);
    std::vector<float> scales_a, scales_b;
    for (int row = 0; row < kM; ++row)
        for (int block = 0; block < kKBlocks; ++block) scales_a.push_back(scale_a(row, block));
    for (int block_n = 0; block_n < kNBlocks; ++block_n)
        for (int block = 0; block < kKBlocks; ++block) scales_b.push_back(scale_b(block_n, block));

    dg::Buffer a(device, kM * kK), b(device, kN * kK), d(device, kM * kN * sizeof(float));
    dg::Buffer sa(device, scales_a.size() * 4), sb(device, scales_b.size() * 4);
    upload(a, matrix(kM, 1));
    upload(b, matrix(kN, 2));
    upload(sa, scales_a);
    upload(sb, scales_b);

    dg::gemm({.a = dg::make_view(device, a.data(), dg::Format::fp8_e4m3, {kM, kK}),
              .scale_a = dg::make_view(device, sa.data(), dg::Format::fp32, {kM, kKBlocks}),
              .b = dg::make_view(device, b.data(), dg::Format::fp8_e4m3, {kN, kK}),
              .scale_b = dg::make_view(device, sb.data(), dg::Format::fp32, {kNBlocks, kKBlocks}),
              .d = dg::make_view(device, d.data(), dg::Format::fp32, {kM, kN})});

    std::vector<float> result(kM * kN);
    d.copy_to_host(result.data());
    for (int row = 0; row < kM; ++row)
        for (int column = 0; column < kN; ++column)
            if (result[static_cast<size_t>(row) * kN + column] != static_cast<float>(expected(row, column))) {
                std::printf("d[%d, %d] is %g, expected %d\n", row, column,
                            static_cast<double>(result[static_cast<size_t>(row) * kN + column]),
                            expected(row, column));
                return 1;
            }
    std::printf("%s: %d x %d x %d is exact\n", dg::name_of(device).c_str(), kM, kN, kK);

    // A bad argument is an exception with a sentence; nothing is launched.
    try {
        dg::gemm({.a = dg::make_view(device, a.data(), dg::Format::bf16, {kM, kK / 2})});
    } catch (const dg::Error& error) {
        std::printf("as it should be: %s\n", error.what());
        return error.kind() == dg::ErrorKind::type ? 0 : 1;
    }
    return 1;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        return run(argc > 1 ? argv[1] : "");
    } catch (const dg::Error& error) {
        std::printf("%s\n", error.what());
        return 1;
    }
}
