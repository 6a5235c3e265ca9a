#include "op/project_staged.h"

#include "op/weight_check.h"

#include <algorithm>

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kProjectStaged{"project_staged", "deep_gemm/kernel/project_staged.cuh"};
constexpr u64 kStagedVector = 16;

bool is_aligned(const TensorView& t) {
    return address_of(t) % kStagedVector == 0 &&
           (t.shape[0] <= 1 || static_cast<u64>(t.strides[0]) * bytes_of(t.format) % kStagedVector == 0);
}

// Whether the kernel takes a matrix, whose formats are those of `like`.
bool takes(const CheckedWeight& w, const TensorView& y, const CheckedWeight& like, const TensorView& like_y) {
    return w.format == Format::fp8_e4m3 && w.scale_format == like.scale_format && y.format == like_y.format &&
           w.count == 1 && w.k == like.k && w.n > 0 && w.n % kProjectTileRows == 0 &&
           reinterpret_cast<u64>(w.view.data) % kStagedVector == 0 && w.view.stride_row % kStagedVector == 0;
}

// Tiles that are stored at once: of few chunks each, several share a barrier.
u32 row_tiles_of(u32 few, u32 tiles_of_block) {
    const u32 wanted = few == 1 ? 4 : few % 2 == 0 && few > 2 ? 1 : 2;
    return std::min(wanted, tiles_of_block);
}
u32 depth_of(u32 units) {
    constexpr u32 kMost = 4;  // that registers have room for
    u32 depth = std::min(units, kMost);
    while (units % depth != 0) --depth;
    return depth;
}

}  // namespace

u32 staged_blocks(const Device& device) {
    return device.properties().num_sms * kStagedCtas;
}

std::optional<Prepared<ProjectStagedSpec, ProjectStagedParams>> prepare_staged(ModelChecks& checks,
                                                                               const StagedArguments& a,
                                                                               u32 blocks) {
    const i64 rows = a.x.shape[0], k = a.x.shape[1];
    const bool normed = a.input == StagedInput::normed;
    if (a.x.rank != 2 || a.x.format != Format::bf16 || !is_aligned(a.x) || rows < 1 ||
        rows > kStagedMostRows || k % kStagedColumns != 0 ||
        k > i64{normed ? kMaxNormed : kMaxStaged} * kStagedColumns || a.matrices.empty() ||
        a.matrices.size() > kMaxProjectParts ||
        (normed && a.weight.present() && address_of(a.weight) % kStagedVector != 0))
        return std::nullopt;
    if (normed) checks.optional_vector("weight", a.weight, kReal, {k}, 4);

    checks.array("x", a.x, {Format::bf16}, {rows, k}, 4);
    const ProjectMatrix& first = a.matrices.front();
    const CheckedWeight like = check_weight(checks, "w", first.w, "w_scale", first.w_scale);
    Prepared<ProjectStagedSpec, ProjectStagedParams> out{};
    ProjectMmaParams& p = out.params.p;
    out.memory = {reads(a.x), reads_constant(a.weight), reads(a.add)};
    for (const ProjectMatrix& m : a.matrices) {
        const CheckedWeight w = check_weight(checks, "w", m.w, "w_scale", m.w_scale);
        if (!takes(w, m.y, like, first.y) || w.k != k) return std::nullopt;
        checks.array("y", m.y, kReal, {rows, w.n});
        const View y = view_of(m.y), add = view_of(a.add);
        const u32 before = p.num_parts == 0 ? 0 : p.parts[p.num_parts - 1].end;
        p.parts[p.num_parts++] = {.w = w.view.data,
                                  .scale = w.view.scale,
                                  .stride_row = w.view.stride_row,
                                  .scale_stride_row = w.view.scale_stride_row,
                                  .x_offset = 0,
                                  .x_scale_offset = 0,
                                  .y = y.data,
                                  .add = add.data,
                                  .y_stride = y.stride,
                                  .add_stride = add.stride,
                                  .n = w.n,
                                  .end = before + w.n / kProjectTileRows};
        out.memory.insert(out.memory.end(), {reads_constant(m.w), reads_constant(m.w_scale), writes(m.y)});
    }
    if (a.add.present()) checks.array("add", a.add, kReal, {rows, like.n});
    const u32 tiles = p.parts[p.num_parts - 1].end;
    const View x = view_of(a.x);
    p.x = x.data, p.x_stride = x.stride;
    p.rows = as_u32(rows), p.k = as_u32(k), p.token_blocks = 1;
    out.grid = std::min(tiles, blocks);
    ProjectStagedSpec& s = out.spec;
    s = {.input = a.input,
         .weight = normed ? a.weight.format : Format::none,
         .w_scale = like.scale_format,
         .y = first.y.format,
         .add = a.add.format,
         .few = as_u32(k) / kStagedColumns,
         .tokens = rows == 1 ? 1 : kStagedMostRows};
    s.row_tiles = row_tiles_of(s.few, ceil_div(tiles, out.grid));
    s.depth = depth_of(s.few * s.row_tiles);
    out.params.weight = a.weight.data, out.params.eps = a.eps;
    return out;
}

bool takes_normed(const RmsNormArguments& norm) {
    const NarrowCopy& narrow = norm.narrow;
    return norm.x.shape[0] <= kStagedMostRows && narrow.present() && narrow.recipe == Recipe::fp8_128 &&
           narrow.rule == ScaleRule::up;
}

std::optional<Prepared<ProjectStagedSpec, ProjectStagedParams>> prepare_normed(
    ModelChecks& checks, const RmsNormArguments& norm, std::span<const ProjectMatrix> matrices, u32 blocks) {
    if (!takes_normed(norm)) return std::nullopt;
    return prepare_staged(checks,
                          {.input = StagedInput::normed,
                           .x = norm.x,
                           .weight = norm.weight,
                           .matrices = matrices,
                           .eps = norm.eps},
                          blocks);
}

void launch_staged(Device& device, const Prepared<ProjectStagedSpec, ProjectStagedParams>& prepared,
                   void* stream) {
    launch(device, kProjectStaged, kProjectThreads, stream, prepared);
}

}  // namespace deep_gemm::op
