// Host time of one C++ call: a tiny FP8 product, called in bursts that fit the launch queue, so that the host
// never waits for the device.
//   host_time [device] [calls] [repeats]
// Prints, for each repeat, the microseconds of a call and those of the driver's launch of the same kernel
// alone (of zero rows: it returns at once), which no call can be faster than. bench/host_time.py runs it.
#include "driver/device.h"
#include "op/api.h"
#include "op/gemm.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace dg = deep_gemm;

namespace {

constexpr dg::i64 kM = 16, kN = 128, kK = 128;

template <typename Call>
double us_per_call(dg::Device& device, int calls, Call&& call) {
    dg::synchronize(device);
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < calls; ++i) call();
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() /
           calls;
}

void run(const char* device_name, int calls, int repeats) {
    dg::Device& device = dg::find_device(device_name);
    const std::vector<unsigned char> ones(kN * kK, 0x38);  // E4M3 of 1
    const std::vector<float> scales(kM, 1.0f);
    dg::Buffer a(device, kM * kK), b(device, kN * kK), d(device, kM * kN * 2);
    dg::Buffer scale_a(device, kM * sizeof(float)), scale_b(device, sizeof(float));
    a.copy_from_host(ones.data());
    b.copy_from_host(ones.data());
    scale_a.copy_from_host(scales.data());
    scale_b.copy_from_host(scales.data());
    const dg::GemmArguments arguments{
        .a = dg::make_view(device, a.data(), dg::Format::fp8_e4m3, {kM, kK}),
        .scale_a = dg::make_view(device, scale_a.data(), dg::Format::fp32, {kM, 1}),
        .b = dg::make_view(device, b.data(), dg::Format::fp8_e4m3, {kN, kK}),
        .scale_b = dg::make_view(device, scale_b.data(), dg::Format::fp32, {1, 1}),
        .d = dg::make_view(device, d.data(), dg::Format::bf16, {kM, kN})};
    dg::gemm(arguments);  // compiles and loads
    const dg::op::Launcher& launcher = *dg::op::last_launcher();
    dg::GemmParams no_rows{};
    no_rows.n = kN;
    no_rows.k = kK;
    dg::driver::LaunchConfig config = launcher.config;
    config.programmatic_launch = true;
    const auto launch = [&] {
        device.launch(*launcher.kernel, config, std::as_bytes(std::span(&no_rows, 1)), {});
    };
    for (int i = 0; i < repeats; ++i) {
        const double us_of_call = us_per_call(device, calls, [&] { dg::gemm(arguments); });
        std::printf("%.4f %.4f\n", us_of_call, us_per_call(device, calls, launch));
    }
    dg::synchronize(device);
}

}  // namespace

int main(int argc, char** argv) {
    try {
        run(argc > 1 ? argv[1] : "", argc > 2 ? std::atoi(argv[2]) : 256, argc > 3 ? std::atoi(argv[3]) : 21);
        return 0;
    } catch (const dg::Error& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
