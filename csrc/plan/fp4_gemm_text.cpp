// FP4 plans as text: the problem line that logs print and `explain` reads back, and the table of candidates.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/error.h"
#include "plan/fp4_gemm.h"
#include "plan/problem_text.h"

namespace deep_gemm::plan {
namespace {

constexpr std::string_view kName = "fp4_gemm";

template <typename Enum, typename... Values>
bool read_name(Enum& field, std::string_view text, Values... values) {
    for (const Enum value : {values...}) {
        if (text != name_of(value)) continue;
        field = value;
        return true;
    }
    return false;
}

bool read_groups(Fp4Problem& problem, std::string_view word) {
    return read_name(problem.groups, word, GroupMode::dense, GroupMode::contiguous, GroupMode::psum,
                     GroupMode::masked, GroupMode::gathered);
}

void read_word(Fp4Problem& p, std::string_view word) {
    const size_t equals = word.find('=');
    const std::string_view key = word.substr(0, equals);
    const std::string_view value = equals == std::string_view::npos ? "" : word.substr(equals + 1);
    if (word == "accumulate") {
        p.accumulate = true;
    } else if (word == "split") {
        p.split = true;
    } else if (word == "per_token") {
        p.per_token = true;
    } else if (word == "bf16_products") {
        p.bf16_products = true;
    } else if (word == "fast_accumulation") {
        p.fast_accumulation = true;
    } else if (word == "by_32") {
        p.by_32 = true;
    } else if (key == "form" || key == "d" || key == "a") {
        const bool known = key == "a"      ? read_name(p.a, value, Format::fp8_e4m3, Format::bf16)
                           : key == "form" ? read_name(p.form, value, Fp4Form::mx_e4m3, Fp4Form::mx_e5m2,
                                                       Fp4Form::nv_single, Fp4Form::nv_exact)
                                           : read_name(p.d, value, Format::bf16, Format::fp32);
        DG_CHECK(
            known, value,
            "problem: {}={} is unknown; expected form=mx_e4m3, mx_e5m2, nv_single or nv_exact, d=bf16 or "
            "fp32, a=fp8_e4m3 or bf16: take one of them",
            key, value);
    } else if (!read_groups(p, word)) {
        u32* const field = key == "m"            ? &p.m
                           : key == "n"          ? &p.n
                           : key == "k"          ? &p.k
                           : key == "groups"     ? &p.num_groups
                           : key == "expected_m" ? &p.expected_m
                           : key == "num_sms"    ? &p.num_sms
                                                 : nullptr;
        DG_CHECK(field != nullptr, value,
                 "problem: unexpected word '{}'; expected a group mode, accumulate, split, per_token, by_32, "
                 "bf16_products, fast_accumulation, or m, n, k, groups, expected_m, num_sms, form, a or d "
                 "with a value: correct it",
                 word);
        *field = parse_count(key, value);
    }
}

}  // namespace

std::string to_string(const Fp4Problem& p) {
    std::string text(kName);
    if (p.groups != GroupMode::dense) text += fmt::format(" {} groups={}", name_of(p.groups), p.num_groups);
    text += fmt::format(" m={} n={} k={} form={} d={}", p.m, p.n, p.k, name_of(p.form), name_of(p.d));
    if (p.a != Format::fp8_e4m3) text += fmt::format(" a={}", name_of(p.a));
    if (p.expected_m > 0) text += fmt::format(" expected_m={}", p.expected_m);
    if (p.num_sms > 0) text += fmt::format(" num_sms={}", p.num_sms);
    if (p.split) text += " split";
    if (p.per_token) text += " per_token";
    if (p.bf16_products) text += " bf16_products";
    if (p.fast_accumulation) text += " fast_accumulation";
    if (p.by_32) text += " by_32";
    if (p.accumulate) text += " accumulate";
    return text;
}

std::string to_string(const Fp4GemmSpec& s) {
    if (s.wide)
        return fmt::format("{}x{} {} stages, wide, {} wg, clusters of {}{}{}{}", s.block_m, fp4_block_n_of(s),
                           s.stages, s.warpgroups, s.cluster, s.fragment_sets == 2 ? ", 2 sets" : "",
                           has_bf16_tokens(s)    ? ", bf16 tokens"
                           : s.token_terms == 2  ? ", two terms"
                           : s.fast_accumulation ? ", fast accumulation"
                                                 : "",
                           s.copies_only ? ", copies only" : "");
    return fmt::format("{}x{} {} stages of {}, {} wg, {} CTAs{}{}{}", s.block_m, fp4_block_n_of(s), s.stages,
                       s.k_blocks, s.warpgroups, s.ctas_per_sm, s.queue ? ", queue" : "",
                       has_bf16_tokens(s)   ? ", bf16 tokens"
                       : s.token_terms == 2 ? ", two terms"
                       : s.by_32            ? ", scales by 32"
                                            : "",
                       s.copies_only ? ", copies only" : "");
}

Fp4Problem parse_fp4_problem(std::string_view text) {
    Fp4Problem problem;
    const auto name = [](std::string_view word) {
        Fp4Problem unused;
        return read_groups(unused, word) ? "group mode" : key_of(word);
    };
    read_words(text, kName, name, [&](std::string_view word) { read_word(problem, word); });
    DG_CHECK(problem.m > 0 && problem.n > 0 && problem.k > 0 && problem.num_groups > 0, value,
             "problem: got m={} n={} k={} groups={}; expected all of at least 1, as in 'fp4_gemm m=64 "
             "n=4096 k=2048'",
             problem.m, problem.n, problem.k, problem.num_groups);
    DG_CHECK(problem.num_groups == 1 || problem.groups != GroupMode::dense, value,
             "problem: got groups={} without a group mode, expected masked, contiguous, psum or gathered; "
             "add one",
             problem.num_groups);
    DG_CHECK(
        problem.a != Format::bf16 || problem.form != Fp4Form::nv_single, value,
        "problem: got form=nv_single and a=bf16, expected form=nv_exact or FP8 activations; nv_single is rounded "
        "for them");
    // What no call can be.
    DG_CHECK(
        !problem.bf16_products || problem.a == Format::bf16, value,
        "problem: got bf16_products with FP8 activations, expected a=bf16; add it, or leave bf16_products out");
    DG_CHECK(
        problem.a != Format::bf16 || !(problem.per_token || problem.by_32), value,
        "problem: got {} with a=bf16, expected FP8 activations: bf16 tokens have no scales; leave one out",
        problem.by_32 ? "by_32" : "per_token");
    DG_CHECK(
        !problem.by_32 || !problem.per_token, value,
        "problem: got by_32 and per_token, expected one of them: a token has one scale, or one for 32 of K; "
        "leave the other out");
    const u32 group = fp4_group_of(problem.form);
    DG_CHECK(problem.k % group == 0, value,
             "problem: k={} is no multiple of {}, the group of {}; pad the weights with zeros", problem.k,
             group, name_of(problem.form));
    DG_CHECK(problem.n % 2 == 0, value,
             "problem: n={} is odd, expected an even number; pad the weights with a row of zeros", problem.n);
    return problem;
}

std::string explain(const Fp4Problem& problem, const DeviceModel& device, u32 rows) {
    std::vector<Fp4Candidate> considered;
    const Fp4Plan plan = plan_fp4_gemm(problem, device, &considered);
    std::map<std::string, u32> rejected;
    std::vector<Fp4Candidate> legal;
    for (const Fp4Candidate& candidate : considered) {
        if (candidate.rejected != nullptr)
            ++rejected[candidate.rejected];
        else
            legal.push_back(candidate);
    }
    std::stable_sort(legal.begin(), legal.end(), [](const Fp4Candidate& a, const Fp4Candidate& b) {
        return a.cost.total_us < b.cost.total_us;
    });
    std::string text =
        fmt::format("{} on sm_{}, {} SMs: {} candidates, {} legal; grid {} CTAs\n", to_string(problem),
                    device.arch, device.num_sms, considered.size(), legal.size(), plan.grid_blocks);
    text += fmt::format("  {:<52} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7} = {:>8}\n", "tokens x weights (block)",
                        "dram", "fill", "l2", "math", "launch", "arrange", "total us");
    for (size_t i = 0; i < std::min<size_t>(rows, legal.size()); ++i) {
        const Fp4Cost& c = legal[i].cost;
        text += fmt::format("  {:<52} {:>7.2f} {:>7.2f} {:>7.2f} {:>7.2f} {:>7.2f} {:>7.2f} = {:>8.2f}  {}\n",
                            to_string(legal[i].spec), c.dram_us, c.fill_us, c.l2_us, c.math_us, c.launch_us,
                            c.arrange_us, c.total_us,
                            legal[i].spec == plan.spec
                                ? "chosen"
                                : fmt::format("+{:.0f} %", (c.total_us / plan.cost.total_us - 1) * 100));
    }
    for (const auto& [reason, count] : rejected) text += fmt::format("  rejected {:>3}: {}\n", count, reason);
    return text;
}

}  // namespace deep_gemm::plan
