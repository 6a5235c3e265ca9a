// D = C + A W^T with FP8 or bf16 activations and packed FP4 weights (spec/fp4_weights.h), dense or by expert:
// check
// -> plan -> kernel -> launch. Asynchronous; never synchronises, and allocates nothing but what a wide plan
// without `scratch` wants of the stream's workspace (op/workspace.h).
#pragma once

#include "driver/device.h"
#include "jit/source.h"
#include "op/api.h"
#include "op/fp4_pack.h"
#include "op/gemm_call.h"
#include "plan/fp4_gemm.h"

namespace deep_gemm::op {

struct Fp4WeightViews {
    TensorView blobs;       // int8
    TensorView row_scales;  // fp32
    TensorView runs;        // int32, or absent
    Fp4Shape shape;
    Fp4Form form = Fp4Form::mx_e4m3;
};

// Shapes by `groups` as GemmArguments of op/api.h, where b is the weights; beyond them
//
//   gathered   a [rows, k], d [rows, n]; group_layout: int32 [experts, 4], the entries (expert, first slot,
//   count,
//              unused) of a list whose head is `list`, int32 [4]: (entries, 0, 0, unused). a_rows and d_rows:
//              int32 [slots], the row of A and of D for each slot, or absent: the slot itself. The two zeros
//              are counters that each launch leaves at zero: one list serves one stream. What of a list does
//              not exist is skipped (Fp4Entry in spec/fp4_gemm.h).
//
// a is bf16 and scale_a absent (not with nv_single), or fp8_e4m3, rows at multiples of 4 bytes; scale_a fp32
// [..., m, ceil(k / 128)] or [..., m, ceil(k / 32)] with any strides, 0 along K for one scale for each token.
// d is bf16 or fp32, rows at multiples of two elements; n is even, k a
// positive multiple of 32, with NVFP4 of 16.
struct Fp4GemmArguments {
    GroupMode groups = GroupMode::dense;
    TensorView a = {}, scale_a = {}, d = {}, c = {}, group_layout = {}, list = {}, a_rows = {}, d_rows = {};
    Fp4WeightViews weights;
    u32 a_block = 0;  // elements of K that share a scale of a, 32 or 128; 0: as the shape of the scales says
    i64 expected_m = 0;
    // bf16 a: its elements are multiplied as such, not as sums of two E4M3 terms, which are faster and whose sums
    // are off by less than the rounding of a bf16 d (docs/fp4.md).
    bool bf16_products = false;
    // Sums may stay in the tensor core, which keeps 14 bits of them, over all of K. Of effect with one scale
    // for each token, weights of one run and many tokens; the bits of a row then depend on the kernel.
    bool fast_accumulation = false;
    const Fp4GemmSpec* spec = nullptr;
    void* stream = nullptr;
    const char* function = nullptr;  // what errors begin with; null: fp8_fp4_gemm or m_grouped_fp8_fp4_gemm
};

struct Fp4GemmCall {
    plan::Fp4Problem problem;
    Operand a, scale_a, d;
    u64 c = 0, group_layout = 0, group_layout_length = 0, list = 0, a_rows = 0, d_rows = 0, slots = 0;
    u64 blobs = 0, row_scales = 0, runs = 0, num_runs = 0, num_blocks = 0;
    Device* device = nullptr;
    void* stream = nullptr;
    const Fp4GemmSpec* spec = nullptr;
    u64 term_scales =
        0;  // not 0: two terms are in the place of bf16 a (spec/two_terms.h), these are their scales
    u64 scratch = 0;  // scratch_bytes() of the caller's at a multiple of 128; 0: of the stream's workspace
    bool empty = false;
};

// What any plan of the problem writes and reads besides its arguments, where A has `a_rows` rows in each group: two
// terms of bf16 activations; of a wide plan the activations in order.
[[nodiscard]] u64 scratch_bytes(const plan::Fp4Problem& problem, u64 a_rows);

[[nodiscard]] Fp4GemmCall check_fp4_gemm(const Fp4GemmArguments& arguments);
void run(const Fp4GemmCall& call);
// What the call's plan multiplies for a token: 2 where it takes two terms. Plans and compiles, the first time.
[[nodiscard]] u32 token_terms_of(const Fp4GemmCall& call);

// The plan of this thread's last run() and its problem; nullptr before the first.
struct Fp4Launched {
    plan::Fp4Problem problem;
    plan::Fp4Plan plan;
};
[[nodiscard]] const Fp4Launched* last_fp4_launch();

[[nodiscard]] size_t num_fp4_plans();  // in its table (op/plan_table.h)

[[nodiscard]] jit::KernelSource fp4_kernel_source(const Fp4GemmSpec& spec);

}  // namespace deep_gemm::op
