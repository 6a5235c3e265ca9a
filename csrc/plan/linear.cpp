#include "plan/linear.h"

#include "base/error.h"
#include "plan/problem_text.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace deep_gemm::plan {

namespace {

// Weights that a pass of the small-batch kernel multiplies with 16 tokens in a microsecond, an SM's share
// (132 SMs of an H200 at 4096 x 14336: 2.5 millions of FP8, 1.8 of NVFP4).
constexpr float kWeightsPerUsAndSm = 2.2e6f / 132;
constexpr float kSmallLaunchUs = 3;

template <typename Enum>
Enum named(std::string_view key, std::string_view value, u32 first, u32 end) {
    std::string names;
    for (u32 i = first; i < end; ++i) {
        const char* one = name_of(static_cast<Enum>(i));
        if (value == one) return static_cast<Enum>(i);
        names += fmt::format("{}{}", names.empty() ? "" : ", ", one);
    }
    fail(ErrorKind::value, "problem: {}={} is unknown; expected one of {}: take one of them", key, value,
         names);
}

// Architectures that have the small-batch form alone.
struct SmallBatchArch {
    const char* arch;
    u32 smem_bytes;  // that a block may have
    bool native_fp8, dependent_launch;
};
constexpr u32 kKiB = 1024;
constexpr SmallBatchArch kSmallBatchArchs[] = {
    {"80", 163 * kKiB, false, false}, {"86", 99 * kKiB, false, false},  {"87", 163 * kKiB, false, false},
    {"89", 99 * kKiB, true, false},   {"100a", 227 * kKiB, true, true}, {"103a", 227 * kKiB, true, true},
    {"120a", 99 * kKiB, true, true},  {"121a", 99 * kKiB, true, true},
};

struct Parsed {
    LinearProblem problem;
    u32 n = 0;
    bool padded = false;  // rows of W and x start at multiples of 16 bytes, whatever their length
};

void read_word(Parsed& parsed, std::string_view word) {
    GemvProblem& p = parsed.problem.small;
    const size_t equals = std::min(word.find('='), word.size());
    const std::string_view key = word.substr(0, equals),
                           value = word.substr(std::min(equals + 1, word.size()));
    if (word == "strict") {
        p.strict = true;
    } else if (word == "invariant") {
        parsed.problem.invariant = true;
    } else if (word == "swiglu") {
        p.epilogue = GemvEpilogue::swiglu;
    } else if (word == "unaligned") {
        p.aligned = false;
    } else if (word == "padded") {
        parsed.padded = true;
    } else if (key == "w") {
        p.w = named<Quant>(key, value, 0, kNumQuants);
    } else if (key == "x") {
        p.x = named<Activation>(key, value, 0, static_cast<u32>(Activation::q8) + 1);
    } else if (key == "y") {
        p.y = named<Format>(key, value, static_cast<u32>(Format::fp32), static_cast<u32>(Format::bf16) + 1);
    } else {
        u32* const field = key == "m" ? &p.m : key == "n" ? &parsed.n : key == "k" ? &p.k : nullptr;
        DG_CHECK(field, value,
                 "problem: unexpected word '{}'; expected w=, x=, y=, m=, n=, k=, strict, invariant, swiglu, "
                 "padded or unaligned: correct it",
                 word);
        *field = parse_count(key, value, 1);
    }
}

Parsed parse(std::string_view text) {
    Parsed parsed;
    parsed.problem.small.m = 0;
    read_words(text, "linear", key_of, [&](std::string_view word) { read_word(parsed, word); });
    const GemvProblem& p = parsed.problem.small;
    DG_CHECK(p.m && parsed.n && p.k, value,
             "problem: got m={} n={} k={}, expected all of at least 1, as in 'linear w=mxfp4 m=512 n=14336 "
             "k=4096'",
             p.m, parsed.n, p.k);
    if (p.w == Quant::fp16 && p.x == Activation::bf16) parsed.problem.small.x = Activation::fp16;
    if (p.w == Quant::q8_0 || p.w == Quant::q8_0_split) parsed.problem.small.x = Activation::q8;
    const u64 row_bytes = row_bytes_of(p.w, p.k);
    if (p.w == Quant::q8_0) parsed.problem.small.row_alignment = q8_row_alignment(row_bytes);
    // Packed rows, as quantize() makes them. Q8_0 is aligned by its kernels, tokens of it are whole blocks.
    const bool q8 = parsed.problem.small.x == Activation::q8;
    const u64 x_bytes = u64{p.k} * bytes_of(element_of(p.x));
    if (!q8 && !parsed.padded && (row_bytes % 16 != 0 || (p.m > 1 && x_bytes % 16 != 0)))
        parsed.problem.small.aligned = false;
    parsed.problem.small.bulk = has_bulk_rows(p.w, 0, parsed.n * row_bytes);
    parsed.problem.small.scale_alignment = scale_alignment_of(p.w, p.k, 0, 0);
    parsed.problem.plain_y = p.y != Format::fp16;
    parsed.problem.whole_scales = p.k % (kWeightTileBytes * 8 / row_of(p.w).element_bits) == 0;
    return parsed;
}

}  // namespace

WeightProblem weight_problem_of(const LinearProblem& p, u32 matrix) {
    return {.w = p.small.w,
            .x = p.small.x,
            .y = p.small.y,
            .epilogue = p.small.epilogue,
            .m = p.small.m,
            .n = p.small.n[matrix],
            .k = p.small.k,
            .whole_scales = p.whole_scales};
}

const char* why_no_large_batch(const LinearProblem& p) {
    if (multiplies_fp8(p)) {
        if (p.small.epilogue != GemvEpilogue::none) return "the FP8 GEMM has no swiglu";
        if (!p.plain_y)
            return "the FP8 GEMM has no bias, y of bf16 or fp32, a residual that lies as y, and strides below 2^31";
    } else if (const char* reason = why_no_weight_gemm(p.small.w, p.small.x)) {
        return reason;
    }
    if (p.arch != "90a") return "the large-batch kernels are for sm_90a";
    if (!p.small.aligned) return "TMA needs rows of w and x that start at multiples of 16 bytes";
    if (!p.rows_apart) return "TMA needs rows of x that do not overlap";
    if (p.small.x == Activation::int8_row && p.small.k > kMaxInt8K)
        return "an int32 sum of int8 products holds k of 131071";
    return nullptr;
}

const char* why_small_batch(const LinearProblem& p) {
    if (p.small.x == Activation::int8_row) return why_no_large_batch(p);
    if (p.small.strict) return "strict: every row by the kernel of one row";
    if (p.invariant) return "invariant: every row with the bits it has alone";
    if (p.small.m <= kMaxGemvTokens) return "up to 16 rows are always the small-batch kernel's";
    return why_no_large_batch(p);
}

float small_batch_us(const LinearProblem& p, const DeviceModel& device) {
    const QuantRow row = row_of(p.small.w);
    float us = kSmallLaunchUs;
    for (const u32 n : p.small.n) {
        const float weights = static_cast<float>(n) * static_cast<float>(p.small.k);
        const float bytes = weights * static_cast<float>(row.element_bits) / 8;
        const float pass = std::max(bytes / device.dram_bytes_per_us,
                                    weights / (kWeightsPerUsAndSm * static_cast<float>(device.num_sms)));
        us += static_cast<float>(ceil_div(p.small.m, kMaxGemvTokens)) * pass;
    }
    return us;
}

DeviceModel linear_device_model(std::string_view arch, u32 num_sms) {
    for (const SmallBatchArch& row : kSmallBatchArchs)
        if (arch == row.arch) {
            DeviceModel model{};
            model.arch = row.arch;
            model.num_sms = num_sms;
            return model;
        }
    return device_model(arch, num_sms);
}

std::string explain_linear(std::string_view text, const DeviceModel& device, u32 rows) {
    Parsed parsed = parse(text);
    LinearProblem& problem = parsed.problem;
    const u32 rows_of_matrices[] = {parsed.n, parsed.n};
    problem.small.n =
        std::span(rows_of_matrices).first(problem.small.epilogue == GemvEpilogue::swiglu ? 2 : 1);
    problem.small.num_sms = device.num_sms;
    problem.arch = device.arch;
    for (const SmallBatchArch& row : kSmallBatchArchs) {
        if (device.arch != row.arch) continue;
        problem.small.smem_bytes = row.smem_bytes;
        problem.small.dependent_launch = row.dependent_launch;
        problem.small.native_fp8 = row.native_fp8;
    }
    const GemvProblem& p = problem.small;
    const char* const reason = why_small_batch(problem);
    const bool only_large = p.x == Activation::int8_row;
    DG_CHECK(!only_large || !reason, value, "problem: int8 tokens are for the large-batch form alone: {}",
             reason);
    if (!reason && multiplies_fp8(problem))
        return fmt::format(
            "linear w={} x={} y={} m={} n={} k={} on sm_{}, {} SMs: large-batch form\n  FP8 GEMM: explain "
            "\"gemm "
            "m={} n={} k={} d={}\"\n",
            name_of(p.w), name_of(p.x), name_of(p.y), p.m, parsed.n, p.k, device.arch, device.num_sms, p.m,
            parsed.n, p.k, name_of(p.y));
    const float small_us = reason ? 0 : only_large ? INFINITY : small_batch_us(problem, device);
    std::vector<WeightCandidate> considered, legal;
    WeightPlan plan;
    if (!reason) plan = plan_weight_gemm(weight_problem_of(problem, 0), device, &considered);
    std::string out =
        fmt::format("linear w={} x={} y={} m={} n={} k={} on sm_{}, {} SMs: {}\n", name_of(p.w), name_of(p.x),
                    name_of(p.y), p.m, parsed.n, p.k, device.arch, device.num_sms,
                    !reason && plan.cost.total_us < small_us ? "large-batch form" : "small-batch form");
    if (!only_large)
        out += fmt::format("  {:<44} {}\n", to_string(plan_gemv(p).spec),
                           reason ? std::string("chosen") : fmt::format("{:.2f} us", small_us));
    if (reason) return out + fmt::format("  large-batch form: {}\n", reason);
    std::map<std::string, u32> rejected;
    for (const WeightCandidate& candidate : considered)
        candidate.rejected ? void(++rejected[candidate.rejected]) : legal.push_back(candidate);
    std::stable_sort(legal.begin(), legal.end(), [](const WeightCandidate& a, const WeightCandidate& b) {
        return a.cost.total_us < b.cost.total_us;
    });
    out += fmt::format("  {:<44} {:>7} {:>7} {:>7} {:>7} {:>7} = {:>8}\n", "tokens x rows of W (block)",
                       "dram", "fill", "l2", "math", "launch", "total us");
    for (size_t i = 0; i < std::min<size_t>(rows, legal.size()); ++i) {
        const WeightCost& c = legal[i].cost;
        out += fmt::format("  {:<44} {:>7.2f} {:>7.2f} {:>7.2f} {:>7.2f} {:>7.2f} = {:>8.2f}  {}\n",
                           to_string(legal[i].spec), c.dram_us, c.fill_us, c.l2_us, c.math_us, c.launch_us,
                           c.total_us,
                           legal[i].spec == plan.spec
                               ? "best"
                               : fmt::format("+{:.0f} %", (c.total_us / plan.cost.total_us - 1) * 100));
    }
    for (const auto& [reason, count] : rejected) out += fmt::format("  rejected {:>3}: {}\n", count, reason);
    return out;
}

}  // namespace deep_gemm::plan
