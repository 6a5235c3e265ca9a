// What the cost models know about a GPU: one row of constants per architecture. dram_bytes_per_us is measured,
// on one H200, and all models use it; the others are as the models of FP4 and of stored weights count them.
// What a kernel family adds or fits for itself stands in its own cost file (plan/gemm_cost.cpp: a whole fit).
#pragma once

#include <deep_gemm/spec/types.h>

#include <string_view>

namespace deep_gemm::plan {

struct DeviceModel {
    std::string_view arch;
    u32 num_sms;
    float clock_ghz;             // under load
    float dram_bytes_per_us;     // read stream
    float l2_bytes_per_us;       // operand tiles from L2, all SMs pulling
    float sm_fill_bytes_per_us;  // tiles into one SM's shared memory
    float load_latency_us;       // one stage: request to data
    float throttle;              // tensor cycles under power limit / tensor cycles
    float launch_us;             // graph launch to first load, and the last store to the next kernel
    float fill_us;               // first load to first wgmma
    float cluster_us;            // clusters start later than CTAs
    float overlap;               // share of every other resource that does not hide behind the largest
};

// The row for an architecture ("90a"), with the device's own SM count. Fails for an unknown one.
[[nodiscard]] DeviceModel device_model(std::string_view arch, u32 num_sms);

}  // namespace deep_gemm::plan
