// The public C++ API, installed as <deep_gemm/api.h>: the operations of the Python package over plain tensor
// views. Self-contained; links with the CMake target deep_gemm::deep_gemm. Every call checks its arguments
// first and throws deep_gemm::Error (kind value or type) with what was got, expected and what to do; then
// nothing was launched. Calls are asynchronous on a GPU, never synchronise or allocate, and may be captured
// in a CUDA graph (run each problem once before the capture, so that its kernel is compiled). All are safe to
// use from several threads.
#pragma once

#include <deep_gemm/spec/gemm.h>

#include <functional>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/exception.h"

namespace deep_gemm {

namespace driver {
class Device;
}
using Device = driver::Device;  // opaque here; lives as long as the process

// "cuda", "cuda:1", "emulator", "emulator:sm_90a"; empty: $DG_DEVICE, else the current GPU, else the emulated
// one.
[[nodiscard]] Device& find_device(std::string_view name = {});
[[nodiscard]] std::string name_of(const Device& device);
[[nodiscard]] u32 num_sms_of(const Device& device);
void synchronize(Device& device, void* stream = nullptr);

// Memory of a device, for programs that have no other allocator. On the emulator any host memory will do as
// well.
class Buffer {
  public:
    Buffer(Device& device, u64 bytes);
    ~Buffer();
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    [[nodiscard]] void* data() const { return data_; }
    [[nodiscard]] u64 bytes() const { return bytes_; }
    void copy_from_host(const void* source, void* stream = nullptr);
    void copy_to_host(void* destination, void* stream = nullptr) const;  // synchronises

  private:
    Device* device_;
    void* data_ = nullptr;
    u64 bytes_ = 0;
};

// Memory of someone else: no ownership, valid as long as the call that gets it (and what it launched) runs.
struct TensorView {
    static constexpr u32 kMaxRank = 4;

    void* data = nullptr;
    Format format = Format::none;  // none: the argument is absent
    u32 rank = 0;
    i64 shape[kMaxRank] = {};
    i64 strides[kMaxRank] = {};  // in elements
    Device* device = nullptr;

    [[nodiscard]] bool present() const { return format != Format::none; }
};

// A packed, row-major view.
[[nodiscard]] TensorView make_view(Device& device, const void* data, Format format,
                                   std::initializer_list<i64> shape);

// D = C + A B^T. Shapes by `groups` (k_blocks = ceil(k / 128), g = number of matrices in b):
//
//               a, scale_a               b, scale_b               d, c        group_layout
//   dense       [m, k], [m, k_blocks]    [n, k] and scales        [m, n]      absent
//   contiguous  as dense                 [g, n, k] and scales     [m, n]      int32 [m]: group of a row; -1 or
//                                                                             any other value outside [0, g)
//                                                                             gives a row of zeros
//   psum        as dense                 [g, n, k] and scales     [m, n]      int32 [g]: end row of each group;
//                                                                             the next starts at a multiple
//                                                                             of 128
//   masked      [g, m, k], [g, m, ...]   [g, n, k] and scales     [g, m, n]   int32 [g]: valid rows of a group
//
// a and b are fp8_e4m3 with fp32 scales, or bf16 with none; K is contiguous, rows start at multiples of 16
// bytes. scale_b is [n / 128, k_blocks] rounded up (per_128x128) or [n, k_blocks] (per_row_128). Scales may
// have any strides and any value: NaN and infinity go to the products they scale. d is bf16 or fp32 with
// contiguous rows, those of masked groups in turn or interleaved; c has d's type, shape and strides and may
// be d. m = 0 or n = 0 does nothing, k = 0 gives C or zeros. contiguous: segments of one group start at
// multiples of 128 rows. masked and psum: rows beyond a group's end, up to the end of its last block, hold
// anything (masked) or zeros (psum).
struct GemmArguments {
    GroupMode groups = GroupMode::dense;
    Format ab = Format::fp8_e4m3;
    ScaleB scale_b_mode = ScaleB::per_128x128;  // none for bf16
    TensorView a = {}, scale_a = {}, b = {}, scale_b = {}, d = {}, c = {}, group_layout = {};
    i64 expected_m = 0;  // masked, psum: rows a group is likely to have; chooses the kernel, nothing else
    const GemmSpec* spec = nullptr;  // forces a kernel (tuners, tests)
    void* stream = nullptr;          // CUstream; null: the default stream
    const char* function = nullptr;  // what errors begin with; null: gemm or m_grouped_gemm
};

void gemm(const GemmArguments& arguments);

// Compiles what a later call will need, in parallel, before it is needed. A problem is a line as `explain`
// prints it: "gemm m=64 n=7168 k=2048 a=fp8_e4m3 d=bf16"; every kernel that its (n, k) can choose for 1 to m
// rows is built.
struct WarmupReport {
    u32 num_kernels = 0;
    double seconds = 0;
};
using WarmupProgress =
    std::function<void(u32 done, u32 total, const std::string& kernel)>;  // from any thread
WarmupReport warmup(Device& device, std::span<const std::string> problems,
                    const WarmupProgress& progress = {});

// The plan of a problem, with the costs and the candidates it beat.
[[nodiscard]] std::string explain(const Device& device, std::string_view problem, u32 rows = 12);

// Process-wide settings, readable and writable at any time; a call uses what it finds.
struct Settings {
    u32 num_sms = 0;  // streaming multiprocessors a kernel may fill; 0: all
    bool pdl = true;  // programmatic dependent launch: a kernel's prologue may overlap its predecessor's end
};
[[nodiscard]] Settings settings();
void set_settings(const Settings& settings);

}  // namespace deep_gemm
