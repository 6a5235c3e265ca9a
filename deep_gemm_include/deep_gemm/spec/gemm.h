// The GEMM family D[m, n] = C + A[m, k] * B[n, k]^T: what a kernel is (GemmSpec), what it is called with
// (GemmParams), where its shared memory goes (plan_smem) and when it cannot exist (why_illegal). Evaluated by
// host and kernel alike.
//
// Two kernels share the spec. `swap_ab = false` (kernel/sm90_gemm.cuh): tokens are the 64-row side of wgmma,
// for many tokens. `swap_ab = true` (kernel/sm90_gemm_swap_ab.cuh): weights are, tokens the short side, K may
// be split over warpgroups, for few tokens. Both can split K over the CTAs of a cluster.
#pragma once

#include <deep_gemm/spec/format.h>
#include <deep_gemm/spec/tensor_map.h>

namespace deep_gemm {

// How rows of A map to the matrices of B. One `group_layout` array of int32, read on the device:
enum class GroupMode : u8 {
    dense,       // none: one matrix
    contiguous,  // [m]: group of each row, -1 (or anything outside [0, groups)) gives a row of zeros
    psum,        // [groups]: end row of each group; a group starts at the previous end rounded up to 128
    masked,      // [groups]: number of valid rows; A and D are [groups, m, ...]
    gathered,    // a list a router left on the device: see spec/fp4_gemm.h; not for GemmSpec
};

// Which dimension of an operand is contiguous in memory: K, or its rows (M of A, N of B). wgmma reads the
// latter for 16-bit formats only. `mn` operands stand in shared memory as chunks of 64 rows: for each k the
// 128 bytes of one chunk, all k of a block, then the next chunk.
enum class Major : u8 { k, mn };

// Scales of B along (n, k). Scales of A are always (1, 128).
enum class ScaleB : u8 { none, per_128x128, per_row_128 };

constexpr u32 kScaleBlock = 128;      // elements of K that share a scale
constexpr u32 kGroupAlignment = 128;  // rows: contiguous and psum groups start at multiples of it
constexpr u32 kBlockKBytes = 128;     // one swizzle atom
constexpr u32 kScaleChunk = 4;        // blocks of K whose scales are loaded together: 16 bytes of a row
constexpr u32 kMmaRows = 64;          // rows of a wgmma, and of a chunk of an operand contiguous along them
constexpr u32 kWarpgroup = 128;

struct GemmSpec {
    Format ab = Format::fp8_e4m3;
    Format d = Format::bf16;
    ScaleB scale_b = ScaleB::per_128x128;
    GroupMode groups = GroupMode::dense;
    bool accumulate = false;  // add C
    bool swap_ab = false;
    u32 block_m = 128;  // rows of A (tokens) in an output block
    u32 block_n = 128;  // rows of B (weights) in an output block
    u32 stages = 4;
    u32 warpgroups = 2;    // that do math; one more warpgroup feeds them
    u32 k_warpgroups = 1;  // swap_ab: how many of them take turns along K
    u32 split_k = 1;       // CTAs of a cluster that share a block's K
    u32 cluster_m = 1;     // blocks along m that share B by multicast
    u32 cluster_n = 1;     // blocks along n that share A by multicast
    Major a_major = Major::k;
    Major b_major = Major::k;

    friend constexpr bool operator==(const GemmSpec&, const GemmSpec&) = default;
};

// Every field once, by name: source text, log line, JSON and cache key are made of it.
template <typename Visitor, typename Spec>
constexpr void visit_fields(Visitor&& visit, Spec& s) {
    auto& [ab, d, scale_b, groups, accumulate, swap_ab, block_m, block_n, stages, warpgroups, k_warpgroups,
           split_k, cluster_m, cluster_n, a_major, b_major] = s;
    visit("ab", ab);
    visit("d", d);
    visit("scale_b", scale_b);
    visit("groups", groups);
    visit("accumulate", accumulate);
    visit("swap_ab", swap_ab);
    visit("block_m", block_m);
    visit("block_n", block_n);
    visit("stages", stages);
    visit("warpgroups", warpgroups);
    visit("k_warpgroups", k_warpgroups);
    visit("split_k", split_k);
    visit("cluster_m", cluster_m);
    visit("cluster_n", cluster_n);
    visit("a_major", a_major);
    visit("b_major", b_major);
}

constexpr const char* name_of(GroupMode mode) {
    switch (mode) {
        case GroupMode::dense: return "dense";
        case GroupMode::contiguous: return "contiguous";
        case GroupMode::psum: return "psum";
        case GroupMode::masked: return "masked";
        case GroupMode::gathered: return "gathered";
    }
    return "?";
}

constexpr const char* name_of(Major major) {
    return major == Major::k ? "k" : "mn";
}

constexpr const char* name_of(ScaleB mode) {
    switch (mode) {
        case ScaleB::none: return "none";
        case ScaleB::per_128x128: return "per_128x128";
        case ScaleB::per_row_128: return "per_row_128";
    }
    return "?";
}

struct GemmParams {
    TensorMap a;              // [a_groups, m, k] or, by a_major, [a_groups, k, m]; box_rows_of() x 128 bytes
    TensorMap b;              // [groups, n, k] or, by b_major, [groups, k, n]; the same
    TensorMap d;              // [a_groups, m, n], box [1, 64, 128 bytes]; only where stores_by_tma()
    TensorMap c;              // the same of C; only where loads_c_by_tma()
    const float* scale_a;     // [a_groups, m, k / 128] at the strides below, in elements
    const float* scale_b;     // [groups, n / 128 or n, k / 128]
    const i32* group_layout;  // see GroupMode
    const void* c_data;       // same layout as d; may be d itself
    void* d_data;             // [a_groups, m, n]
    u64 scale_a_stride_group, scale_b_stride_group, d_stride_group;
    u32 scale_a_stride_m, scale_a_stride_k, scale_b_stride_n, scale_b_stride_k, d_stride_m;
    u32 m, n, k;     // m: rows of one a_group
    u32 num_groups;  // matrices in b
};

constexpr u32 block_k_of(const GemmSpec& s) {
    return kBlockKBytes / bytes_of(s.ab);
}
constexpr bool has_scales(const GemmSpec& s) {
    return s.scale_b != ScaleB::none;
}
constexpr u32 cluster_size_of(const GemmSpec& s) {
    return s.split_k * s.cluster_m * s.cluster_n;
}
constexpr bool multicasts(const GemmSpec& s) {
    return s.cluster_m * s.cluster_n > 1;
}
constexpr bool exchanges_partials(const GemmSpec& s) {
    return s.swap_ab || s.split_k > 1;
}
// Sums that were exchanged are written by plain stores: they alone serve a D that TMA cannot address.
constexpr bool stores_by_tma(const GemmSpec& s) {
    return !exchanges_partials(s);
}
// C then comes into the staging buffer of D while the block is multiplied.
constexpr bool loads_c_by_tma(const GemmSpec& s) {
    return s.accumulate && stores_by_tma(s);
}
constexpr u32 threads_of(const GemmSpec& s) {
    return (s.warpgroups + 1) * kWarpgroup;
}
// Rows of an output block one warpgroup owns, as a number of 64-row waves.
constexpr u32 waves_of(const GemmSpec& s) {
    return s.block_m / (kMmaRows * s.warpgroups);
}
// swap_ab: warpgroups side by side along n.
constexpr u32 n_warpgroups_of(const GemmSpec& s) {
    return s.warpgroups / s.k_warpgroups;
}

// Accumulator registers of a math thread: the promoted sums and, for fp8, the partial sums: one, or with
// swap_ab two, so that one is promoted while the other is being computed.
constexpr u32 accumulator_registers_of(const GemmSpec& s) {
    if (s.swap_ab) return (has_scales(s) ? 3 : 1) * s.block_m / 2;
    return (waves_of(s) + (has_scales(s) ? 1 : 0)) * s.block_n / 2;
}
// What a math thread needs besides: addresses, scales, loop state. The swapped kernel's promotion holds more
// of them, and so does one whose columns have a scale each.
constexpr u32 other_registers_of(const GemmSpec& s) {
    if (s.swap_ab) return 40;
    return 24 + (s.scale_b == ScaleB::per_row_128 ? 24 : 0);
}
constexpr u32 kLoaderRegisters = 40;  // what setmaxnreg leaves the loading warpgroup
constexpr u32 launch_registers_of(const GemmSpec& s) {
    return 65536 / threads_of(s) / 8 * 8;
}
// What setmaxnreg gives a math thread: what the CTA was launched with less the loader's, in steps of 8.
// Asking for more than the CTA owns would wait for ever.
constexpr u32 math_registers_of(const GemmSpec& s) {
    const u32 share = (launch_registers_of(s) * (s.warpgroups + 1) - kLoaderRegisters) / s.warpgroups / 8 * 8;
    return share < 240 ? share : 240;
}
constexpr bool moves_registers(const GemmSpec& s) {
    return s.warpgroups > 1 && accumulator_registers_of(s) + other_registers_of(s) > launch_registers_of(s);
}

// Rows of an operand in a stage: those of the block, in whole chunks where they are contiguous.
constexpr u32 stage_rows_of(Major major, u32 block_rows) {
    return major == Major::k ? block_rows : align_up(block_rows, kMmaRows);
}
// Rows of a TMA box: the block's, or all k of the block, shared out among the CTAs that multicast it.
constexpr u32 box_rows_of(const GemmSpec& s, Major major, u32 block_rows, u32 sharers) {
    return (major == Major::k ? block_rows : block_k_of(s)) / sharers;
}

constexpr u32 greatest_common_divisor(u32 a, u32 b) {
    return b == 0 ? a : greatest_common_divisor(b, a % b);
}
// Columns of a block that share one scale of B whatever the block's offset: the loader stages one value for
// each.
constexpr u32 scale_b_run_of(const GemmSpec& s) {
    return s.scale_b == ScaleB::per_row_128 ? 1 : greatest_common_divisor(s.block_n, kScaleBlock);
}
constexpr u32 scale_runs_of(const GemmSpec& s) {
    return s.block_n / scale_b_run_of(s);
}
// Whether scales of A are staged times the one scale that B has for the block, the two that a math thread
// needs side by side: one load from shared memory instead of three. Three warpgroups keep shared memory so
// busy that this is 1 to 3 % of a large GEMM; fewer do not, with no difference.
constexpr bool joins_scales(const GemmSpec& s) {
    return !s.swap_ab && s.warpgroups == 3 && s.scale_b == ScaleB::per_128x128 && scale_runs_of(s) == 1;
}
// Where the scale of a row then stands: rows r and r + 8 of 16 are neighbours.
constexpr u32 joined_scale_of(u32 row) {
    return row / 16 * 16 + row % 8 * 2 + row / 8 % 2;
}
// Scales in a stage: those of A, then those of B.
constexpr u32 staged_scales_of(const GemmSpec& s) {
    return s.block_m + (joins_scales(s) ? 0 : scale_runs_of(s));
}
// Warps that bring scales: the loading warpgroup has three to spare.
constexpr u32 scale_warps_of(const GemmSpec& s) {
    const u32 wanted = ceil_div(staged_scales_of(s), 32u);
    return !has_scales(s) ? 0 : wanted < 3 ? wanted : 3;
}

// Named regions of dynamic shared memory, byte offsets from its 1024-aligned start.
struct SmemPlan {
    u32 a, b, d;  // tiles of stage 0; d is the output staging buffer
    u32 a_stage_bytes, b_stage_bytes, d_bytes;
    u32 received;  // split_k: what the peers send, the same rows as in d, one buffer a peer
    u32 received_bytes;
    u32 scales;  // stage 0: staged_scales_of(s)
    u32 scale_stage_bytes;
    u32 full, empty;                  // mbarriers, 8 bytes a stage
    u32 partial_full, partial_empty;  // hand-over of partial sums in a cluster
    u32 c_full;                       // mbarriers, 8 bytes a warpgroup
    u32 bytes;
};

// Partial sums are staged as fp32 [owner][k_warpgroups][block_m / split_k][block_n]: what one CTA of the
// cluster is going to add up lies together, without gaps. Element (token, column) of a row stands at column ^
// partial_swizzle_of(token), so that the fragment-order writes are free of bank conflicts.
constexpr u32 partial_swizzle_of(const GemmSpec& s, u32 token) {
    return (s.swap_ab ? token / 2 : token) % 4 * 8;
}

constexpr SmemPlan plan_smem(const GemmSpec& s) {
    SmemPlan p{};
    p.a_stage_bytes = stage_rows_of(s.a_major, s.block_m) * kBlockKBytes;
    p.b_stage_bytes = stage_rows_of(s.b_major, s.block_n) * kBlockKBytes;
    p.d_bytes = exchanges_partials(s) ? s.k_warpgroups * s.block_m * s.block_n * 4
                                      : s.block_m * s.block_n * bytes_of(s.d);
    p.received_bytes = (s.split_k - 1) * (p.d_bytes / s.split_k);
    p.scale_stage_bytes = has_scales(s) ? align_up(staged_scales_of(s) * 4, 16u) : 0;
    u32 offset = 0;
    const auto take = [&offset](u32 bytes, u32 alignment) {
        offset = align_up(offset, alignment);
        const u32 start = offset;
        offset += bytes;
        return start;
    };
    p.a = take(s.stages * p.a_stage_bytes, 1024);
    p.b = take(s.stages * p.b_stage_bytes, 1024);
    p.d = take(p.d_bytes, 1024);
    p.received = take(p.received_bytes, 16);
    p.scales = take(s.stages * p.scale_stage_bytes, 16);
    p.full = take(s.stages * 8, 8);
    p.empty = take(s.stages * 8, 8);
    p.partial_full = take(8, 8);
    p.partial_empty = take(8, 8);
    p.c_full = take(loads_c_by_tma(s) ? s.warpgroups * 8 : 0, 8);
    p.bytes = offset;
    return p;
}

constexpr u32 kMaxSmemBytes = 232448;       // sm_90, sm_100: what a block may opt in to
constexpr u32 kMaxSmemBytesOfTwo = 115712;  // two blocks of an SM: half of 228 KiB, less 1 KiB each

// CTAs an SM is meant to hold. Two let the next grid of the stream start while this one drains.
constexpr u32 ctas_per_sm_of(const GemmSpec& s) {
    constexpr u32 kOther = 56;  // a compiler that may not spill wants more than other_registers_of()
    const bool fits = plan_smem(s).bytes <= kMaxSmemBytesOfTwo && 2 * threads_of(s) <= 1024;
    return fits && accumulator_registers_of(s) + kOther <= 65536 / (2 * threads_of(s)) ? 2 : 1;
}

// nullptr, or one sentence. The plan, the host check and the kernel's static_assert all ask here.
constexpr const char* why_illegal(const GemmSpec& s) {
    const u32 counts[] = {s.block_m,      s.block_n, s.stages,    s.warpgroups,
                          s.k_warpgroups, s.split_k, s.cluster_m, s.cluster_n};
    for (u32 count : counts)
        if (count < 1 || count > 256) return "block, stage, warpgroup, split and cluster counts are 1 to 256";
    const bool fp8 = s.ab == Format::fp8_e4m3;
    if (s.groups == GroupMode::gathered) return "gathered tokens are for kernels of MoE layers";
    if (!fp8 && s.ab != Format::bf16) return "operands must be fp8_e4m3 or bf16";
    if (fp8 && (s.a_major != Major::k || s.b_major != Major::k))
        return "fp8 operands must be contiguous along K: wgmma reads the other order for 16 bits only";
    if (s.d != Format::bf16 && s.d != Format::fp32) return "the output must be bf16 or fp32";
    if (fp8 != has_scales(s)) return "fp8 operands need scales and bf16 operands have none";
    if (s.warpgroups > 4) return "1 to 4 math warpgroups";
    if (s.stages < 2 || s.stages > 32) return "2 to 32 stages";
    if (s.split_k > 8) return "a portable cluster has 1 to 8 CTAs";
    const u32 columns = s.swap_ab ? s.block_m : s.block_n;
    if (columns % 8 != 0) return "a wgmma has 8 to 256 columns, in steps of 8";
    if (columns > 128 && columns != 160 && columns != 192 && columns != 256)
        return "no wrapper for that many columns";
    if (s.block_m % s.split_k != 0) return "split_k must divide block_m";
    if (s.swap_ab) {
        if (s.cluster_m != 1 || s.cluster_n != 1) return "swap_ab kernels do not multicast";
        if (s.warpgroups % s.k_warpgroups != 0) return "k_warpgroups must divide warpgroups";
        if (s.block_n != kMmaRows * (s.warpgroups / s.k_warpgroups))
            return "block_n must be 64 per n warpgroup";
        if (s.stages % s.k_warpgroups != 0) return "stages must be a multiple of k_warpgroups";
        // One stage is multiplied while the one before it is still held: a shorter ring waits for itself.
        if (s.stages < 2 * s.k_warpgroups) return "swap_ab needs two stages for each warpgroup along K";
    } else {
        if (s.k_warpgroups != 1) return "warpgroups take turns along K only with swap_ab";
        if (s.split_k > 1 && s.cluster_m * s.cluster_n > 1) return "a cluster either splits K or multicasts";
        if (s.block_m % (kMmaRows * s.warpgroups) != 0)
            return "block_m must be a multiple of 64 per warpgroup";
        if (waves_of(s) > 2) return "a warpgroup owns at most two 64-row waves";
        if (s.block_n % 64 != 0) return "block_n must be a multiple of the store's 64 columns";
        if (s.cluster_m * s.cluster_n > 2) return "multicast pairs only";
        if (s.groups != GroupMode::dense && s.cluster_m != 1)
            return "grouped blocks along m may use different matrices";
        if (fp8 && s.scale_b == ScaleB::per_row_128 && s.block_n > 128)
            return "row scales need block_n of 128 at most";
    }
    if (accumulator_registers_of(s) + other_registers_of(s) > math_registers_of(s))
        return "accumulators do not fit the register file";
    if (s.groups == GroupMode::masked && s.accumulate && s.block_m * s.block_n > 128 * 128 && !fp8)
        return "a block this large, C and the scan over groups do not fit the register file";
    const bool segmented = s.groups == GroupMode::contiguous || s.groups == GroupMode::psum;
    // A block that is no divisor of it leaves whole warpgroups out where a group ends (sched/gemm_blocks.h).
    const bool whole_waves = !s.swap_ab && !exchanges_partials(s) && s.warpgroups > 1 &&
                             (s.block_m == 192 || (s.block_m == 256 && s.groups == GroupMode::contiguous));
    if (segmented && kGroupAlignment % s.block_m != 0 && !whole_waves)
        return "block_m must divide the group alignment of 128, or be 192 (contiguous: or 256)";
    if (plan_smem(s).bytes > kMaxSmemBytes) return "stages do not fit shared memory";
    return nullptr;
}

}  // namespace deep_gemm
