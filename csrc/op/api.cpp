// The rest of the public C++ API: devices, memory, views, warm-up and explain, each a few lines over the
// layers below.
#include "op/api.h"

#include "base/error.h"
#include "driver/device.h"
#include "emulator/emulated_device.h"
#include "op/gemm_kernel.h"
#include "plan/gemm.h"

#include <chrono>

namespace deep_gemm {

Device& find_device(std::string_view name) {
    // driver/ does not include emulator/: whoever offers devices to users registers it.
    driver::register_emulator(&emulator::make_emulated_device);
    return driver::device(name);
}

std::string name_of(const Device& device) {
    return device.properties().name;
}

u32 num_sms_of(const Device& device) {
    return device.properties().num_sms;
}

void synchronize(Device& device, void* stream) {
    device.synchronize(static_cast<driver::Stream>(stream));
}

namespace {

constexpr double kGiB = 1 << 30;

u64 allocate(Device& device, u64 bytes) {
    try {
        return device.allocate(bytes);
    } catch (const Error&) {
        const u64 available = device.free_memory_bytes();
        if (available >= bytes) throw;  // for another reason
        fail(ErrorKind::driver,
             "out of memory on {}: {:.3f} GiB asked for, {:.3f} GiB of {:.3f} GiB free, {:.3f} GiB missing; "
             "free device memory or ask for less",
             device.properties().name, static_cast<double>(bytes) / kGiB,
             static_cast<double>(available) / kGiB,
             static_cast<double>(device.properties().global_memory_bytes) / kGiB,
             static_cast<double>(bytes - available) / kGiB);
    }
}

}  // namespace

Buffer::Buffer(Device& device, u64 bytes)
    : device_(&device), data_(reinterpret_cast<void*>(allocate(device, bytes))), bytes_(bytes) {}

Buffer::~Buffer() {
    try {
        device_->release(reinterpret_cast<u64>(data_));
    } catch (const Error&) {
        // A destructor has nobody to tell; the driver reports a broken context again at the next call.
    }
}

void Buffer::copy_from_host(const void* source, void* stream) {
    const std::span bytes(static_cast<const std::byte*>(source), bytes_);
    device_->copy_to_device(reinterpret_cast<u64>(data_), bytes, static_cast<driver::Stream>(stream));
}

void Buffer::copy_to_host(void* destination, void* stream) const {
    const std::span bytes(static_cast<std::byte*>(destination), bytes_);
    device_->copy_to_host(bytes, reinterpret_cast<u64>(data_), static_cast<driver::Stream>(stream));
}

TensorView make_view(Device& device, const void* data, Format format, std::initializer_list<i64> shape) {
    DG_CHECK(shape.size() <= TensorView::kMaxRank, value,
             "make_view: {} dimensions, expected at most {}; reshape it", shape.size(), TensorView::kMaxRank);
    TensorView view{.data = const_cast<void*>(data),
                    .format = format,
                    .rank = static_cast<u32>(shape.size()),
                    .shape = {},
                    .strides = {},
                    .device = &device};
    u32 i = 0;
    for (const i64 extent : shape) view.shape[i++] = extent;
    i64 stride = 1;
    while (i-- > 0) {
        view.strides[i] = stride;
        stride *= view.shape[i];
    }
    return view;
}

WarmupReport warmup(Device& device, std::span<const std::string> problems, const WarmupProgress& progress) {
    const auto start = std::chrono::steady_clock::now();
    const driver::DeviceProperties& properties = device.properties();
    const plan::DeviceModel model = plan::device_model(properties.arch, properties.num_sms);
    std::vector<GemmSpec> specs;
    for (const std::string& text : problems) {
        const plan::GemmProblem problem = op::problem_of(text);
        for (const GemmSpec& spec : plan::enumerate_specs(problem, problem.m, model)) {
            bool known = false;
            for (const GemmSpec& other : specs) known = known || other == spec;
            if (!known) specs.push_back(spec);
        }
    }
    op::build_gemm_kernels(device, specs, progress);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    return {.num_kernels = static_cast<u32>(specs.size()), .seconds = elapsed.count()};
}

std::string explain(const Device& device, std::string_view problem, u32 rows) {
    const driver::DeviceProperties& properties = device.properties();
    return plan::explain(op::problem_of(problem), plan::device_model(properties.arch, properties.num_sms),
                         rows);
}

}  // namespace deep_gemm
