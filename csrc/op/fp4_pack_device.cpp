#include "op/fp4_pack_device.h"

#include <deep_gemm/spec/fp4_pack.h>

#include "op/launch.h"
#include "op/nvfp4_rounding.h"
#include "op/workspace.h"

#include <cmath>

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kPack{"fp4_pack", "deep_gemm/kernel/fp4_pack.cuh"};

u64 blocks_of(const Fp4Shape& shape) {
    return static_cast<u64>(shape.experts) * fp4_row_blocks(shape.n);
}

void aligned(const TensorChecks& checks, const char* name, const TensorView& t) {
    DG_CHECK(address_of(t) % 16 == 0, value,
             "{}: {} start at {:#x}, expected a multiple of 16; copy the tensor", checks.operation(), name,
             address_of(t));
}

void check(TensorChecks& checks, const Fp4PackArguments& a) {
    const auto [experts, n, k] = a.shape;
    const u32 group = fp4_group_of(a.form);
    const u64 blocks = blocks_of(a.shape);
    DG_CHECK(
        experts >= 1 && n >= 1 && k >= group && k % group == 0 && blocks < (1u << 24), value,
        "{}: weights are {} x {} x {}, expected at least one row, K a multiple of {} and fewer than 2^24 "
        "blocks of 64 rows; pad K with zeros, or pack fewer experts at a time",
        checks.operation(), experts, n, k, group);
    checks.tensor("codes", a.codes, {Format::int8}, {experts, n, k / 2});
    checks.packed("codes", a.codes);
    aligned(checks, "codes", a.codes);
    checks.tensor("scales", a.scales, {Format::int8}, {experts, n, k / group});
    checks.packed("scales", a.scales);
    DG_CHECK(a.globals.present() == is_nvfp4(a.form), value,
             "{}: got {} global scales, expected them with nv_single and nv_exact alone; pass another form",
             checks.operation(), a.globals.present() ? "the" : "no");
    if (a.globals.present()) checks.tensor("globals", a.globals, {Format::fp32}, {experts, n});
    if (a.runs.present()) {
        checks.tensor("runs", a.runs, {Format::int32}, {static_cast<i64>(blocks)});
        checks.packed("runs", a.runs);
    }
    checks.tensor("blobs", a.blobs, {Format::int8}, {-1});
    checks.packed("blobs", a.blobs);
    aligned(checks, "blobs", a.blobs);
    checks.tensor("row_scales", a.row_scales, {Format::fp32}, {-1});
    checks.packed("row_scales", a.row_scales);
    // How many runs `runs` asks for is known to the caller, who made room for them.
    const u64 per_run = fp4_packed_sizes(a.shape, a.form, 1).blobs;
    const u64 room = static_cast<u64>(a.row_scales.shape[0]) / kFp4BlockRows;
    DG_CHECK(
        room >= blocks && static_cast<u64>(a.blobs.shape[0]) >= room * per_run, value,
        "{}: got {} bytes of blobs and {} row scales, expected {} and {} for each run, of which there are "
        "{} or more; fp4_packed_sizes() says how many",
        checks.operation(), a.blobs.shape[0], a.row_scales.shape[0], per_run, kFp4BlockRows, blocks);
}

template <typename Value>
Value read_one(Device& device, const TensorView& t, u64 element, void* stream) {
    Value value{};
    device.copy_to_host(std::as_writable_bytes(std::span(&value, 1)), address_of(t) + element * sizeof(Value),
                        static_cast<driver::Stream>(stream));
    return value;
}

// In the order in which the packer of the host refuses.
void refuse(Device& device, const Fp4PackArguments& a, std::span<const Fp4PackRecord> records) {
    const u32 blocks = fp4_row_blocks(a.shape.n);
    const auto first_row = [&](size_t block) {
        return block / blocks * a.shape.n + block % blocks * kFp4BlockRows;
    };
    for (size_t block = 0; block < records.size(); ++block) {
        if (records[block].bad_global == kFp4NoneBad) continue;
        const u64 row = first_row(block) + records[block].bad_global;
        const u64 element =
            row / a.shape.n * stride_of(a.globals, 0) + row % a.shape.n * stride_of(a.globals, 1);
        refuse_fp4_global(a.shape, row, read_one<float>(device, a.globals, element, a.stream));
    }
    for (size_t block = 0; block < records.size(); ++block) {
        if (records[block].bad_scale == kFp4NoneBad) continue;
        const u64 index = first_row(block) * (a.shape.k / fp4_group_of(a.form)) + records[block].bad_scale;
        refuse_fp4_scale(a.shape, a.form, index, read_one<u8>(device, a.scales, index, a.stream));
    }
}

Fp4PackReport report_of(const Fp4PackArguments& a, std::span<const Fp4PackRecord> records) {
    Fp4PackReport report{.rows = static_cast<u64>(a.shape.experts) * a.shape.n};
    const std::array<NvMantissaRounding, 8> table = nv_rounding_table();
    double squares = 0, weights = 0;
    for (const Fp4PackRecord& record : records) {
        (is_nvfp4(a.form) ? report.rows_beyond_window : report.rows_beyond_e4m3) += record.rows_beyond[0];
        report.rows_beyond_e5m2 += record.rows_beyond[1];
        report.widest = std::max(report.widest, record.widest);
        squares += record.squares, weights += record.weights;
        for (u32 mantissa = 0; mantissa < 8; ++mantissa)
            if (record.mantissas >> mantissa & 1)
                report.worst_error = std::max(report.worst_error, table[mantissa].worst);
    }
    report.rms_error = weights > 0 ? std::sqrt(squares / weights) : 0;
    return report;
}

}  // namespace

Fp4PackedSizes fp4_packed_sizes(const Fp4Shape& shape, Fp4Form form, u64 num_runs) {
    return {.blobs = num_runs * fp4_k_blocks(shape.k) * fp4_blob_bytes_of(form),
            .row_scales = num_runs * kFp4BlockRows};
}

Fp4Packing pack_fp4_on_device(const Fp4PackArguments& a) {
    TensorChecks checks("pack_fp4_weights");
    check(checks, a);
    Device& device = checks.device();
    const u64 blocks = blocks_of(a.shape);
    std::vector<Fp4PackRecord> records(blocks);
    const auto bytes = std::as_writable_bytes(std::span(records));
    const auto stream = static_cast<driver::Stream>(a.stream);
    {
        const WorkspaceLease lease = workspace(device, stream, bytes.size());
        const Fp4PackParams params{
            .codes = static_cast<const u8*>(a.codes.data),
            .scales = static_cast<const u8*>(a.scales.data),
            .globals = static_cast<const float*>(a.globals.data),
            .runs = static_cast<const u32*>(a.runs.data),
            .blobs = static_cast<u8*>(a.blobs.data),
            .row_scales = static_cast<float*>(a.row_scales.data),
            .records = reinterpret_cast<Fp4PackRecord*>(lease.address),
            .globals_stride_expert = a.globals.present() ? stride_of(a.globals, 0) : 0,
            .globals_stride_row = a.globals.present() ? stride_of(a.globals, 1) : 0,
            .experts = a.shape.experts,
            .n = a.shape.n,
            .k = a.shape.k,
        };
        launch(device, kPack, Fp4PackSpec{.form = a.form},
               {.grid = static_cast<u32>(blocks), .threads = kFp4PackThreads}, a.stream, params,
               {reads(a.codes),
                reads(a.scales),
                reads(a.globals),
                reads(a.runs),
                writes(a.blobs),
                writes(a.row_scales),
                {lease.address, bytes.size(), true}});
        device.copy_to_host(bytes, lease.address, stream);
    }
    refuse(device, a, records);
    const std::span<const Fp4Form> forms =
        fp4_forms(is_nvfp4(a.form), a.forced ? std::optional(a.form) : std::nullopt);
    std::vector<std::vector<u32>> runs(forms.size());
    for (size_t i = 0; i < forms.size(); ++i)
        for (const Fp4PackRecord& record : records)
            runs[i].push_back(record.runs[forms[i] == Fp4Form::mx_e5m2 ? 1 : 0]);
    const Fp4Choice choice = choose_fp4_form(a.shape, forms, runs);
    Fp4Packing packing{.form = choice.form, .runs = {}, .report = report_of(a, records)};
    packing.report.extra_runs = choice.extra_runs;
    if (choice.extra_runs > 0) packing.runs = choice.table();
    return packing;
}

}  // namespace deep_gemm::op
