// The checks of an FP8 x FP4 GEMM's arguments. Each failure is one sentence of got, expected, remedy; nothing
// is launched.
#include "base/error.h"
#include "op/fp4_gemm.h"
#include "op/overlap.h"
#include "op/tensor_check.h"

#include <algorithm>

namespace deep_gemm::op {

namespace {

constexpr u32 kWordBytes = 4;  // activations are copied by words
constexpr u32 kShortScaleBlock = 32;

const char* operation(const Fp4GemmArguments& args) {
    if (args.function) return args.function;
    return args.groups == GroupMode::dense ? "fp8_fp4_gemm" : "m_grouped_fp8_fp4_gemm";
}

void check_tensor(const Fp4GemmArguments& args, const char* name, const TensorView& t, Format format) {
    DG_CHECK(t.present(), type, "{}: {} is missing, expected a tensor of {}; pass it", operation(args), name,
             name_of(format));
    DG_CHECK(t.format == format, type, "{}: {} is {}, expected {}; cast it", operation(args), name,
             name_of(t.format), name_of(format));
    DG_CHECK(t.device == args.a.device, value, "{}: {} is on another device than a; move it to a's device",
             operation(args), name);
    for (u32 i = 0; i < t.rank; ++i)
        DG_CHECK(t.shape[i] <= kMaxExtent && t.strides[i] >= 0 && t.strides[i] <= kMaxExtent * 4, value,
                 "{}: {} has shape {} and stride {} along dimension {}, expected extents below 2^31 and no "
                 "negative stride; pass a contiguous copy",
                 operation(args), name, shape_text(t), t.strides[i], i);
}

void check_shape(const Fp4GemmArguments& args, const char* name, const TensorView& t,
                 std::initializer_list<i64> expected, const char* remedy) {
    bool same = t.rank == expected.size();
    u32 i = 0;
    std::string text;
    for (const i64 extent : expected) {
        same = same && t.shape[i++] == extent;
        if (!same) break;
    }
    if (same) [[likely]]
        return;
    for (const i64 extent : expected) text += fmt::format("{}{}", text.empty() ? "" : ", ", extent);
    fail(ErrorKind::value, "{}: {} has shape {}, expected [{}]{}", operation(args), name, shape_text(t), text,
         remedy);
}

u64 packed_address(const Fp4GemmArguments& args, const char* name, const TensorView& t, Format format,
                   i64 elements, u32 alignment) {
    check_tensor(args, name, t, format);
    i64 count = 1, stride = 1;
    for (u32 i = t.rank; i-- > 0;) {
        DG_CHECK(t.shape[i] <= 1 || t.strides[i] == stride, value,
                 "{}: {} has stride {} along dimension {}, expected {}; pass a contiguous copy",
                 operation(args), name, t.strides[i], i, stride);
        count *= t.shape[i];
        stride *= t.shape[i];
    }
    DG_CHECK(count == elements, value,
             "{}: {} has {} elements, expected {}; pass the tensor made for these weights and shapes",
             operation(args), name, count, elements);
    const u64 address = reinterpret_cast<u64>(t.data);
    DG_CHECK(address % alignment == 0, value,
             "{}: {} starts at {:#x}, expected a multiple of {} bytes; pass a copy", operation(args), name,
             address, alignment);
    return address;
}

void check_weights(const Fp4GemmArguments& args, Fp4GemmCall& call) {
    const Fp4WeightViews& w = args.weights;
    call.num_blocks = u64{w.shape.experts} * fp4_row_blocks(w.shape.n);
    const i64 run_bytes = i64{fp4_k_blocks(w.shape.k)} * fp4_blob_bytes_of(w.form);
    call.num_runs = call.num_blocks;
    if (w.runs.present()) {
        call.runs = packed_address(args, "runs of the weights", w.runs, Format::int32,
                                   static_cast<i64>(call.num_blocks), 4);
        i64 elements = 1;
        for (u32 i = 0; i < w.row_scales.rank; ++i) elements *= w.row_scales.shape[i];
        call.num_runs = static_cast<u64>(elements) / kFp4BlockRows;
    }
    const i64 num_runs = static_cast<i64>(call.num_runs);
    call.blobs =
        packed_address(args, "blobs of the weights", w.blobs, Format::int8, num_runs * run_bytes, 16);
    call.row_scales = packed_address(args, "row scales of the weights", w.row_scales, Format::fp32,
                                     num_runs * kFp4BlockRows, 8);
}

void check_activations(const Fp4GemmArguments& args, Fp4GemmCall& call) {
    const TensorView& a = args.a;
    const bool masked = args.groups == GroupMode::masked;
    call.a = operand_of(a);
    const u64 element = bytes_of(a.format);
    DG_CHECK(call.a.stride_column == 1, value,
             "{}: a has stride {} along K, expected 1 (K-major); pass a.contiguous()", operation(args),
             call.a.stride_column);
    DG_CHECK(call.a.address % kWordBytes == 0 && call.a.stride_row * element % kWordBytes == 0 &&
                 call.a.stride_group * element % kWordBytes == 0,
             value,
             "{}: a starts at {:#x} with rows {} bytes apart{}, expected multiples of {}; pass a "
             "contiguous copy",
             operation(args), call.a.address, call.a.stride_row * element,
             call.a.groups > 1 ? fmt::format(" (groups {})", call.a.stride_group * element) : "", kWordBytes);
    // Kernels take strides of 32 bits.
    DG_CHECK(call.a.stride_row * element < (u64{1} << 32), value,
             "{}: rows of a are {} bytes apart, expected less than 2^32; pass a contiguous copy",
             operation(args), call.a.stride_row * element);
    const u64 words = call.a.elements_spanned() * element / kWordBytes;
    DG_CHECK(words < (u64{1} << 32), value,
             "{}: a spans {} bytes, expected less than 2^34; pass slices, or a contiguous copy",
             operation(args), words * kWordBytes);
    if (a.format == Format::bf16) {
        DG_CHECK(!args.scale_a.present(), value,
                 "{}: a is bf16 and has scales, expected none; pass a alone, or a in FP8", operation(args));
        DG_CHECK(args.weights.form != Fp4Form::nv_single, value,
                 "{}: the weights have form nv_single, which is rounded for FP8 activations; expected "
                 "another with bf16 activations: pack them as nv_exact",
                 operation(args));
        return;
    }
    DG_CHECK(args.scale_a.format != Format::int32 || !args.scale_a.present(), type,
             "{}: scales of a are int32, expected fp32; if they are packed UE8M0, "
             "deep_gemm.utils.unpack_ue8m0_from_int makes fp32 of them",
             operation(args));
    check_tensor(args, "scales of a", args.scale_a, Format::fp32);
    const u64 k = static_cast<u64>(a.shape[a.rank - 1]);
    const i64 by_128 = ceil_div(k, u64{kScaleBlock}), by_32 = ceil_div(k, u64{kShortScaleBlock});
    const i64 columns = args.scale_a.rank > 0 ? args.scale_a.shape[args.scale_a.rank - 1] : 0;
    const bool few = args.a_block == kScaleBlock || (args.a_block == 0 && columns != by_32) || by_32 == 1;
    const i64 k_blocks = few ? by_128 : by_32;
    const char* remedy = args.a_block == 0
                             ? " (one scale for each row and 128 elements of K), or one for each 32"
                         : few ? " (one scale for each row and 128 elements of K)"
                               : " (one scale for each row and 32 elements of K)";
    if (masked)
        check_shape(args, "scales of a", args.scale_a, {a.shape[0], a.shape[1], k_blocks}, remedy);
    else
        check_shape(args, "scales of a", args.scale_a, {a.shape[0], k_blocks}, remedy);
    call.scale_a = operand_of(args.scale_a);
    DG_CHECK(call.scale_a.address % 4 == 0, value,
             "{}: scales of a start at {:#x}, expected a multiple of 4 bytes; pass a copy", operation(args),
             call.scale_a.address);
    if (k_blocks == 1) call.scale_a.stride_column = 0;
    call.problem.by_32 = !few && call.scale_a.stride_column != 0;
    DG_CHECK(std::max(call.scale_a.stride_row, call.scale_a.stride_column) < (u64{1} << 31), value,
             "{}: scales of a have strides {} and {}, expected less than 2^31; pass a contiguous copy",
             operation(args), call.scale_a.stride_row, call.scale_a.stride_column);
}

void check_output(const Fp4GemmArguments& args, Fp4GemmCall& call) {
    const TensorView &d = args.d, &c = args.c;
    call.d = operand_of(d);
    const u64 pair = 2 * bytes_of(d.format);
    DG_CHECK(call.d.stride_column == 1, value,
             "{}: d has stride {} along N, expected 1; allocate d row-major", operation(args),
             call.d.stride_column);
    DG_CHECK(call.d.rows <= 1 || (call.d.stride_row >= call.d.columns && call.d.stride_row <= kMaxExtent),
             value,
             "{}: rows of d are {} elements apart but {} long, expected rows that do not overlap; "
             "allocate d contiguous",
             operation(args), call.d.stride_row, call.d.columns);
    check_groups_of_d(operation(args), call.d);
    DG_CHECK(call.d.address % pair == 0 && call.d.stride_row % 2 == 0 && call.d.stride_group % 2 == 0, value,
             "{}: d starts at {:#x} with rows {} elements apart, expected a multiple of {} bytes and an "
             "even number; columns are written in pairs",
             operation(args), call.d.address, call.d.stride_row, pair);
    if (!c.present()) return;
    check_tensor(args, "c", c, d.format);
    bool same = c.rank == d.rank;
    for (u32 i = 0; same && i < d.rank; ++i)
        same = c.shape[i] == d.shape[i] && (c.shape[i] == 1 || c.strides[i] == d.strides[i]);
    DG_CHECK(same, value,
             "{}: c has shape {}, expected d's shape {} and strides; copy c into d and pass d as c",
             operation(args), shape_text(c), shape_text(d));
    call.c = reinterpret_cast<u64>(c.data);
    DG_CHECK(call.c % pair == 0, value,
             "{}: c starts at {:#x}, expected a multiple of {} bytes; copy c into d and pass d as c",
             operation(args), call.c, pair);
}

// What callers know the group layout as.
const char* layout_name(GroupMode groups) {
    return groups == GroupMode::masked     ? "masked_m"
           : groups == GroupMode::gathered ? "entries"
                                           : "grouped_layout";
}

void check_groups(const Fp4GemmArguments& args, Fp4GemmCall& call) {
    if (args.groups == GroupMode::dense) return;
    const i64 experts = args.weights.shape.experts;
    const char* name = layout_name(args.groups);
    const i64 length = args.groups == GroupMode::contiguous ? args.a.shape[0]
                       : args.groups == GroupMode::gathered ? experts * 4
                                                            : experts;
    const u32 alignment = args.groups == GroupMode::gathered ? 16 : 4;
    call.group_layout = packed_address(args, name, args.group_layout, Format::int32, length, alignment);
    call.group_layout_length = static_cast<u64>(length);
    if (args.groups != GroupMode::gathered) return;
    call.list = packed_address(args, "head", args.list, Format::int32, 4, 16);
    const TensorView& numbered = args.a_rows.present() ? args.a_rows : args.d_rows;
    call.slots = !numbered.present() ? call.a.rows : numbered.rank == 1 ? numbered.shape[0] : 0;
    const auto rows = [&](const char* name_of_rows, const TensorView& t, const char* tensor, u64 room) {
        DG_CHECK(t.present() || room >= call.slots, value,
                 "{}: {} has {} rows, expected at least {}, one for each slot; pass {} to say which "
                 "row a slot has",
                 operation(args), tensor, room, call.slots, name_of_rows);
        if (!t.present()) return u64{0};
        const u64 slots = t.rank == 1 ? t.shape[0] : 0;
        DG_CHECK(slots == call.slots, value,
                 "{}: {} has {} slots, expected {} as a_rows has; pass one row number for each slot",
                 operation(args), name_of_rows, slots, call.slots);
        return packed_address(args, name_of_rows, t, Format::int32, static_cast<i64>(slots), 4);
    };
    call.a_rows = rows("a_rows", args.a_rows, "a", call.a.rows);
    call.d_rows = rows("d_rows", args.d_rows, "d", call.d.rows);
}

// A forced spec must be a kernel for these arguments.
void check_spec(const Fp4GemmArguments& args, const Fp4GemmCall& call) {
    const driver::DeviceProperties& properties = call.device->properties();
    const char* reason = why_illegal(*args.spec);
    DG_CHECK(!reason, value, "{}: spec: [{}] is not a legal kernel: {}", operation(args),
             plan::to_string(*args.spec), reason);
    reason =
        plan::why_unfit(call.problem, *args.spec, plan::device_model(properties.arch, properties.num_sms));
    DG_CHECK(!reason, value, "{}: spec: got [{}], expected a kernel for {}: {}", operation(args),
             plan::to_string(*args.spec), plan::to_string(call.problem), reason);
}

void check_overlap(const Fp4GemmArguments& args, const Fp4GemmCall& call) {
    const Region d = region_of(call.d, args.d.format);
    const auto check = [&](const char* name, const Region& input) {
        check_apart(operation(args), d, name, input);
    };
    const u64 run_bytes = u64{fp4_k_blocks(args.weights.shape.k)} * fp4_blob_bytes_of(args.weights.form);
    check("a", region_of(call.a, args.a.format));
    if (args.scale_a.present()) check("scales of a", region_of(call.scale_a, Format::fp32));
    check("blobs of the weights", {.address = call.blobs, .bytes = call.num_runs * run_bytes});
    check("row scales of the weights",
          {.address = call.row_scales, .bytes = call.num_runs * kFp4BlockRows * 4});
    check("runs of the weights", {.address = call.runs, .bytes = call.runs ? call.num_blocks * 4 : 0});
    check(layout_name(args.groups), {.address = call.group_layout, .bytes = call.group_layout_length * 4});
    check("head", {.address = call.list, .bytes = call.list ? sizeof(Fp4ListHead) : 0});
    check("a_rows", {.address = call.a_rows, .bytes = call.a_rows ? call.slots * 4 : 0});
    check("d_rows", {.address = call.d_rows, .bytes = call.d_rows ? call.slots * 4 : 0});
    if (call.c == 0 || call.c == call.d.address) return;
    Region c = d;
    c.address = call.c;
    check("c", c);
}

}  // namespace

Fp4GemmCall check_fp4_gemm(const Fp4GemmArguments& args) {
    const TensorView &a = args.a, &d = args.d;
    const Fp4Shape& shape = args.weights.shape;
    const bool masked = args.groups == GroupMode::masked;
    DG_CHECK(a.present() && a.device, type,
             "{}: a is missing, expected a tensor of fp8_e4m3 or bf16; pass it", operation(args));
    check_tensor(args, "a", a, a.format == Format::bf16 ? Format::bf16 : Format::fp8_e4m3);
    DG_CHECK(
        !args.bf16_products || a.format == Format::bf16, value,
        "{}: got bf16_products with FP8 activations, expected bf16 ones; pass a in bf16, or leave bf16_products out",
        operation(args));
    DG_CHECK(d.present(), type, "{}: d is missing, expected a tensor of bf16 or fp32; allocate it",
             operation(args));
    DG_CHECK(d.format == Format::bf16 || d.format == Format::fp32, type,
             "{}: d is {}, expected bf16 or fp32; allocate it as one of them", operation(args),
             name_of(d.format));
    check_tensor(args, "d", d, d.format);
    DG_CHECK(a.rank == (masked ? 3 : 2), value,
             "{}: a has shape {}, expected {}; reshape it, or call the operation for its layout",
             operation(args), shape_text(a), masked ? "[groups, m, k]" : "[m, k]");
    const i64 m = a.shape[a.rank - 2], k = a.shape[a.rank - 1], n = shape.n;
    DG_CHECK(shape.k == k, value,
             "{}: the weights have k={}, expected {} as in a, whose shape is {}; pass activations "
             "of the packed weights' k",
             operation(args), shape.k, k, shape_text(a));
    const u32 group = fp4_group_of(args.weights.form);
    DG_CHECK(
        k > 0 && k % group == 0, value,
        "{}: k is {}, expected a positive multiple of {}, the weights of a scale; pad a and the weights with zeros",
        operation(args), k, group);
    DG_CHECK(args.groups != GroupMode::dense || shape.experts == 1, value,
             "{}: the weights are those of {} experts, expected one matrix; use a grouped operation",
             operation(args), shape.experts);
    DG_CHECK(n % 2 == 0, value, "{}: n is {}, expected an even number; pad the weights with a row of zeros",
             operation(args), n);
    DG_CHECK(shape.experts > 0 || m == 0 ||
                 (args.groups != GroupMode::contiguous && args.groups != GroupMode::psum),
             value,
             "{}: the weights have no expert, expected one or more for {} rows; fill d with zeros instead",
             operation(args), m);
    if (masked) {
        DG_CHECK(a.shape[0] == shape.experts, value,
                 "{}: a has {} groups, expected {} as the weights have; pass a block of rows for "
                 "each expert",
                 operation(args), a.shape[0], shape.experts);
        check_shape(args, "d", d, {a.shape[0], m, n}, " (rows as in a, columns as rows of b)");
    } else if (args.groups == GroupMode::gathered) {
        DG_CHECK(d.rank == 2 && d.shape[1] == n, value,
                 "{}: d has shape {}, expected [rows, {}]; allocate d with a column for each row "
                 "of the weights",
                 operation(args), shape_text(d), n);
    } else {
        check_shape(args, "d", d, {m, n}, " (rows as in a, columns as rows of b)");
    }

    Fp4GemmCall call;
    check_activations(args, call);
    check_output(args, call);
    check_weights(args, call);
    check_groups(args, call);
    check_overlap(args, call);
    DG_CHECK(args.expected_m >= 0 && args.expected_m <= kMaxExtent, value,
             "{}: expected_m is {}, expected a number of rows; pass the mean rows of a group",
             operation(args), args.expected_m);
    const bool per_token = args.scale_a.present() && k > kScaleBlock && call.scale_a.stride_column == 0;
    call.problem = {
        .groups = args.groups,
        .form = args.weights.form,
        .a = a.format,
        .split = call.runs != 0,
        .d = d.format,
        .accumulate = call.c != 0,
        .per_token = per_token,
        .by_32 = call.problem.by_32,
        .bf16_products = args.bf16_products,
        .fast_accumulation = args.fast_accumulation && per_token && call.runs == 0,
        .m = static_cast<u32>(args.groups == GroupMode::gathered ? call.slots : static_cast<u64>(m)),
        .n = static_cast<u32>(n),
        .k = static_cast<u32>(k),
        .num_groups = args.groups == GroupMode::dense ? 1 : shape.experts,
        .expected_m = static_cast<u32>(args.expected_m),
        .num_sms = settings().num_sms};
    call.device = a.device;
    call.stream = args.stream;
    call.spec = args.spec;
    call.empty = call.d.elements_spanned() == 0 || shape.experts == 0 || call.problem.m == 0;
    if (args.spec) check_spec(args, call);
    return call;
}

}  // namespace deep_gemm::op
