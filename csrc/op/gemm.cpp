#include "op/gemm.h"

#include "driver/device.h"
#include "op/tensor_maps.h"

namespace deep_gemm {

namespace op {

namespace {

thread_local LauncherEntry last_launched;

driver::Stream stream_of(const GemmCall& call) {
    return static_cast<driver::Stream>(call.stream);
}

// K = 0: D is C, or zeros. Row by row where rows are apart; this case is not one to be fast in.
void write_without_products(const GemmCall& call) {
    const Operand& d = call.d;
    const u64 bytes = bytes_of(call.problem.d);
    const bool packed_rows = d.rows == 1 || d.stride_row == d.columns;
    const bool packed = packed_rows && (d.groups == 1 || d.stride_group == d.rows * d.columns);
    const auto write = [&](u64 first, u64 count) {
        const u64 destination = d.address + first * bytes;
        if (call.c == 0)
            call.device->fill_bytes(destination, 0, count * bytes, stream_of(call));
        else if (call.c != d.address)
            call.device->copy_on_device(destination, call.c + first * bytes, count * bytes, stream_of(call));
    };
    if (packed) return write(0, d.elements_spanned());
    for (u64 group = 0; group < d.groups; ++group)
        for (u64 row = 0; row < d.rows; ++row) write(group * d.stride_group + row * d.stride_row, d.columns);
}

GemmParams params_of(const GemmCall& call, const GemmSpec& spec) {
    const plan::GemmProblem& problem = call.problem;
    GemmParams params{};
    params.a = matrix_map(*call.device, call.a, problem.ab,
                          box_rows_of(spec, spec.a_major, spec.block_m, spec.cluster_n));
    params.b = matrix_map(*call.device, call.b, problem.ab,
                          box_rows_of(spec, spec.b_major, spec.block_n, spec.cluster_m));
    if (stores_by_tma(spec)) params.d = matrix_map(*call.device, call.d, problem.d, kMmaRows);
    if (loads_c_by_tma(spec)) {
        Operand c = call.d;  // but for its address
        c.address = call.c;
        params.c = matrix_map(*call.device, c, problem.d, kMmaRows);
    }
    params.scale_a = reinterpret_cast<const float*>(call.scale_a.address);
    params.scale_b = reinterpret_cast<const float*>(call.scale_b.address);
    params.group_layout = reinterpret_cast<const i32*>(call.group_layout);
    params.c_data = reinterpret_cast<const void*>(call.c);
    params.d_data = reinterpret_cast<void*>(call.d.address);
    params.scale_a_stride_group = call.scale_a.stride_group;
    params.scale_b_stride_group = call.scale_b.stride_group;
    params.d_stride_group = call.d.stride_group;
    params.scale_a_stride_m = static_cast<u32>(call.scale_a.stride_row);
    params.scale_a_stride_k = static_cast<u32>(call.scale_a.stride_column);
    params.scale_b_stride_n = static_cast<u32>(call.scale_b.stride_row);
    params.scale_b_stride_k = static_cast<u32>(call.scale_b.stride_column);
    params.d_stride_m = static_cast<u32>(call.d.stride_row);
    params.m = problem.m;
    params.n = problem.n;
    params.k = problem.k;
    params.num_groups = problem.num_groups;
    return params;
}

}  // namespace

void run(const GemmCall& call) {
    if (call.empty) return;
    if (call.no_products) return write_without_products(call);
    const LauncherEntry& found = find_launcher(call);
    const LauncherEntry& entry = found ? found : build_launcher(call);
    const Launcher& launcher = *entry;
    const GemmParams params = params_of(call, launcher.plan.spec);
    const driver::MemoryRange memory[] = {
        {call.a.address, bytes_spanned(call.a, call.problem.ab), false},
        {call.b.address, bytes_spanned(call.b, call.problem.ab), false},
        {call.scale_a.address, bytes_spanned(call.scale_a, Format::fp32), false},
        {call.scale_b.address, bytes_spanned(call.scale_b, Format::fp32), false},
        {call.group_layout, call.group_layout_length * 4, false},
        {call.c, call.c ? bytes_spanned(call.d, call.problem.d) : 0, false},
        {call.d.address, bytes_spanned(call.d, call.problem.d), true},
    };
    driver::LaunchConfig config = launcher.config;
    config.stream = stream_of(call);
    config.programmatic_launch = settings().pdl;
    call.device->launch(*launcher.kernel, config, std::as_bytes(std::span(&params, 1)), memory);
    if (last_launched != entry) last_launched = entry;
}

const Launcher* last_launcher() {
    return last_launched.get();
}

}  // namespace op

void gemm(const GemmArguments& arguments) {
    op::run(op::check_gemm(arguments));
}

}  // namespace deep_gemm
