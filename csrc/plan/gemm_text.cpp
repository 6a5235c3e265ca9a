// Plans as text: the problem line that logs print and `explain` reads back, and the table of candidates.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <vector>

#include "base/error.h"
#include "plan/gemm.h"
#include "plan/problem_text.h"

namespace deep_gemm::plan {
namespace {

template <typename Enum, typename... Values>
Enum parse_name(std::string_view key, std::string_view text, Values... values) {
    Enum found{};
    bool matched = false;
    std::string names;
    for (Enum value : {values...}) {
        if (text == name_of(value)) {
            found = value;
            matched = true;
        }
        names += fmt::format("{}{}", names.empty() ? "" : ", ", name_of(value));
    }
    DG_CHECK(matched, value, "problem: {}={} is unknown; expected one of {}: take one of them", key, text,
             names);
    return found;
}

bool is_group_mode(std::string_view word) {
    return word == "dense" || word == "contiguous" || word == "psum" || word == "masked";
}

GroupMode parse_groups(std::string_view word) {
    return parse_name<GroupMode>("groups", word, GroupMode::dense, GroupMode::contiguous, GroupMode::psum,
                                 GroupMode::masked);
}

// The formats of ab=, a= and b=; none: not given.
struct Operands {
    Format ab = Format::none, a = Format::none, b = Format::none;
};

void read_word(GemmProblem& problem, Operands& operands, std::string_view word) {
    const size_t equals = word.find('=');
    if (equals == std::string_view::npos) {
        if (word == "accumulate")
            problem.accumulate = true;
        else if (word == "unaligned_d")
            problem.d_tma = false;
        else if (is_group_mode(word))
            problem.groups = parse_groups(word);
        else
            fail(ErrorKind::value,
                 "problem: unexpected word '{}'; expected gemm first (fp4_gemm and linear are others), then "
                 "key=value, a group mode (dense, contiguous, psum, masked), accumulate or unaligned_d: "
                 "correct it",
                 word);
        return;
    }
    const std::string_view key = word.substr(0, equals), value = word.substr(equals + 1);
    if (key == "m")
        problem.m = parse_count(key, value);
    else if (key == "n")
        problem.n = parse_count(key, value);
    else if (key == "k")
        problem.k = parse_count(key, value);
    else if (key == "groups")
        problem.num_groups = parse_count(key, value);
    else if (key == "expected_m")
        problem.expected_m = parse_count(key, value);
    else if (key == "num_sms")
        problem.num_sms = parse_count(key, value);
    else if (key == "ab" || key == "a" || key == "b") {
        Format& format = key == "ab" ? operands.ab : key == "a" ? operands.a : operands.b;
        format = parse_name<Format>(key, value, Format::fp8_e4m3, Format::bf16);
    } else if (key == "d")
        problem.d = parse_name<Format>(key, value, Format::bf16, Format::fp32);
    else if (key == "a_major")
        problem.a_major = parse_name<Major>(key, value, Major::k, Major::mn);
    else if (key == "b_major")
        problem.b_major = parse_name<Major>(key, value, Major::k, Major::mn);
    else if (key == "scale_b")
        problem.scale_b =
            parse_name<ScaleB>(key, value, ScaleB::none, ScaleB::per_128x128, ScaleB::per_row_128);
    else
        fail(ErrorKind::value,
             "problem: unknown key '{}'; expected m, n, k, ab, d, scale_b, a_major, b_major, groups, "
             "expected_m or num_sms: correct the key",
             key);
}

// One format for both operands, in whatever order and by whichever keys it was given.
void set_operands(GemmProblem& problem, const Operands& given) {
    const Format formats[] = {given.ab, given.a, given.b};
    const char* const keys[] = {"ab", "a", "b"};
    const char* first = nullptr;
    for (size_t i = 0; i < std::size(formats); ++i) {
        if (formats[i] == Format::none) continue;
        DG_CHECK(!first || formats[i] == problem.ab, value,
                 "problem: got {}={} and {}={}, expected one format for both operands; ab= gives it", first,
                 name_of(problem.ab), keys[i], name_of(formats[i]));
        first = keys[i];
        problem.ab = formats[i];
    }
}

// TMA reads rows that start at multiples of 16 bytes, which such extents have only with padding.
std::string alignment_note(const GemmProblem& p) {
    constexpr u32 kAlignment = 16;
    const u32 elements = kAlignment / static_cast<u32>(bytes_of(p.ab));
    std::string odd;
    const auto look = [&](char operand, const char* name, u32 extent) {
        if (extent % elements != 0)
            odd += fmt::format("{}{} ({}={})", odd.empty() ? "" : " and ", operand, name, extent);
    };
    p.a_major == Major::k ? look('a', "k", p.k) : look('a', "m", p.m);
    p.b_major == Major::k ? look('b', "k", p.k) : look('b', "n", p.n);
    if (odd.empty()) return odd;
    return fmt::format(
        "  calls need operands whose rows are multiples of {} bytes apart: pad {} to multiples of {} "
        "elements\n",
        kAlignment, odd, elements);
}

std::string cost_row(const GemmCandidate& candidate, const GemmPlan& plan) {
    const GemmCost& c = candidate.cost;
    const std::string verdict = candidate.spec == plan.spec
                                    ? "chosen"
                                    : fmt::format("+{:.0f} %", (c.total_us / plan.cost.total_us - 1) * 100);
    return fmt::format("  {:<46} {:>7.2f} {:>7.2f} {:>7.2f} {:>7.2f} {:>7.2f} {:>7.2f} = {:>8.2f}  {}\n",
                       to_string(candidate.spec), c.dram_us, c.l2_us, c.fill_us, c.math_us, c.epilogue_us,
                       c.launch_us, c.total_us, verdict);
}

}  // namespace

std::string to_string(const GemmProblem& p) {
    std::string text = "gemm";
    if (p.groups != GroupMode::dense) text += fmt::format(" {} groups={}", name_of(p.groups), p.num_groups);
    text += fmt::format(" m={} n={} k={} ab={} d={}", p.m, p.n, p.k, name_of(p.ab), name_of(p.d));
    if (p.ab == Format::fp8_e4m3) text += fmt::format(" scale_b={}", name_of(p.scale_b));
    if (p.a_major != Major::k) text += fmt::format(" a_major={}", name_of(p.a_major));
    if (p.b_major != Major::k) text += fmt::format(" b_major={}", name_of(p.b_major));
    if (p.expected_m > 0) text += fmt::format(" expected_m={}", p.expected_m);
    if (p.num_sms > 0) text += fmt::format(" num_sms={}", p.num_sms);
    if (p.accumulate) text += " accumulate";
    if (!p.d_tma) text += " unaligned_d";
    return text;
}

std::string to_string(const GemmSpec& s) {
    std::string text = fmt::format("{}x{} {} stages, {} wg", s.block_m, s.block_n, s.stages, s.warpgroups);
    if (s.k_warpgroups > 1) text += fmt::format(" ({} along k)", s.k_warpgroups);
    if (s.swap_ab) text += ", swap_ab";
    if (s.split_k > 1) text += fmt::format(", split_k {}", s.split_k);
    if (s.cluster_m > 1) text += ", b multicast";
    if (s.cluster_n > 1) text += ", a multicast";
    return text;
}

GemmProblem parse_problem(std::string_view text) {
    GemmProblem problem;
    Operands operands;
    const auto name = [](std::string_view word) { return is_group_mode(word) ? "group mode" : key_of(word); };
    const auto seen = read_words(text, "gemm", name, [&](std::string_view word) {
        DG_CHECK(word != "linear" && word != "fp4_gemm", value,
                 "problem: got a '{}' problem, expected a 'gemm' one; deep_gemm.explain tells of all three, "
                 "plan_fp4 plans an fp4_gemm, and kernels of both others are compiled by their first call",
                 word);
        read_word(problem, operands, word);
    });
    const auto given = [&seen](std::string_view key) {
        return std::find(seen.begin(), seen.end(), key) != seen.end();
    };
    set_operands(problem, operands);
    if (!given("scale_b") && problem.ab == Format::bf16) problem.scale_b = ScaleB::none;
    DG_CHECK(
        (problem.ab == Format::fp8_e4m3) == (problem.scale_b != ScaleB::none), value,
        "problem: got scale_b={} with {} operands; expected scales for fp8_e4m3 and none for bf16; correct "
        "one of them",
        name_of(problem.scale_b), name_of(problem.ab));
    DG_CHECK(problem.groups != GroupMode::dense || !(given("groups") || given("expected_m")), value,
             "problem: groups or expected_m without a group mode; expected contiguous, psum or masked beside "
             "it: add one");
    DG_CHECK(problem.groups == GroupMode::dense || given("groups"), value,
             "problem: {} without groups=; expected the number of matrices of b, as in 'gemm {} groups=8'",
             name_of(problem.groups), name_of(problem.groups));
    DG_CHECK(problem.m > 0 && problem.n > 0 && problem.k > 0, value,
             "problem: got m={} n={} k={}; expected all three of at least 1, as in 'gemm m=64 n=7168 k=2048'",
             problem.m, problem.n, problem.k);
    constexpr u32 kMaxK = 0x7fffffff;
    DG_CHECK(
        problem.m <= kMaxGemmSide && problem.n <= kMaxGemmSide && problem.k <= kMaxK, value,
        "problem: got m={} n={} k={}; expected m and n of at most {}, k of at most {}; split the product",
        problem.m, problem.n, problem.k, kMaxGemmSide, kMaxK);
    DG_CHECK(problem.num_groups > 0, value,
             "problem: got groups=0; expected at least 1; leave groups= out of a dense problem");
    return problem;
}

std::string explain(const GemmProblem& problem, const DeviceModel& device, u32 rows) {
    std::vector<GemmCandidate> considered;
    const GemmPlan plan = plan_gemm(problem, device, &considered);
    std::map<std::string, u32> rejected;
    std::vector<GemmCandidate> legal;
    for (const GemmCandidate& candidate : considered) {
        if (candidate.rejected != nullptr)
            ++rejected[candidate.rejected];
        else
            legal.push_back(candidate);
    }
    std::stable_sort(legal.begin(), legal.end(), [](const GemmCandidate& a, const GemmCandidate& b) {
        return a.cost.total_us < b.cost.total_us;
    });
    std::string text =
        fmt::format("{} on sm_{}, {} SMs: {} candidates, {} legal; grid {} CTAs\n", to_string(problem),
                    device.arch, device.num_sms, considered.size(), legal.size(), plan.grid_blocks);
    text += alignment_note(problem);
    text += fmt::format("  {:<46} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7} = {:>8}\n", "tokens x weights (block)",
                        "dram", "l2", "fill", "math", "end", "launch", "total us");
    for (size_t i = 0; i < std::min<size_t>(rows, legal.size()); ++i) text += cost_row(legal[i], plan);
    for (const auto& [reason, count] : rejected) text += fmt::format("  rejected {:>3}: {}\n", count, reason);
    return text;
}

}  // namespace deep_gemm::plan
