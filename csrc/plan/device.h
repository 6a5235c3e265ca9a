// What the cost model knows about a GPU: one row of constants per architecture. Fitted to 744
// timings of FP8 kernels on one H200 (15 problems, a choice of specs), then a few set by hand after
// benchmarks of much the same problems: the regret that bench/ reports there says little about other shapes
// or BF16.
#pragma once

#include <deep_gemm/spec/types.h>

#include <string_view>

namespace deep_gemm::plan {

struct DeviceModel {
    std::string_view arch;
    u32 num_sms;
    float clock_ghz;                // under load
    float dram_bytes_per_us;        // read stream
    float l2_bytes_per_us;          // operand tiles from L2, all SMs pulling
    float sm_fill_bytes_per_us;     // tiles into one SM's shared memory
    float load_latency_us;          // one stage: request to data
    float smem_bytes_per_cycle;     // one SM, loads and wgmma operands together
    float throttle;                 // tensor cycles under power limit / tensor cycles
    float launch_us;                // graph launch to first load, and the last store to the next kernel
    float fill_us;                  // first load to first wgmma
    float next_grid_us;             // what an early start of the next grid hides
    float epilogue_us;              // last wgmma to end, fixed part
    float epilogue_us_per_element;  // of an output block
    float exchange_us;              // split K: meeting of a cluster, and per CTA in it
    float exchange_us_per_cta;
    float cluster_us;  // clusters start later than CTAs
    float overlap;     // share of every other resource that does not hide behind the largest
};

// The row for an architecture ("90a"), with the device's own SM count. Fails for an unknown one.
[[nodiscard]] DeviceModel device_model(std::string_view arch, u32 num_sms);

}  // namespace deep_gemm::plan
