#include "plan/device.h"

#include "base/error.h"

namespace deep_gemm::plan {
namespace {

constexpr DeviceModel kModels[] = {
    {
        .arch = "90a",
        .num_sms = 132,
        .clock_ghz = 1.7f,
        .dram_bytes_per_us = 4.38e6f,
        .l2_bytes_per_us = 11.95e6f,
        .sm_fill_bytes_per_us = 151e3f,
        .load_latency_us = 1.46f,
        .throttle = 1.2f,
        .launch_us = 1.4f,
        .fill_us = 0.77f,
        .cluster_us = 0.6f,
        .overlap = 0.08f,
    },
};

}  // namespace

DeviceModel device_model(std::string_view arch, u32 num_sms) {
    for (DeviceModel model : kModels) {
        if (model.arch != arch) continue;
        model.num_sms = num_sms;
        return model;
    }
    fail(ErrorKind::value,
         "plan: no cost model for sm_{}; GEMM kernels exist for sm_90a, use DG_DEVICE=emulator:sm_90a", arch);
}

}  // namespace deep_gemm::plan
