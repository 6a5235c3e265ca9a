// The checks of a GEMM's arguments. Each failure is one sentence of got, expected, remedy; nothing is
// launched.
#include "base/error.h"
#include "op/gemm_call.h"
#include "op/overlap.h"
#include "op/tensor_check.h"

namespace deep_gemm::op {

namespace {

constexpr u32 kTmaAlignment = 16;  // bytes: start and rows of what TMA reads

const char* operation(const GemmArguments& args) {
    if (args.function) return args.function;
    return args.groups == GroupMode::dense ? "gemm" : "m_grouped_gemm";
}

[[noreturn]] void fail_format(const GemmArguments& args, const char* name, Format got, const char* expected) {
    if (got == Format::fp4_e2m1 || got == Format::int8)
        fail(ErrorKind::value,
             "{}: {} is {}, expected {}; FP4 weights are packed once, by deep_gemm.pack_fp4_weights, and "
             "passed to fp8_fp4_gemm_nt or its grouped forms",
             operation(args), name, name_of(got), expected);
    if (got == Format::int32)
        fail(ErrorKind::type,
             "{}: {} is int32, expected {}; packed UE8M0 scales are for newer architectures: pass the "
             "fp32 scales",
             operation(args), name, expected);
    fail(
        ErrorKind::type, "{}: {} is {}, expected {}; {} or call the operation for its type", operation(args),
        name, name_of(got), expected,
        expected == std::string_view("fp8_e4m3") ? "cast it (deep_gemm.utils has the FP8 casts)" : "cast it");
}

void check_present(const GemmArguments& args, const char* name, const TensorView& t, Format format) {
    DG_CHECK(t.present(), type, "{}: {} is missing, expected a tensor of {}; pass it", operation(args), name,
             name_of(format));
    if (t.format != format) fail_format(args, name, t.format, name_of(format));
    DG_CHECK(t.device == args.a.device, value, "{}: {} is on another device than a; move it to a's device",
             operation(args), name);
}

void check_rank(const GemmArguments& args, const char* name, const TensorView& t, u32 rank,
                const char* layout) {
    DG_CHECK(t.rank == rank, value, "{}: {} has shape {}, expected {} dimensions {}; reshape it",
             operation(args), name, shape_text(t), rank, layout);
    for (u32 i = 0; i < rank; ++i) {
        DG_CHECK(t.shape[i] <= kMaxExtent, value,
                 "{}: {} has shape {}, expected extents below 2^31; pass slices", operation(args), name,
                 shape_text(t));
        DG_CHECK(t.strides[i] >= 0, value,
                 "{}: {} has stride {} along dimension {}, expected no negative stride; pass "
                 "a contiguous copy",
                 operation(args), name, t.strides[i], i);
    }
}

void check_shape(const GemmArguments& args, const char* name, const TensorView& t,
                 std::initializer_list<i64> expected, const char* remedy) {
    bool same = t.rank == expected.size();
    u32 i = 0;
    for (i64 extent : expected) same = same && t.shape[i++] == extent;
    if (same) [[likely]]
        return;
    std::string text;
    for (i64 extent : expected) text += fmt::format("{}{}", text.empty() ? "" : ", ", extent);
    fail(ErrorKind::value, "{}: {} has shape {}, expected [{}]{}", operation(args), name, shape_text(t), text,
         remedy);
}

// Turns a matrix that is contiguous along M or N around, so that its columns are what is contiguous. K wins
// where both are.
Major orient(const GemmArguments& args, const char* name, const char* rows, Operand& o) {
    if (o.stride_column == 1) return Major::k;
    const bool mn_major = args.ab == Format::bf16 && (o.rows <= 1 || o.stride_row == 1);
    DG_CHECK(mn_major || args.ab == Format::bf16, value,
             "{}: {} has stride {} along K, expected 1: FP8 is multiplied along contiguous K only; pass "
             "{}.contiguous(), or where {} is given transposed (_nn, _tn, _tt) {}.mT.contiguous().mT",
             operation(args), name, o.stride_column, name, name, name);
    DG_CHECK(
        mn_major, value,
        "{}: {} has stride {} along K and {} along {}, expected 1 along one of them; pass {}.contiguous()",
        operation(args), name, o.stride_column, o.stride_row, rows, name);
    std::swap(o.rows, o.columns);
    o.stride_row = o.stride_column;
    o.stride_column = 1;
    return Major::mn;
}

// " (groups 40)": said of several groups only.
std::string groups_apart(const Operand& o, u64 bytes) {
    return o.groups > 1 ? fmt::format(" (groups {})", o.stride_group * bytes) : "";
}

// What TMA reads: contiguous columns, rows and groups at multiples of 16 bytes. `rows` names the dimension
// that is not K.
Operand matrix_operand(const GemmArguments& args, const char* name, const char* rows, const TensorView& t,
                       Major& major) {
    Operand o = operand_of(t);
    const u64 bytes = bytes_of(t.format);
    major = orient(args, name, rows, o);
    if (o.elements_spanned() == 0) return o;
    DG_CHECK(o.address % kTmaAlignment == 0, value,
             "{}: {} starts at {:#x}, expected a multiple of {} bytes; copy it to "
             "its own allocation",
             operation(args), name, o.address, kTmaAlignment);
    DG_CHECK(o.stride_row * bytes % kTmaAlignment == 0 && o.stride_group * bytes % kTmaAlignment == 0, value,
             "{}: rows of {} are {} bytes apart{}, expected multiples of {}; pad {} to a multiple of {} "
             "elements",
             operation(args), name, o.stride_row * bytes, groups_apart(o, bytes), kTmaAlignment,
             major == Major::k ? "K" : rows, kTmaAlignment / bytes);
    DG_CHECK(o.groups <= 1 || o.stride_group > 0, value,
             "{}: groups of {} are 0 elements apart, expected groups of their "
             "own; pass {}.contiguous()",
             operation(args), name, name);
    DG_CHECK(o.rows <= 1 || o.stride_row >= o.columns, value,
             "{}: rows of {} are {} elements apart but {} long, "
             "expected rows that do not overlap; pass {}.contiguous()",
             operation(args), name, o.stride_row, o.columns, name);
    return o;
}

Operand scale_operand(const GemmArguments& args, const char* name, const TensorView& t) {
    Operand o = operand_of(t);
    DG_CHECK(o.address % 4 == 0, value, "{}: {} starts at {:#x}, expected a multiple of 4 bytes; pass a copy",
             operation(args), name, o.address);
    DG_CHECK(o.stride_row <= kMaxExtent && o.stride_column <= kMaxExtent, value,
             "{}: {} has strides {} and {}, expected less than 2^31; pass a contiguous copy", operation(args),
             name, o.stride_row, o.stride_column);
    return o;
}

Operand output_operand(const GemmArguments& args, const TensorView& t) {
    Operand o = operand_of(t);
    DG_CHECK(o.stride_column == 1, value, "{}: d has stride {} along N, expected 1; allocate d row-major",
             operation(args), o.stride_column);
    DG_CHECK(o.rows <= 1 || o.stride_row >= o.columns, value,
             "{}: rows of d are {} elements apart but {} long, expected "
             "rows that do not overlap; allocate d contiguous",
             operation(args), o.stride_row, o.columns);
    check_groups_of_d(operation(args), o);
    DG_CHECK(o.stride_row <= kMaxExtent, value,
             "{}: rows of d are {} elements apart, expected less than 2^31; allocate d contiguous",
             operation(args), o.stride_row);
    DG_CHECK(o.address % bytes_of(t.format) == 0, value,
             "{}: d starts at {:#x}, expected a multiple of {} bytes; allocate d by itself", operation(args),
             o.address, bytes_of(t.format));
    return o;
}

void check_c(const GemmArguments& args) {
    const TensorView &c = args.c, &d = args.d;
    check_present(args, "c", c, d.format);
    DG_CHECK(c.rank == d.rank, value,
             "{}: c has shape {}, expected d's shape {}; expand c into a tensor of that shape",
             operation(args), shape_text(c), shape_text(d));
    for (u32 i = 0; i < d.rank; ++i)
        DG_CHECK(c.shape[i] == d.shape[i], value,
                 "{}: c has shape {}, expected d's shape {}; expand c into a tensor of that shape",
                 operation(args), shape_text(c), shape_text(d));
    for (u32 i = 0; i < d.rank; ++i)
        DG_CHECK(
            c.shape[i] == 1 || c.strides[i] == d.strides[i], value,
            "{}: c has stride {} along dimension {}, expected d's stride {}; copy c into d and pass d as c",
            operation(args), c.strides[i], i, d.strides[i]);
    DG_CHECK(reinterpret_cast<u64>(c.data) % bytes_of(c.format) == 0, value,
             "{}: c starts at {:#x}, expected a multiple of {} bytes; copy c into d and pass d as c",
             operation(args), reinterpret_cast<u64>(c.data), bytes_of(c.format));
}

void check_group_layout(const GemmArguments& args, i64 length) {
    const TensorView& t = args.group_layout;
    const char* name = args.groups == GroupMode::masked ? "masked_m" : "grouped_layout";
    check_present(args, name, t, Format::int32);
    check_shape(args, name, t, {length},
                args.groups == GroupMode::contiguous ? " (one group index for each row of a)"
                                                     : " (one number for each matrix of b)");
    DG_CHECK(length <= 1 || t.strides[0] == 1, value,
             "{}: {} has stride {}, expected 1; pass a contiguous copy", operation(args), name, t.strides[0]);
    DG_CHECK(reinterpret_cast<u64>(t.data) % 4 == 0, value,
             "{}: {} starts at {:#x}, expected a multiple of 4; pass a copy", operation(args), name,
             reinterpret_cast<u64>(t.data));
}

void check_scales(const GemmArguments& args, GemmCall& call) {
    const TensorView &a = args.a, &b = args.b;
    const bool masked = args.groups == GroupMode::masked, grouped = args.groups != GroupMode::dense;
    const i64 k_blocks = static_cast<i64>(ceil_div(static_cast<u64>(a.shape[a.rank - 1]), u64{kScaleBlock}));
    const i64 n = b.shape[b.rank - 2];
    const bool per_row = args.scale_b_mode == ScaleB::per_row_128;
    const i64 n_blocks = per_row ? n : static_cast<i64>(ceil_div(static_cast<u64>(n), u64{kScaleBlock}));
    check_present(args, "scales of a", args.scale_a, Format::fp32);
    check_present(args, "scales of b", args.scale_b, Format::fp32);
    const char* remedy_a = " (one scale for each row and 128 elements of K)";
    if (masked)
        check_shape(args, "scales of a", args.scale_a, {a.shape[0], a.shape[1], k_blocks}, remedy_a);
    else
        check_shape(args, "scales of a", args.scale_a, {a.shape[0], k_blocks}, remedy_a);
    const char* remedy_b =
        per_row ? " (one scale for each row and 128 elements of K, by recipe (1, 1, 128))"
                : " (one scale for each 128 x 128 block; for one for each row pass recipe (1, 1, 128))";
    if (grouped)
        check_shape(args, "scales of b", args.scale_b, {b.shape[0], n_blocks, k_blocks}, remedy_b);
    else
        check_shape(args, "scales of b", args.scale_b, {n_blocks, k_blocks}, remedy_b);
    check_rank(args, "scales of a", args.scale_a, args.scale_a.rank, "");
    check_rank(args, "scales of b", args.scale_b, args.scale_b.rank, "");
    call.scale_a = scale_operand(args, "scales of a", args.scale_a);
    call.scale_b = scale_operand(args, "scales of b", args.scale_b);
}

// A forced spec must be a kernel for these arguments.
void check_spec(const GemmArguments& args, const GemmCall& call) {
    const GemmSpec& spec = *args.spec;
    const plan::GemmProblem& p = call.problem;
    const char* reason = why_illegal(spec);
    DG_CHECK(!reason, value, "{}: spec: {}", operation(args), reason);
    reason = plan::why_unfit(p, spec);
    DG_CHECK(
        !reason, value,
        "{}: spec: got {} x {} -> {}, {}, a_major={}, b_major={}, accumulate={}, swap_ab={}, split_k={}, "
        "expected "
        "a kernel for {}: {}",
        operation(args), name_of(spec.ab), name_of(spec.scale_b), name_of(spec.d), name_of(spec.groups),
        name_of(spec.a_major), name_of(spec.b_major), spec.accumulate, spec.swap_ab, spec.split_k,
        plan::to_string(p), reason);
}

// Blocks are written while others are still read, so D may share memory with nothing but a C of the same
// place.
void check_overlap(const GemmArguments& args, const GemmCall& call) {
    const Region d = region_of(call.d, call.problem.d);
    const auto check = [&](const char* name, const Region& input) {
        check_apart(operation(args), d, name, input);
    };
    check("a", region_of(call.a, call.problem.ab));
    check("b", region_of(call.b, call.problem.ab));
    check("scales of a", region_of(call.scale_a, Format::fp32));
    check("scales of b", region_of(call.scale_b, Format::fp32));
    check(args.groups == GroupMode::masked ? "masked_m" : "grouped_layout",
          {.address = call.group_layout, .bytes = call.group_layout_length * 4});
    if (call.c == 0 || call.c == call.d.address) return;
    Region c = d;
    c.address = call.c;
    check("c", c);
}

}  // namespace

Operand operand_of(const TensorView& t) {
    Operand o;
    o.address = reinterpret_cast<u64>(t.data);
    const u32 row = t.rank - 2, column = t.rank - 1;
    o.rows = static_cast<u64>(t.shape[row]);
    o.columns = static_cast<u64>(t.shape[column]);
    o.stride_row = o.rows > 1 ? static_cast<u64>(t.strides[row]) : 0;
    o.stride_column = o.columns > 1 ? static_cast<u64>(t.strides[column]) : 1;
    if (t.rank == 3) {
        o.groups = static_cast<u64>(t.shape[0]);
        o.stride_group = o.groups > 1 ? static_cast<u64>(t.strides[0]) : 0;
    }
    if (o.elements_spanned() == 0) {  // frameworks differ in the strides of nothing
        o.stride_row = o.columns;
        o.stride_group = o.rows * o.columns;
        o.stride_column = 1;
    }
    return o;
}

GemmCall check_gemm(const GemmArguments& args) {
    const TensorView &a = args.a, &b = args.b, &d = args.d;
    const bool masked = args.groups == GroupMode::masked, grouped = args.groups != GroupMode::dense;
    DG_CHECK(args.ab == Format::fp8_e4m3 || args.ab == Format::bf16, value,
             "{}: operands of {}, expected fp8_e4m3 or bf16; cast them", operation(args), name_of(args.ab));
    DG_CHECK((args.ab == Format::fp8_e4m3) == (args.scale_b_mode != ScaleB::none), value,
             "{}: scale_b_mode is {} for {} operands, expected scales for fp8_e4m3 and none for bf16; "
             "correct one of them",
             operation(args), name_of(args.scale_b_mode), name_of(args.ab));
    DG_CHECK(a.present() && a.device, type, "{}: a is missing, expected a tensor of {}; pass it",
             operation(args), name_of(args.ab));
    check_present(args, "a", a, args.ab);
    check_present(args, "b", b, args.ab);
    DG_CHECK(d.present(), type, "{}: d is missing, expected a tensor of bf16 or fp32; allocate it",
             operation(args));
    if (d.format != Format::bf16 && d.format != Format::fp32)
        fail_format(args, "d", d.format, "bf16 or fp32");
    check_present(args, "d", d, d.format);

    check_rank(args, "a", a, masked ? 3 : 2, masked ? "[groups, m, k]" : "[m, k]");
    check_rank(args, "b", b, grouped ? 3 : 2, grouped ? "[groups, n, k]" : "[n, k]");
    check_rank(args, "d", d, masked ? 3 : 2, masked ? "[groups, m, n]" : "[m, n]");
    const i64 m = a.shape[a.rank - 2], k = a.shape[a.rank - 1], n = b.shape[b.rank - 2];
    DG_CHECK(
        m <= plan::kMaxGemmSide && n <= plan::kMaxGemmSide, value,
        "{}: d has {} x {} elements, expected at most 2^30 on a side; pass slices of the operands and of d",
        operation(args), m, n);
    DG_CHECK(b.shape[b.rank - 1] == k, value,
             "{}: b has shape {}, expected k={} as in a, whose shape is {}; give b as [n, k], or where it is "
             "given transposed (_nn, _tn) [k, n]",
             operation(args), shape_text(b), k, shape_text(a));
    if (masked) {
        DG_CHECK(b.shape[0] == a.shape[0], value,
                 "{}: b has {} groups, expected {} as in a; pass a matrix for each", operation(args),
                 b.shape[0], a.shape[0]);
        check_shape(args, "d", d, {a.shape[0], m, n}, " (rows as in a, columns as rows of b)");
    } else {
        check_shape(args, "d", d, {m, n}, " (rows as in a, columns as rows of b)");
    }

    GemmCall call;
    Major a_major, b_major;
    call.a = matrix_operand(args, "a", "M", a, a_major);
    call.b = matrix_operand(args, "b", "N", b, b_major);
    call.d = output_operand(args, d);
    if (args.scale_b_mode != ScaleB::none) check_scales(args, call);
    if (args.c.present()) {
        check_c(args);
        call.c = reinterpret_cast<u64>(args.c.data);
    }
    if (grouped) {
        check_group_layout(args, args.groups == GroupMode::contiguous ? m : b.shape[0]);
        call.group_layout = reinterpret_cast<u64>(args.group_layout.data);
        call.group_layout_length = static_cast<u64>(args.group_layout.shape[0]);
    }
    DG_CHECK(args.expected_m >= 0 && args.expected_m <= kMaxExtent, value,
             "{}: expected_m is {}, expected a number of rows; pass the mean rows of a group",
             operation(args), args.expected_m);

    const u64 d_bytes = bytes_of(d.format);
    call.problem = {
        .groups = args.groups,
        .ab = args.ab,
        .d = d.format,
        .scale_b = args.scale_b_mode,
        .accumulate = call.c != 0,
        .d_tma = call.d.address % kTmaAlignment == 0 && call.d.stride_row * d_bytes % kTmaAlignment == 0 &&
                 call.d.stride_group * d_bytes % kTmaAlignment == 0 && call.c % kTmaAlignment == 0,
        .m = static_cast<u32>(m),
        .n = static_cast<u32>(n),
        .k = static_cast<u32>(k),
        .num_groups = grouped ? static_cast<u32>(b.shape[0]) : 1,
        .expected_m = static_cast<u32>(args.expected_m),
        .num_sms = settings().num_sms,
        .a_major = a_major,
        .b_major = b_major,
    };
    check_overlap(args, call);
    call.device = a.device;
    call.stream = args.stream;
    call.spec = args.spec;
    call.empty = call.d.elements_spanned() == 0;
    call.no_products = k == 0 || call.b.groups == 0;
    if (args.spec) check_spec(args, call);
    return call;
}

}  // namespace deep_gemm::op
