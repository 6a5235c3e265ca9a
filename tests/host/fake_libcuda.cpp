// A stand-in for libcuda: every entry point the library opens, no GPU. Memory is host memory, launches do
// nothing but are written down. FAKE_VERSION: driver version (13000). FAKE_DEVICES: number of GPUs (1).
// FAKE_FAIL: the call that fails, with FAKE_CODE (2). FAKE_LOG: file that gets one line per interesting call.
// FAKE_PARAM_BYTES: the parameters of a kernel that comes from no cubin (8). FAKE_LAUNCH_MS: how long a
// launch takes on the host (0). FAKE_CAPTURING: a capture is under way, in which allocating and loading fail
// (900) unless the thread's mode is relaxed.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

namespace {

int number(const char* name, int fallback) {
    const char* text = std::getenv(name);
    return text ? std::atoi(text) : fallback;
}

void note(const std::string& line) {
    const char* path = std::getenv("FAKE_LOG");
    if (!path) return;
    std::FILE* file = std::fopen(path, "a");
    std::fprintf(file, "%s\n", line.c_str());
    std::fclose(file);
}

int result_of(const char* call) {
    const char* failing = std::getenv("FAKE_FAIL");
    return failing && std::strcmp(failing, call) == 0 ? number("FAKE_CODE", 2) : 0;
}

struct Config {
    unsigned grid[3], block[3], shared;
    void* stream;
    struct {
        unsigned id;
        char padding[4];
        unsigned value[16];
    } * attributes;
    unsigned num_attributes;
};

thread_local std::string contexts;  // the stack of current contexts, one letter each
thread_local int capture_mode = 0;  // global

bool forbidden() {
    return std::getenv("FAKE_CAPTURING") && capture_mode != 2;
}
char handles[16];

// A kernel's handle points to what a cubin's table of attributes says of its one parameter.
struct Parameter {
    size_t offset = 0, bytes = 0;
};
std::mutex kernels_mutex;
std::map<std::string, Parameter> kernels;

template <typename T>
T field(const char* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

void find_kernels(const char* image) {
    if (std::strncmp(image,
                     "\x7f"
                     "ELF",
                     4) != 0)
        return;
    const char* sections = image + field<unsigned long long>(image + 0x28);
    const auto section = [sections](unsigned i) { return sections + 64 * i; };
    const auto data_of = [image](const char* header) {
        return image + field<unsigned long long>(header + 0x18);
    };
    const char* names = data_of(section(field<unsigned short>(image + 0x3e)));
    const std::string prefix = ".nv.info.";
    for (unsigned i = 0; i < field<unsigned short>(image + 0x3c); ++i) {
        const std::string name = names + field<unsigned>(section(i));
        if (name.rfind(prefix, 0) != 0) continue;
        const char *at = data_of(section(i)), *end = at + field<unsigned long long>(section(i) + 0x20);
        // Format, attribute, value; of format 4 the value is a size, and so many bytes follow.
        for (; at < end; at += 4 + (*at == 4 ? field<unsigned short>(at + 2) : 0)) {
            constexpr char kParameterInfo = 0x17;  // index, ordinal, offset, bytes in the upper 14 bits
            if (at[1] == kParameterInfo && field<unsigned short>(at + 8) == 0)
                kernels[name.substr(prefix.size())] = {field<unsigned short>(at + 10),
                                                       field<unsigned>(at + 12) >> 18};
        }
    }
}

}  // namespace

#define CALL(name, ...)                \
    extern "C" int name(__VA_ARGS__) { \
        if (int code = result_of(#name)) return code;

// clang-format off
CALL(cuInit, unsigned) return 0; }
CALL(cuDriverGetVersion, int* version) *version = number("FAKE_VERSION", 13000); return 0; }
CALL(cuGetErrorName, int code, const char** name) *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OTHER"; return 0; }
CALL(cuGetErrorString, int, const char** text) *text = "as asked for"; return 0; }
CALL(cuDeviceGetCount, int* count) *count = number("FAKE_DEVICES", 1); return 0; }
CALL(cuDeviceGet, int* device, int ordinal) *device = ordinal; return 0; }
CALL(cuDeviceGetName, char* name, int size, int) std::snprintf(name, size, "Fake GPU"); return 0; }
CALL(cuDeviceGetAttribute, int* value, int which, int)
    static const std::map<int, int> values = {{16, 132}, {38, 50 << 20}, {75, 9}, {76, 0}, {97, 232448}};
    *value = values.at(which);
    return 0;
}
CALL(cuDeviceTotalMem_v2, size_t* bytes, int) *bytes = size_t{1} << 37; return 0; }
CALL(cuDevicePrimaryCtxRetain, void** context, int device) note("retain " + std::to_string(device)); *context = handles + device; return 0; }
CALL(cuCtxGetCurrent, void** context) *context = contexts.empty() ? nullptr : handles + (contexts.back() - 'a'); return 0; }
CALL(cuCtxGetDevice, int* device) *device = contexts.back() - 'a'; return 0; }
CALL(cuCtxPushCurrent_v2, void* context) contexts.push_back(char('a' + (static_cast<char*>(context) - handles))); return 0; }
CALL(cuCtxPopCurrent_v2, void** context) *context = handles + (contexts.back() - 'a'); contexts.pop_back(); return 0; }
CALL(cuMemAlloc_v2, unsigned long long* address, size_t bytes) if (forbidden()) return 900; note("allocate " + std::to_string(bytes)); *address = reinterpret_cast<unsigned long long>(std::aligned_alloc(256, (bytes + 255) / 256 * 256)); return 0; }
CALL(cuMemFree_v2, unsigned long long address) std::free(reinterpret_cast<void*>(address)); return 0; }
CALL(cuMemGetInfo_v2, size_t* available, size_t* total) *available = size_t{1} << 36, *total = size_t{1} << 37; return 0; }
CALL(cuMemcpyHtoDAsync_v2, unsigned long long to, const void* from, size_t bytes, void*) std::memcpy(reinterpret_cast<void*>(to), from, bytes); return 0; }
CALL(cuMemcpyDtoHAsync_v2, void* to, unsigned long long from, size_t bytes, void*) std::memcpy(to, reinterpret_cast<void*>(from), bytes); return 0; }
CALL(cuMemcpyDtoDAsync_v2, unsigned long long to, unsigned long long from, size_t bytes, void*) std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); return 0; }
CALL(cuMemsetD8Async, unsigned long long to, unsigned char value, size_t bytes, void*) std::memset(reinterpret_cast<void*>(to), value, bytes); return 0; }
CALL(cuModuleLoadDataEx, void** module, const void* image, unsigned, int*, void**)
    if (forbidden()) return 900;
    const std::lock_guard lock(kernels_mutex);
    find_kernels(static_cast<const char*>(image));
    note("load in " + contexts.substr(contexts.size() - 1));
    *module = handles;
    return 0;
}
CALL(cuModuleUnload, void*) note("unload"); return 0; }
CALL(cuModuleGetFunction, void** function, void*, const char* name)
    const std::lock_guard lock(kernels_mutex);
    *function = &kernels.try_emplace(name, Parameter{0, static_cast<size_t>(number("FAKE_PARAM_BYTES", 8))}).first->second;
    return 0;
}
CALL(cuFuncGetAttribute, int* value, int which, void*) *value = which == 4 ? 168 : which == 1 ? 1024 : 0; return 0; }
CALL(cuFuncSetAttribute, void*, int which, int value) note("attribute " + std::to_string(which) + " = " + std::to_string(value)); return 0; }
CALL(cuFuncGetParamInfo, void* function, size_t index, size_t* offset, size_t* bytes)
    *offset = static_cast<Parameter*>(function)->offset;
    *bytes = static_cast<Parameter*>(function)->bytes;
    return index == 0 ? 0 : 1;
}
CALL(cuLaunchKernelEx, const Config* c, void*, void** arguments, void**)
    std::string line = "launch grid " + std::to_string(c->grid[0]) + " block " + std::to_string(c->block[0]) + " shared " + std::to_string(c->shared);
    for (unsigned i = 0; i < c->num_attributes; ++i) line += " attribute " + std::to_string(c->attributes[i].id) + " = " + std::to_string(c->attributes[i].value[0]);
    note(line + " first " + std::to_string(*static_cast<unsigned char*>(arguments[0])));
    std::this_thread::sleep_for(std::chrono::milliseconds(number("FAKE_LAUNCH_MS", 0)));
    return 0;
}
CALL(cuOccupancyMaxActiveClusters, int* clusters, void*, const Config*) *clusters = 66; return 0; }
CALL(cuTensorMapEncodeTiled, void* map, int type, unsigned rank, void*, const unsigned long long* dims, const unsigned long long*, const unsigned* box, const unsigned*, int, int swizzle, int promotion, int)
    std::memset(map, 0, 128);
    note("tensor map type " + std::to_string(type) + " rank " + std::to_string(rank) + " dim " + std::to_string(dims[0]) + " box " + std::to_string(box[0]) + " swizzle " + std::to_string(swizzle) + " promotion " + std::to_string(promotion));
    return 0;
}
CALL(cuStreamCreate, void** stream, unsigned) *stream = handles + 1; return 0; }
CALL(cuStreamDestroy_v2, void*) return 0; }
CALL(cuStreamSynchronize, void*) return 0; }
CALL(cuStreamBeginCapture_v2, void*, int mode) note("capture " + std::to_string(mode)); return 0; }
CALL(cuStreamEndCapture, void*, void** graph) *graph = handles + 2; return 0; }
CALL(cuThreadExchangeStreamCaptureMode, int* mode) std::swap(*mode, capture_mode); return 0; }
CALL(cuEventCreate, void** event, unsigned) *event = handles + 3; return 0; }
CALL(cuEventDestroy_v2, void*) return 0; }
CALL(cuEventRecord, void*, void*) return 0; }
CALL(cuEventSynchronize, void*) return 0; }
CALL(cuEventElapsedTime, float* milliseconds, void*, void*) *milliseconds = 1.5f; return 0; }
CALL(cuGraphInstantiateWithFlags, void** executable, void*, unsigned long long) *executable = handles + 4; return 0; }
CALL(cuGraphDestroy, void*) return 0; }
CALL(cuGraphExecDestroy, void*) return 0; }
#ifndef WITHOUT_GRAPH_LAUNCH
CALL(cuGraphLaunch, void*, void*) note("graph"); return 0; }
#endif
