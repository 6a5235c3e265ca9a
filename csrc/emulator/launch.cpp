// The table of emulated GPUs and the checks of a launch.
#include "emulator/launch.h"

#include "base/error.h"
#include "emulator/exec/state.h"
#include "emulator/sched/grid.h"

#include <algorithm>
#include <cstring>

namespace deep_gemm::emulator {
namespace {

constexpr u32 kMaxThreads = 1024;
constexpr u32 kParamAlignment = 64;
constexpr u64 kGiB = u64{1} << 30;

// One row for each GPU. Bytes of shared memory, threads and blocks are those of a multiprocessor.
struct ModelRow {
    const char* arch;
    u32 major, minor, sms, smem_per_block, smem, threads, blocks;
    u64 memory, l2;
};
constexpr ModelRow kModels[] = {
    {"80", 8, 0, 108, 166912, 167936, 2048, 32, 80 * kGiB, 40u << 20},
    {"89", 8, 9, 128, 101376, 102400, 1536, 24, 24 * kGiB, 72u << 20},
    {"90a", 9, 0, 132, 232448, 233472, 2048, 32, 141 * kGiB, 50u << 20},
    {"100a", 10, 0, 148, 232448, 233472, 2048, 32, 180 * kGiB, 126u << 20},
    {"120a", 12, 0, 170, 101376, 102400, 1536, 24, 32 * kGiB, 96u << 20},
    {"121a", 12, 1, 48, 101376, 102400, 1536, 24, 128 * kGiB, 24u << 20},
};

Model make_model(const ModelRow& row) {
    Model model;
    auto& p = model.properties;
    p.name = fmt::format("emulated sm_{}", row.arch);
    p.arch = row.arch;
    p.compute_major = row.major;
    p.compute_minor = row.minor;
    p.num_sms = row.sms;
    p.max_smem_per_block = row.smem_per_block;
    p.global_memory_bytes = row.memory;
    p.l2_bytes = row.l2;
    p.emulated = true;
    model.smem_per_sm = row.smem;
    model.threads_per_sm = row.threads;
    model.blocks_per_sm = row.blocks;
    return model;
}

u32 volume(const driver::Dim3& d) {
    return d.x * d.y * d.z;
}

// A kernel with __cluster_dims__ runs with those when the launch names no cluster, as on the GPU.
driver::Dim3 cluster_of(const EmulatedKernel& kernel, const driver::LaunchConfig& config) {
    const u32* required = kernel.program().function->required_cluster;
    if (required[0] == 0 || volume(config.cluster) != 1) return config.cluster;
    return {required[0], required[1], required[2]};
}

// End of the shared window: reserved bytes, static variables, alignment, dynamic bytes.
u32 smem_end(const EmulatedKernel& kernel, const driver::LaunchConfig& config) {
    return kernel.program().static_smem_bytes + config.dynamic_smem_bytes;
}

bool divides(const driver::Dim3& part, const driver::Dim3& whole) {
    return part.x != 0 && part.y != 0 && part.z != 0 && whole.x % part.x == 0 && whole.y % part.y == 0 &&
           whole.z % part.z == 0;
}

}  // namespace

Model find_model(std::string_view arch) {
    std::string known;
    for (const ModelRow& row : kModels) {
        if (arch == std::string("sm_") + row.arch) return make_model(row);
        known += fmt::format("{}sm_{}", known.empty() ? "" : ", ", row.arch);
    }
    fail(ErrorKind::value, "emulator: got arch '{}', expected one of {}; pass one of them", arch, known);
}

void check_launch(const Model& model, const EmulatedKernel& kernel, const driver::LaunchConfig& config,
                  size_t param_bytes) {
    const Program& program = kernel.program();
    const std::string& name = program.name;
    const driver::Dim3 shape = cluster_of(kernel, config);
    const u32 threads = volume(config.block), cluster = volume(shape);
    const ptx::Function& function = *program.function;
    DG_CHECK(volume(config.grid) != 0 && threads != 0, driver, "emulator: launch of {}: empty grid or block",
             name);
    DG_CHECK(threads <= kMaxThreads, driver, "emulator: launch of {}: {} threads per block, at most {}", name,
             threads, kMaxThreads);
    DG_CHECK(function.max_threads == 0 || threads <= function.max_threads, driver,
             "emulator: launch of {}: {} threads per block, the kernel's __launch_bounds__ allow {}", name,
             threads, function.max_threads);
    DG_CHECK(function.required_threads == 0 || threads == function.required_threads, driver,
             "emulator: launch of {}: {} threads per block, the kernel requires {}", name, threads,
             function.required_threads);
    const u32 largest = model.properties.max_cluster();
    DG_CHECK(
        cluster <= largest && divides(shape, config.grid), driver,
        "emulator: launch of {}: cluster {}x{}x{} must divide the grid {}x{}x{} and hold at most {} blocks",
        name, shape.x, shape.y, shape.z, config.grid.x, config.grid.y, config.grid.z, largest);
    const u32* required = function.required_cluster;
    DG_CHECK(required[0] == 0 || (required[0] == shape.x && required[1] == shape.y && required[2] == shape.z),
             driver, "emulator: launch of {}: cluster {}x{}x{}, the kernel requires {}x{}x{}", name, shape.x,
             shape.y, shape.z, required[0], required[1], required[2]);
    const u32 smem = smem_end(kernel, config) - kReservedSmemBytes;
    DG_CHECK(smem <= kernel.max_smem(), driver,
             "emulator: launch of {}: {} bytes of shared memory ({} dynamic), a block has {}", name, smem,
             config.dynamic_smem_bytes, kernel.max_smem());
    // The blocks of a cluster wait for each other: the driver launches none that cannot all be resident.
    DG_CHECK(
        count_active_clusters(model, kernel, config) != 0, driver,
        "emulator: launch of {}: CUDA_ERROR_INVALID_CLUSTER_SIZE: {} multiprocessors have no room for a cluster "
        "of {} blocks of {} threads and {} bytes of shared memory at once; use a smaller cluster, or more "
        "multiprocessors (sms=) where the device has fewer than the GPU",
        name, model.properties.num_sms, cluster, threads, smem);
    DG_CHECK(
        param_bytes == program.param_bytes, value,
        "emulator: launch of {}: got {} bytes of parameters, expected {}; pass the kernel's whole parameter "
        "struct",
        name, param_bytes, program.param_bytes);
}

u32 count_active_clusters(const Model& model, const EmulatedKernel& kernel,
                          const driver::LaunchConfig& config) {
    const u32 threads = align_up(std::max(volume(config.block), 1u), kLanes),
              cluster = std::max(volume(cluster_of(kernel, config)), 1u);
    const u32 smem = align_up(smem_end(kernel, config), 128u);
    if (smem - kReservedSmemBytes > kernel.max_smem() || cluster > model.properties.max_cluster()) return 0;
    const u32 per_sm =
        std::min({model.smem_per_sm / smem, model.threads_per_sm / threads, model.blocks_per_sm});
    return model.properties.num_sms * per_sm / cluster;
}

void run_launch(const Model& model, const Options& options, const EmulatedKernel& kernel,
                const driver::LaunchConfig& config, std::span<const std::byte> params,
                std::span<const driver::MemoryRange> memory, std::span<const driver::MemoryRange> allocations,
                u64 grid_id) {
    if (options.inputs && config.check_inputs != nullptr) config.check_inputs(params);
    const Program& program = kernel.program();
    std::vector<std::byte> param_storage(params.size() + kParamAlignment);
    auto* param_buffer = reinterpret_cast<std::byte*>(
        align_up(reinterpret_cast<u64>(param_storage.data()), u64{kParamAlignment}));
    if (!params.empty()) std::memcpy(param_buffer, params.data(), params.size());

    std::vector<driver::MemoryRange> stated(memory.begin(), memory.end());
    std::vector<driver::MemoryRange> defaults(allocations.begin(), allocations.end());
    stated.push_back({reinterpret_cast<u64>(param_buffer), params.size(), false, true});
    const auto& variables = kernel.image().module->variables;
    for (size_t i = 0; i < variables.size(); ++i) {
        if (variables[i].space == ptx::Space::constant)
            stated.push_back({kernel.image().addresses[i], variables[i].bytes, false});
        if (variables[i].space == ptx::Space::global)
            defaults.push_back({kernel.image().addresses[i], variables[i].bytes, true});
    }

    Launch launch;
    launch.program = &program;
    launch.grid = config.grid;
    launch.cluster = cluster_of(kernel, config);
    launch.block = config.block;
    launch.dynamic_smem_bytes = config.dynamic_smem_bytes;
    launch.programmatic = config.programmatic_launch;
    launch.smem_bytes = smem_end(kernel, config);
    launch.params = param_buffer;
    launch.ranges = Ranges(stated, defaults);
    launch.options = options;
    launch.num_sms = model.properties.num_sms;
    launch.grid_id = grid_id;
    run_grid(launch, count_active_clusters(model, kernel, config));
}

}  // namespace deep_gemm::emulator
