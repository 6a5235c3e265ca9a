#include "driver/cuda_api.h"

#include "base/env.h"

#include <unistd.h>

#include <atomic>
#include <memory>

namespace deep_gemm::driver::cuda {

namespace {

constexpr int kOldestDriver = 12040;  // cuFuncGetParamInfo; tensor maps and clusters came with 12.0
constexpr const char* kWithoutGpu = "without a GPU use the emulated one (DG_DEVICE=emulator)";

struct Remedy {
    Result result;
    const char* text;
};

constexpr Remedy kRemedies[] = {
    {1, "check the arguments above against the device's limits"},
    {2, "free device memory or use a smaller problem"},
    {3,
     "CUDA does not survive fork(): start worker processes with the 'spawn' method, or before the first CUDA "
     "call"},
    {4, "the driver is shutting down: finish GPU work before the process exits"},
    {34, "the stub libcuda of a toolkit was opened: put the driver's libcuda.so.1 first in the loader path"},
    {100, "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the emulated GPU (DG_DEVICE=emulator)"},
    {101, "check the ordinal against CUDA_VISIBLE_DEVICES"},
    {200,
     "the image is damaged (python -m deep_gemm cache verify --repair) or made by a CUDA that the driver "
     "does "
     "not know (python -m deep_gemm env shows both versions)"},
    {201, "the current context was destroyed or belongs to another thread"},
    {209, "the kernel was built for another architecture: clear the kernel cache"},
    {222,
     "the image was made by a CUDA that the driver does not know (python -m deep_gemm env shows both "
     "versions)"},
    {500, "the image has no such symbol: clear the kernel cache"},
    {700, "run the same call on the emulated GPU (DG_DEVICE=emulator): it names the access"},
    {701, "too many registers or too much shared memory for this block size"},
    {715, "the GPU and the kernel's architecture do not match"},
    {716, "run the same call on the emulated GPU (DG_DEVICE=emulator): it names the access"},
    {719, "run the same call on the emulated GPU (DG_DEVICE=emulator): it names the fault"},
    {802, "the NVSwitch fabric is not ready: check the nvidia-fabricmanager service"},
    {803, "kernel module and libcuda differ in version: reboot or reinstall the driver"},
    {900, "this call is not allowed while a stream is being captured"},
    {901, "the capture was broken by an earlier call that is not allowed in it"},
};

const char* remedy_for(Result result) {
    for (const Remedy& row : kRemedies)
        if (row.result == result) return row.text;
    return "see the driver's documentation of this error";
}

// Set once loading has got far enough to name errors.
Api* loaded = nullptr;

std::string error_name(Result result) {
    const char *name = nullptr, *text = nullptr;
    if (!loaded || loaded->get_error_name.raw(result, &name) != kSuccess || !name)
        return fmt::format("error {}", result);
    const bool described = loaded->get_error_string.raw(result, &text) == kSuccess && text;
    return fmt::format("{} ({}{}{})", name, result, described ? ", " : "", described ? text : "");
}

template <typename... Args>
void resolve(const SharedLibrary& library, Entry<Args...>& entry) {
    entry.function = reinterpret_cast<Result (*)(Args...)>(library.symbol(entry.name));
    DG_CHECK(entry.function, driver,
             "CUDA driver '{}' has no {}: got a driver older than CUDA {}.0; update the NVIDIA driver, {}",
             library.resolved_path("cuInit"), entry.name, kOldestDriver / 1000, kWithoutGpu);
}

template <typename... Entries>
void resolve_all(const SharedLibrary& library, Entries&... entries) {
    (resolve(library, entries), ...);
}

SharedLibrary open_driver() {
    const std::string& chosen = env_text(Env::libcuda_path);
    SharedLibrary library = SharedLibrary::open(chosen.empty() ? "libcuda.so.1" : chosen);
    DG_CHECK(library, driver, "no CUDA driver: opening '{}' failed ({}); install the NVIDIA driver{}, {}",
             library.path(), library.error(), chosen.empty() ? "" : " or correct DG_LIBCUDA_PATH",
             kWithoutGpu);
    return library;
}

std::unique_ptr<Api> load(SharedLibrary library) {
    auto owner = std::make_unique<Api>();
    Api& a = *owner;
    a.library = std::move(library);
    // The version comes first: an old driver lacks entry points, and its version says so best.
    resolve_all(a.library, a.driver_get_version, a.get_error_name, a.get_error_string, a.init);
    loaded = &a;
    a.driver_get_version(&a.version);
    DG_CHECK(
        a.version >= kOldestDriver, driver,
        "CUDA driver '{}' is too old: got CUDA {}.{}, expected {}.{} or newer; update the NVIDIA driver, {}",
        a.library.resolved_path("cuInit"), a.version / 1000, a.version % 1000 / 10, kOldestDriver / 1000,
        kOldestDriver % 1000 / 10, kWithoutGpu);
    resolve_all(
        a.library, a.device_get_count, a.device_get, a.device_get_name, a.device_get_attribute,
        a.device_total_mem, a.primary_ctx_retain, a.ctx_get_current, a.ctx_get_device, a.ctx_push_current,
        a.ctx_pop_current, a.mem_alloc, a.mem_free, a.mem_get_info, a.memcpy_htod_async, a.memcpy_dtoh_async,
        a.memcpy_dtod_async, a.memset_d8_async, a.module_load_data_ex, a.module_unload, a.module_get_function,
        a.func_get_attribute, a.func_set_attribute, a.func_get_param_info, a.launch_kernel_ex,
        a.occupancy_max_active_clusters, a.tensor_map_encode_tiled, a.stream_create, a.stream_destroy,
        a.stream_synchronize, a.stream_begin_capture, a.stream_end_capture, a.thread_exchange_capture_mode,
        a.event_create, a.event_destroy, a.event_record, a.event_synchronize, a.event_elapsed_time,
        a.graph_instantiate, a.graph_destroy, a.graph_exec_destroy, a.graph_launch);
    a.init(0);
    int num_devices = 0;
    a.device_get_count(&num_devices);
    DG_CHECK(num_devices > 0, driver,
             "the CUDA driver sees no GPU: got 0 devices; check nvidia-smi and CUDA_VISIBLE_DEVICES, {}",
             kWithoutGpu);
    return owner;
}

// The outcome of the one attempt to load: later calls repeat its error.
struct Outcome {
    std::unique_ptr<Api> api;
    std::string failure;
    bool found = false;
    pid_t process = ::getpid();
};

const Outcome& outcome() {
    static const Outcome* const once = [] {
        auto* result =
            new Outcome;  // lives as long as the process: other threads may call until the very end
        try {
            SharedLibrary library = open_driver();
            result->found = true;
            result->api = load(std::move(library));
        } catch (const Error& error) {
            loaded = nullptr;
            result->failure = error.what();
        }
        return result;
    }();
    return *once;
}

}  // namespace

void fail_call(std::string_view name, std::string_view arguments, Result result,
               const std::source_location& where) {
    std::string_view file = where.file_name();
    file.remove_prefix(std::min(file.size(), file.rfind("csrc/") == file.npos ? 0 : file.rfind("csrc/")));
    fail(ErrorKind::driver, "{}({}) failed at {}:{}: got {}, expected success; {}", name, arguments, file,
         where.line(), error_name(result), remedy_for(result));
}

const Api& api() {
    const Outcome& result = outcome();
    DG_CHECK(result.api, driver, "{}", result.failure);
    DG_CHECK(result.process == ::getpid(), driver,
             "CUDA was initialised in process {} and cannot be used in its forked child {}; start workers "
             "with the 'spawn' "
             "method, or before the first CUDA call",
             result.process, ::getpid());
    return *result.api;
}

int driver_version() noexcept {
    static std::atomic<int> known{-1};  // no guard that a fork could leave taken
    if (const int version = known.load(); version >= 0) return version;
    const std::string& chosen = env_text(Env::libcuda_path);
    const SharedLibrary library = SharedLibrary::open(chosen.empty() ? "libcuda.so.1" : chosen);
    using Get = Result (*)(int*);
    const auto get = library ? reinterpret_cast<Get>(library.symbol("cuDriverGetVersion")) : nullptr;
    int found = 0;
    if (!get || get(&found) != kSuccess) found = 0;
    known = found;
    return found;
}

const std::string& why_unavailable() noexcept {
    return outcome().failure;
}

bool driver_found() noexcept {
    return outcome().found;
}

}  // namespace deep_gemm::driver::cuda
