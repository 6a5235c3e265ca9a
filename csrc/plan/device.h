// What the cost model knows about a GPU: one row of measured constants per architecture.
#pragma once

#include <deep_gemm/spec/types.h>

namespace deep_gemm::plan {

struct DeviceModel {
    const char* arch = "90a";
    u32 num_sms = 132;
    float dram_gbps = 4380;       // read stream, measured
    float l2_gbps = 9000;         // operand tiles that hit L2
    float clock_ghz = 1.7f;       // under tensor load
    float fp8_flops_per_cycle = 8192;   // one SM, dense
    float bf16_flops_per_cycle = 4096;
    float launch_us = 2.0f;
    float dram_latency_us = 0.9f;
};

// The row for an architecture ("90a"), with the device's own SM count. Fails for an unknown one.
[[nodiscard]] DeviceModel device_model(const char* arch, u32 num_sms);

}  // namespace deep_gemm::plan
