#include "plan/fp4_gemm_load.h"

#include <algorithm>
#include <cmath>

namespace deep_gemm::plan {
namespace {

constexpr float kMostMeanForPoisson = 4096;
constexpr float kTwoTermsLatencyUs = 1.5f;   // beside what is already on its way (H200, 1 and 16 tokens)
constexpr float kTwoTermsBytesPerUs = 4e6f;  // read and written

void add_count(Fp4Load& load, u32 count, const Fp4GemmSpec& s, float weight) {
    if (count == 0) return;
    const u32 full = count / s.block_m, rest = count % s.block_m;
    load.active += weight;
    load.rows += weight * static_cast<float>(count);
    load.tiles += weight * static_cast<float>(full + (rest > 0));
    load.columns += weight * static_cast<float>(full * s.block_m + (rest > 0 ? fp4_columns_of(s, rest) : 0));
}

}  // namespace

float two_terms_us(float rows, float k) {
    return kTwoTermsLatencyUs + rows * k * (2 + 2) / kTwoTermsBytesPerUs;
}

Fp4Load fp4_load_of(const Fp4Problem& p, const Fp4GemmSpec& s) {
    Fp4Load load;
    if (p.groups == GroupMode::dense) {
        add_count(load, p.m, s, 1);
        return load;
    }
    if (p.groups == GroupMode::contiguous) {
        add_count(load, std::min(p.m, kGroupAlignment), s,
                  static_cast<float>(ceil_div(p.m, kGroupAlignment)));
        load.active = std::min(load.active, static_cast<float>(p.num_groups));
        return load;
    }
    const float groups = static_cast<float>(p.num_groups);
    float mean = p.expected_m > 0                ? static_cast<float>(p.expected_m)
                 : p.groups == GroupMode::masked ? static_cast<float>(p.m)
                                                 : static_cast<float>(p.m) / groups;
    mean = std::min(mean, kMostMeanForPoisson);
    const u32 last = static_cast<u32>(mean + 6 * std::sqrt(mean) + 6);
    double probability = std::exp(-static_cast<double>(mean));
    for (u32 count = 1; count <= last; ++count) {
        probability *= static_cast<double>(mean) / count;
        add_count(load, count, s, groups * static_cast<float>(probability));
    }
    if (probability == 0)  // exp(-mean) underflowed: every expert has the mean
        add_count(load, static_cast<u32>(mean), s, groups);
    return load;
}

}  // namespace deep_gemm::plan
