// project(): y = x w^T whose rows have the same bits at any batch size.
#include "op/moe_parts.h"
#include "op/project_staged.h"
#include "op/project_wide.h"
#include "op/weight_check.h"

#include <algorithm>
#include <vector>

namespace deep_gemm::op {

namespace {

constexpr jit::KernelId kProject{"project", "deep_gemm/kernel/project.cuh"};
constexpr const char* kMmaHeader = "deep_gemm/kernel/project_mma.cuh";
constexpr const char* kFewProjectHeader = "deep_gemm/kernel/project_few.cuh";
constexpr jit::KernelId kProjectMma{"project_mma", kMmaHeader}, kProjectPair{"project_pair", kMmaHeader},
    kProjectFew{"project_few", kFewProjectHeader}, kProjectFewPair{"project_few_pair", kFewProjectHeader};

// Rows of x that share a load of w. Any value gives the same bits.
constexpr u32 kRowsOfMany = 4;
constexpr u32 kVectorBytes = 16;
// Rows of x from which blocks have many rows of both matrices.
constexpr u32 kRowsOfWide = 128;
// Rows of x up to which two kinds of matrices share a launch, in the registers that the larger one needs.
constexpr u32 kRowsOfPair = 32;
// Rows of x that project_staged rounds; of three, a layer of DeepSeek-V4-Flash takes 3 us longer with it (H200).
constexpr i64 kRowsOfStaged = 1;

struct Checked {
    TensorView x, x_scale, y, add;
    CheckedWeight w;
};

Checked check(ModelChecks& checks, const ProjectArguments& a) {
    Checked c{.x = with_inner(a.x),
              .x_scale = with_inner(a.x_scale),
              .y = with_inner(a.y),
              .add = with_inner(a.add),
              .w = check_weight(checks, "w", a.w, "w_scale", a.w_scale)};
    check_activation(checks, "x", c.x, "x_scale", c.x_scale, c.w);
    DG_CHECK(c.x.shape[1] == c.w.count, value,
             "project: x has {} groups and w {}, expected as many; pass a matrix for each group of x",
             c.x.shape[1], c.w.count);
    checks.array("y", c.y, kReal, {c.x.shape[0], c.w.count, c.w.n});
    if (c.add.present()) checks.array("add", c.add, kReal, {c.x.shape[0], c.w.count, c.w.n});
    checks.outputs({{"y", "add"}});
    return c;
}

// Whether tensor cores serve the formats and the loads of 16 bytes. What this depends on is the same for any
// number of rows but the stride of x, which callers keep.
bool takes_mma(const Checked& c) {
    const bool formats = (c.w.format == Format::bf16 && c.x.format == Format::bf16) ||
                         (c.w.format == Format::fp8_e4m3 && c.x.format != Format::fp32);
    const auto aligned = [](const TensorView& t) {
        bool all = address_of(t) % kVectorBytes == 0;
        for (u32 i = 0; i + 1 < t.rank; ++i)
            all = all && (t.shape[i] <= 1 ||
                          static_cast<u64>(t.strides[i]) * bytes_of(t.format) % kVectorBytes == 0);
        return all;
    };
    const u64 w_bytes = bytes_of(c.w.format);
    return formats && c.w.k % kProjectColumns == 0 && aligned(c.x) &&
           reinterpret_cast<u64>(c.w.view.data) % kVectorBytes == 0 &&
           c.w.view.stride_row * w_bytes % kVectorBytes == 0 &&
           c.w.view.stride_matrix * w_bytes % kVectorBytes == 0 && c.w.count <= kMaxProjectParts;
}

// One launch for matrices that agree in formats, k and x.
class MmaLaunch {
  public:
    // `outputs`: rows of all matrices that will share the launch, about.
    MmaLaunch(Device& device, const Checked& first, u64 outputs, void* stream)
        : device_(device), stream_(stream) {
        const u32 rows = as_u32(first.x.shape[0]);
        // One tile of outputs is best while all blocks are there at once; many of them go in pairs.
        const u64 at_once = u64{device.properties().num_sms} *
                            ctas_per_sm_of(ProjectMmaSpec{.x = first.w.format, .w = first.w.format});
        const bool pairs = rows <= kProjectTileTokens && first.w.format == Format::fp8_e4m3 &&
                           outputs > at_once * kProjectTileRows;
        spec_ = {.x = first.x.format,
                 .w = first.w.format,
                 .w_scale = first.w.scale_format,
                 .y = first.y.format,
                 .add = first.add.format,
                 .row_tiles = rows > 2 * kProjectTileTokens || pairs ? 2u : 1u,
                 .token_tiles = rows <= 8    ? 1u
                                : rows <= 16 ? 2u
                                             : 4u};
        if (rows >= kRowsOfWide) spec_.row_tiles = spec_.token_tiles = 1, spec_.wide = true;
        const View x = view_of(first.x), x_scale = view_of(first.x_scale);
        params_.x = x.data;
        params_.x_scale = static_cast<const float*>(x_scale.data);
        params_.x_stride = x.stride, params_.x_scale_stride = x_scale.stride;
        params_.rows = rows, params_.k = first.w.k;
        params_.token_blocks =
            ceil_div(rows, spec_.wide ? kWideRows : spec_.token_tiles * kProjectTileTokens);
        read(first.x), read(first.x_scale);
    }
    [[nodiscard]] u32 rows() const { return params_.rows; }
    [[nodiscard]] bool takes(const Checked& c) const {
        return params_.num_parts + c.w.count <= kMaxProjectParts && spec_.x == c.x.format &&
               spec_.w == c.w.format && spec_.w_scale == c.w.scale_format && spec_.y == c.y.format;
    }
    void add(const Checked& c) {
        const View x = view_of(c.x), x_scale = view_of(c.x_scale), y = view_of(c.y), plus = view_of(c.add);
        const u64 y_bytes = bytes_of(c.y.format), w_bytes = bytes_of(c.w.format),
                  scale_bytes = c.w.scale_format == Format::none ? 0 : bytes_of(c.w.scale_format),
                  add_bytes = c.add.present() ? bytes_of(c.add.format) : 0;
        const auto at = [](const void* base, u64 offset) {
            return base ? static_cast<u8*>(const_cast<void*>(base)) + offset : nullptr;
        };
        x_groups_ = std::max(x_groups_, c.w.count);
        for (u32 g = 0; g < c.w.count; ++g) {
            blocks_ += ceil_div(c.w.n, spec_.wide ? kWideRows : spec_.row_tiles * kProjectTileRows);
            params_.parts[params_.num_parts++] = {
                .w = at(c.w.view.data, g * c.w.view.stride_matrix * w_bytes),
                .scale = at(c.w.view.scale, g * c.w.view.scale_stride_matrix * scale_bytes),
                .stride_row = c.w.view.stride_row,
                .scale_stride_row = c.w.view.scale_stride_row,
                .x_offset = g * x.inner_stride,
                .x_scale_offset = g * x_scale.inner_stride,
                .y = at(y.data, g * y.inner_stride * y_bytes),
                .add = at(plus.data, g * plus.inner_stride * add_bytes),
                .y_stride = y.stride,
                .add_stride = plus.stride,
                .n = c.w.n,
                .end = blocks_};
        }
    }
    // Before add(): a tile of rows is what its registers have room for.
    void round_x() { spec_.rounds = true, spec_.row_tiles = 1; }
    void read(const TensorView& t) { memory_.push_back(reads(t)); }
    void read_weights(const TensorView& t) { memory_.push_back(reads_constant(t)); }
    void write(const TensorView& t) { memory_.push_back(writes(t)); }
    [[nodiscard]] Prepared<ProjectMmaSpec, ProjectMmaParams> prepared() const {
        return {spec_, params_, grid(), memory_};
    }
    void run() const {
        if (spec_.wide) return project_wide(device_, spec_, params_, x_groups_, stream_, memory_);
        if (!takes_few(false))
            return launch(device_, kProjectMma, spec_, {grid(), kProjectThreads}, stream_, params_, memory_);
        const u32 blocks = std::min(few_tiles(), few_at_once());
        launch(device_, kProjectFew, few(blocks), {blocks, kProjectThreads}, stream_, few_params(), memory_);
    }
    // With another one that neither reads nor writes what this one writes.
    void run_with(const MmaLaunch& other) const {
        std::vector<driver::MemoryRange> memory = memory_;
        memory.insert(memory.end(), other.memory_.begin(), other.memory_.end());
        if (takes_few(true) && other.takes_few(true)) {
            // Each has blocks of threads for all of its rows where there are enough; else the larger one gives.
            const u32 at_once = few_at_once(), a = few_tiles(), b = other.few_tiles();
            const u32 most_a = std::max(at_once - std::min(b, at_once / 2), at_once / 2);
            const u32 first = std::min(a, most_a), second = std::min(b, at_once - first);
            const ProjectPairParams params{
                .first = few_params(), .second = other.few_params(), .first_blocks = first};
            return launch(device_, kProjectFewPair, ProjectPairSpec{few(first), other.few(second)},
                          {first + second, kProjectThreads}, stream_, params, memory);
        }
        const ProjectPairParams params{.first = params_, .second = other.params_, .first_blocks = grid()};
        launch(device_, kProjectPair, ProjectPairSpec{spec_, other.spec_},
               {grid_of("project", u64{grid()} + other.grid()), kProjectThreads}, stream_, params, memory);
    }

  private:
    [[nodiscard]] u32 grid() const { return grid_of("project", u64{blocks_} * params_.token_blocks); }
    // Where project_few is faster on an H200: 5 to 8 rows (a layer of DeepSeek-V4-Flash 256 us, else 274), and
    // pairs of a single row, whose blocks of project_mma are a few more than all SMs have room for at once. What
    // it has on its way early slows the small launches in front of it: others are no faster, or slower.
    [[nodiscard]] bool takes_few(bool pair) const {
        constexpr u32 kSeveral = 5;
        bool whole = params_.rows <= kProjectTileTokens &&
                     (params_.rows >= kSeveral || (pair && params_.rows == 1)) &&
                     params_.k % (kProjectWarps * kProjectColumns) == 0 && few_chunks() <= kMaxProjectFew;
        for (u32 i = 0; i < params_.num_parts; ++i)
            whole = whole && params_.parts[i].n % kProjectTileRows == 0;
        return whole;
    }
    [[nodiscard]] u32 few_chunks() const { return params_.k / (kProjectWarps * kProjectColumns); }
    [[nodiscard]] u32 few_at_once() const { return device_.properties().num_sms * kProjectFewCtas; }
    [[nodiscard]] u32 few_tiles() const { return few_params().parts[params_.num_parts - 1].end; }
    [[nodiscard]] ProjectMmaParams few_params() const {
        ProjectMmaParams params = params_;
        u32 end = 0;
        for (u32 i = 0; i < params.num_parts; ++i)
            params.parts[i].end = end += params.parts[i].n / kProjectTileRows;
        params.token_blocks = 1;
        return params;
    }
    // For that many blocks of threads.
    [[nodiscard]] ProjectMmaSpec few(u32 blocks) const {
        ProjectMmaSpec spec = spec_;
        const u32 tiles = ceil_div(few_tiles(), blocks);  // of a block
        spec.few = few_chunks();
        spec.token_tiles = 1;
        // Of few chunks each, several tiles share a barrier.
        spec.row_tiles = std::min(tiles, spec.few == 1 ? 4u : spec.few == 2 ? 2u : 1u);
        spec.tokens = params_.rows == 1 ? 1 : kProjectTileTokens;
        const u32 bytes = std::min(kProjectFewBytes, device_.properties().max_smem_per_block);
        spec.depth =
            std::min(spec.few * tiles, (bytes - plan_few(spec).bytes) / project_few_slot_bytes(spec));
        return spec;
    }

    Device& device_;
    void* stream_;
    ProjectMmaSpec spec_;
    ProjectMmaParams params_{};
    u32 blocks_ = 0, x_groups_ = 1;
    std::vector<driver::MemoryRange> memory_;
};

void run_plain(Device& device, const ProjectArguments& a, const Checked& c) {
    const u32 rows = as_u32(c.x.shape[0]);
    const ProjectSpec spec{.x = c.x.format,
                           .w = c.w.format,
                           .w_scale = c.w.scale_format,
                           .y = c.y.format,
                           .add = c.add.format,
                           .rows = rows == 1 ? 1 : kRowsOfMany};
    const ProjectParams params{.x = view_of(c.x),
                               .y = view_of(c.y),
                               .add = view_of(c.add),
                               .x_scale = view_of(c.x_scale),
                               .w = c.w.view,
                               .rows = rows,
                               .groups = c.w.count,
                               .n = c.w.n,
                               .k = c.w.k};
    const u64 blocks = u64{ceil_div(c.w.n, kProjectWarps)} * ceil_div(rows, spec.rows) * c.w.count;
    launch(device, kProject, spec, {grid_of("project", blocks), kProjectThreads}, a.stream, params,
           {reads(a.x), reads(a.x_scale), reads(a.w), reads(a.w_scale), reads(a.add), writes(a.y)});
}

}  // namespace

void project(const ProjectArguments& a) {
    ModelChecks checks("project");
    const Checked c = check(checks, a);
    if (c.x.shape[0] == 0 || c.w.n == 0) return;
    if (a.round_x)
        DG_CHECK(
            takes_mma(c) && c.x.format == Format::bf16 && c.w.format == Format::fp8_e4m3 &&
                c.x.shape[0] <= project_rounds_up_to(),
            value,
            "project: got round_x for {} rows of {} x and {} w, expected up to {} rows of bf16, aligned to "
            "{} bytes, with fp8_e4m3; quantize() x first",
            c.x.shape[0], name_of(c.x.format), name_of(c.w.format), project_rounds_up_to(), kVectorBytes);
    if (!takes_mma(c)) return run_plain(checks.device(), a, c);
    const bool flat = a.x.rank == 2 && a.y.rank == 2 && (!a.add.present() || a.add.rank == 2);
    if (a.round_x && flat && a.x.shape[0] <= kRowsOfStaged) {
        const ProjectMatrix matrix{.w = a.w, .w_scale = a.w_scale, .y = a.y};
        const auto staged = prepare_staged(checks, {.x = a.x, .matrices = {&matrix, 1}, .add = a.add},
                                           staged_blocks(checks.device()));
        if (staged) return launch_staged(checks.device(), *staged, a.stream);
    }
    MmaLaunch launch(checks.device(), c, u64{c.w.count} * c.w.n, a.stream);
    if (a.round_x) launch.round_x();
    launch.add(c);
    launch.read_weights(a.w), launch.read_weights(a.w_scale), launch.read(a.add), launch.write(a.y);
    launch.run();
}

i64 project_rounds_up_to() {
    return kMaxRoundedRows;
}

std::optional<Prepared<ProjectMmaSpec, ProjectMmaParams>> prepare_project(ModelChecks& checks,
                                                                          const ProjectArguments& a) {
    const Checked c = check(checks, a);
    if (c.x.shape[0] == 0 || c.x.shape[0] > kRowsOfPair || c.w.n == 0 || !takes_mma(c)) return std::nullopt;
    MmaLaunch launch(checks.device(), c, u64{c.w.count} * c.w.n, a.stream);
    launch.add(c);
    launch.read_weights(a.w), launch.read_weights(a.w_scale), launch.read(a.add), launch.write(a.y);
    return launch.prepared();
}

void project_many(const ProjectManyArguments& a) {
    const auto narrow = [](const ProjectMatrix& m) { return m.w_scale.present(); };
    const auto outputs_like = [&](const ProjectMatrix& like) {
        u64 outputs = 0;
        for (const ProjectMatrix& m : a.matrices)
            if (narrow(m) == narrow(like) && m.w.rank == 2) outputs += static_cast<u64>(m.w.shape[0]);
        return outputs;
    };
    std::vector<MmaLaunch> launches;
    for (const ProjectMatrix& m : a.matrices) {
        const bool wide = !narrow(m) && a.wide_x.present();
        const ProjectArguments one{.x = wide ? a.wide_x : a.x,
                                   .x_scale = wide ? TensorView{} : a.x_scale,
                                   .w = m.w,
                                   .w_scale = m.w_scale,
                                   .y = m.y,
                                   .add = {},
                                   .stream = a.stream};
        ModelChecks checks("project");
        const Checked c = check(checks, one);
        if (c.x.shape[0] == 0 || c.w.n == 0) continue;
        if (!takes_mma(c)) {
            run_plain(checks.device(), one, c);
            continue;
        }
        auto found = std::ranges::find_if(launches, [&](const MmaLaunch& launch) { return launch.takes(c); });
        if (found == launches.end()) {
            launches.emplace_back(checks.device(), c, outputs_like(m), a.stream);
            found = launches.end() - 1;
        }
        found->add(c);
        found->read_weights(m.w), found->read_weights(m.w_scale), found->write(m.y);
    }
    const bool in_pairs = !launches.empty() && launches.front().rows() <= kRowsOfPair;
    for (size_t i = 0; i < launches.size(); ++i) {
        if (in_pairs && i + 1 < launches.size())
            launches[i].run_with(launches[i + 1]), ++i;
        else
            launches[i].run();
    }
}

}  // namespace deep_gemm::op
