// The operations as Python functions. The hot path parses arguments, reads
// tensors, checks, looks the launcher up and launches without running Python
// code. Names, positions and defaults are DeepGEMM's; `spec`, `device` and
// `stream` are ours, keyword-only. The forms nn, tn and tt turn the views around
// and are otherwise nt.
#include "op/gemm.h"
#include "python/call_arguments.h"
#include "python/errors.h"
#include "python/tensor.h"

namespace deep_gemm::python {

namespace {

// Which argument stands where; -1: this operation has none.
struct Positions {
    int c = -1, group_layout = -1, expected_m = -1, recipe = -1, psum = -1, spec = -1;
};

struct Operation {
    Signature signature;
    GroupMode groups;  // contiguous may become psum by its flag
    Format ab;
    Positions at;
    bool a_turned = false, b_turned = false;  // given as [k, m], [k, n]
};

// Another form of an nt operation.
constexpr Operation form_of(Operation nt, const char* name, bool a_turned, bool b_turned) {
    nt.signature.function = name;
    nt.a_turned = a_turned;
    nt.b_turned = b_turned;
    return nt;
}

constexpr const char* kDenseFp8[] = {
    "a",    "b",      "d",     "c", "recipe", "recipe_a", "recipe_b", "compiled_dims", "disable_ue8m0_cast",
    "spec", "device", "stream"};
constexpr const char* kContiguousFp8[] = {"a",
                                          "b",
                                          "d",
                                          "grouped_layout",
                                          "recipe",
                                          "recipe_a",
                                          "recipe_b",
                                          "compiled_dims",
                                          "disable_ue8m0_cast",
                                          "use_psum_layout",
                                          "ensure_zero_padding",
                                          "expected_m_for_psum_layout",
                                          "spec",
                                          "device",
                                          "stream"};
constexpr const char* kMaskedFp8[] = {"a",      "b",        "d",        "masked_m",      "expected_m",
                                      "recipe", "recipe_a", "recipe_b", "compiled_dims", "disable_ue8m0_cast",
                                      "spec",   "device",   "stream"};
constexpr const char* kDenseBf16[] = {"a", "b", "d", "c", "compiled_dims", "spec", "device", "stream"};
constexpr const char* kContiguousBf16[] = {"a",
                                           "b",
                                           "d",
                                           "grouped_layout",
                                           "compiled_dims",
                                           "use_psum_layout",
                                           "ensure_zero_padding",
                                           "expected_m_for_psum_layout",
                                           "spec",
                                           "device",
                                           "stream"};
constexpr const char* kMaskedBf16[] = {"a",    "b",      "d",     "masked_m", "expected_m", "compiled_dims",
                                       "spec", "device", "stream"};

// clang-format off
constexpr Operation kDenseFp8Op{{"fp8_gemm_nt", kDenseFp8, 3, 9}, GroupMode::dense, Format::fp8_e4m3,
    {.c = 3, .recipe = 4, .spec = 9}};
constexpr Operation kDenseFp8NnOp = form_of(kDenseFp8Op, "fp8_gemm_nn", false, true);
constexpr Operation kDenseFp8TnOp = form_of(kDenseFp8Op, "fp8_gemm_tn", true, true);
constexpr Operation kDenseFp8TtOp = form_of(kDenseFp8Op, "fp8_gemm_tt", true, false);
constexpr Operation kContiguousFp8Op{{"m_grouped_fp8_gemm_nt_contiguous", kContiguousFp8, 4, 12}, GroupMode::contiguous, Format::fp8_e4m3,
    {.group_layout = 3, .expected_m = 11, .recipe = 4, .psum = 9, .spec = 12}};
constexpr Operation kContiguousFp8NnOp = form_of(kContiguousFp8Op, "m_grouped_fp8_gemm_nn_contiguous", false, true);
constexpr Operation kMaskedFp8Op{{"m_grouped_fp8_gemm_nt_masked", kMaskedFp8, 5, 10}, GroupMode::masked, Format::fp8_e4m3,
    {.group_layout = 3, .expected_m = 4, .recipe = 5, .spec = 10}};
constexpr Operation kDenseBf16Op{{"bf16_gemm_nt", kDenseBf16, 3, 5}, GroupMode::dense, Format::bf16,
    {.c = 3, .spec = 5}};
constexpr Operation kDenseBf16NnOp = form_of(kDenseBf16Op, "bf16_gemm_nn", false, true);
constexpr Operation kDenseBf16TnOp = form_of(kDenseBf16Op, "bf16_gemm_tn", true, true);
constexpr Operation kDenseBf16TtOp = form_of(kDenseBf16Op, "bf16_gemm_tt", true, false);
constexpr Operation kContiguousBf16Op{{"m_grouped_bf16_gemm_nt_contiguous", kContiguousBf16, 4, 8}, GroupMode::contiguous, Format::bf16,
    {.group_layout = 3, .expected_m = 7, .psum = 5, .spec = 8}};
constexpr Operation kContiguousBf16NnOp = form_of(kContiguousBf16Op, "m_grouped_bf16_gemm_nn_contiguous", false, true);
constexpr Operation kMaskedBf16Op{{"m_grouped_bf16_gemm_nt_masked", kMaskedBf16, 5, 6}, GroupMode::masked, Format::bf16,
    {.group_layout = 3, .expected_m = 4, .spec = 6}};
// clang-format on

constexpr const char* kOutputFormats = "bf16 or fp32";

template <size_t N>
std::array<i64, N> integers_of(PyObject* object, const char* function, const char* name) {
    const Py_ssize_t size = PySequence_Check(object) ? PySequence_Size(object) : -1;
    if (size < 0) PyErr_Clear();  // a scalar array is a sequence without a length
    DG_CHECK(size == static_cast<Py_ssize_t>(N), value,
             "{}: {} is {}, expected {} integers (a tuple); pass as many", function, name,
             py::cast<std::string>(py::repr(object)), N);
    std::array<i64, N> values;
    for (size_t i = 0; i < N; ++i) {
        const auto item =
            py::reinterpret_steal<py::object>(PySequence_GetItem(object, static_cast<Py_ssize_t>(i)));
        if (!item) throw py::error_already_set();
        values[i] = integer_of(item.ptr(), function, name);
    }
    return values;
}

// recipe = (rows of a, rows of b, elements of K) that share a scale; or the
// same as recipe_a and recipe_b.
ScaleB scale_mode_of(const Signature& signature, PyObject* recipe, PyObject* recipe_a, PyObject* recipe_b) {
    if (!recipe && !recipe_a && !recipe_b) return ScaleB::per_128x128;
    const char* function = signature.function;
    std::array<i64, 2> a{1, kScaleBlock}, b{kScaleBlock, kScaleBlock};
    if (recipe) {
        DG_CHECK(!recipe_a && !recipe_b, value,
                 "{}: got recipe and recipe_a or recipe_b, expected one or the other; leave recipe out",
                 function);
        const auto whole = integers_of<3>(recipe, function, "recipe");
        a = {whole[0], whole[2]};
        b = {whole[1], whole[2]};
    } else {
        DG_CHECK(recipe_a && recipe_b, value,
                 "{}: got one of recipe_a and recipe_b, expected both; pass the other too", function);
        a = integers_of<2>(recipe_a, function, "recipe_a");
        b = integers_of<2>(recipe_b, function, "recipe_b");
    }
    DG_CHECK(a[0] == 1 && a[1] == kScaleBlock && b[1] == kScaleBlock && (b[0] == 1 || b[0] == kScaleBlock),
             value,
             "{}: got scales per ({}, {}) of a and ({}, {}) of b, expected (1, 128) of a and (128, 128) or "
             "(1, 128) of b; quantise with one of these",
             function, a[0], a[1], b[0], b[1]);
    return b[0] == 1 ? ScaleB::per_row_128 : ScaleB::per_128x128;
}

// (values, scales)
void read_scaled(TensorReader& reader, PyObject* pair, const char* function, const char* name,
                 const char* scale_name, TensorView& values, TensorView& scales) {
    const auto [first, second] = scaled_pair(reader, pair, function, name);
    values = reader.read(first, name, false, "fp8_e4m3");
    scales = reader.read(second, scale_name, false, "fp32");
}

void run(const Operation& operation, const CallArguments& arguments) {
    const Signature& signature = operation.signature;
    const Positions& at = operation.at;
    TensorReader reader(arguments[at.spec + 1], signature.function);
    GemmArguments gemm{.groups = operation.groups, .ab = operation.ab, .function = signature.function};
    for (size_t i = 0; i < 3; ++i)
        DG_CHECK(arguments[i], type, "{}: {} is None, expected a tensor; pass it", signature.function,
                 signature.names[i]);
    if (operation.ab == Format::fp8_e4m3) {
        read_scaled(reader, arguments[0], signature.function, "a", "scales of a", gemm.a, gemm.scale_a);
        read_scaled(reader, arguments[1], signature.function, "b", "scales of b", gemm.b, gemm.scale_b);
        gemm.scale_b_mode = scale_mode_of(signature, arguments[at.recipe], arguments[at.recipe + 1],
                                          arguments[at.recipe + 2]);
    } else {
        gemm.a = reader.read(arguments[0], "a", false, "bf16");
        gemm.b = reader.read(arguments[1], "b", false, "bf16");
        gemm.scale_b_mode = ScaleB::none;
    }
    if (operation.a_turned)
        for (TensorView* view : {&gemm.a, &gemm.scale_a}) turn(*view);
    if (operation.b_turned)
        for (TensorView* view : {&gemm.b, &gemm.scale_b}) turn(*view);
    gemm.d = reader.read(arguments[2], "d", true, kOutputFormats);
    if (at.c >= 0 && arguments[at.c]) gemm.c = reader.read(arguments[at.c], "c", false, kOutputFormats);
    if (at.group_layout >= 0) {
        const char* name = signature.names[at.group_layout];
        DG_CHECK(arguments[at.group_layout], type, "{}: {} is None, expected a tensor of int32; pass it",
                 signature.function, name);
        gemm.group_layout = reader.read(arguments[at.group_layout], name, false, "int32");
    }
    if (at.psum >= 0 && flag_of(arguments[at.psum])) gemm.groups = GroupMode::psum;
    if (at.expected_m >= 0 && arguments[at.expected_m]) {
        const char* name = signature.names[at.expected_m];
        DG_CHECK(gemm.groups != GroupMode::contiguous, value,
                 "{}: got {}, expected it only with use_psum_layout=True; leave it out", signature.function,
                 name);
        gemm.expected_m = integer_of(arguments[at.expected_m], signature.function, name);
    }
    if (arguments[at.spec]) {
        DG_CHECK(py::isinstance<GemmSpec>(arguments[at.spec]), type,
                 "{}: spec is a {}, expected a deep_gemm.GemmSpec; deep_gemm.plan(problem)['spec'] is one",
                 signature.function, Py_TYPE(arguments[at.spec])->tp_name);
        gemm.spec = py::cast<const GemmSpec*>(py::handle(arguments[at.spec]));
    }
    gemm.stream = reader.stream(arguments[at.spec + 2]);

    const op::GemmCall call = op::check_gemm(gemm);
    // Also where nothing is compiled: a launch waits while the device's queue is full.
    const py::gil_scoped_release no_gil;
    op::run(call);
}

template <const Operation& kOperation>
PyObject* entry(PyObject*, PyObject* const* arguments, Py_ssize_t count, PyObject* keywords) {
    try {
        run(kOperation, CallArguments(kOperation.signature, arguments, count, keywords));
        Py_RETURN_NONE;
    } catch (const Error& error) {
        set_python_error(error);
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

#define DG_FAST_ENTRY(operation)                                                    \
    reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&entry<operation>)), \
        METH_FASTCALL | METH_KEYWORDS

// The first line of each docstring is its signature, for inspect and the type stubs. Macros, as literals join
// where they stand.
#define DG_DENSE_FP8_PARAMETERS(dims)                                                   \
    "(a, b, d, c=None, recipe=None, recipe_a=None, recipe_b=None, compiled_dims='" dims \
    "', disable_ue8m0_cast=False, *, spec=None, device=None, stream=None)\n--\n\n"
#define DG_CONTIGUOUS_FP8_PARAMETERS                                                            \
    "(a, b, d, grouped_layout, recipe=None, recipe_a=None, recipe_b=None, compiled_dims='nk', " \
    "disable_ue8m0_cast=False, use_psum_layout=False, ensure_zero_padding=True, "               \
    "expected_m_for_psum_layout=None, *, spec=None, device=None, stream=None)\n--\n\n"
#define DG_DENSE_BF16_PARAMETERS(dims) \
    "(a, b, d, c=None, compiled_dims='" dims "', *, spec=None, device=None, stream=None)\n--\n\n"
#define DG_CONTIGUOUS_BF16_PARAMETERS                                                                 \
    "(a, b, d, grouped_layout, compiled_dims='nk', use_psum_layout=False, ensure_zero_padding=True, " \
    "expected_m_for_psum_layout=None, *, spec=None, device=None, stream=None)\n--\n\n"

PyMethodDef methods[] = {
    {"fp8_gemm_nt", DG_FAST_ENTRY(kDenseFp8Op),
     "fp8_gemm_nt" DG_DENSE_FP8_PARAMETERS(
         "nk") "D = C + A B^T. a = (fp8 [m, k], fp32 scales [m, k / 128]), b = (fp8 [n, "
               "k], fp32 scales [n / 128, k / "
               "128], or\n"
               "[n, k / 128] with recipe (1, 1, 128)), d and c bf16 or fp32 [m, n]. "
               "Rows of a and b start at multiples of 16 bytes: K is a multiple of 16, or they are padded. "
               "compiled_dims and disable_ue8m0_cast are\n"
               "accepted for compatibility and change nothing. spec forces a kernel (deep_gemm.GemmSpec), "
               "stream is a "
               "CUDA stream's\nhandle (by default the current one of the framework that the tensors come "
               "from)."},
    {"fp8_gemm_nn", DG_FAST_ENTRY(kDenseFp8NnOp),
     "fp8_gemm_nn" DG_DENSE_FP8_PARAMETERS("nk") "fp8_gemm_nt with b and its scales given as [k, n]. Hopper "
                                                 "multiplies FP8 along contiguous K only, so b "
                                                 "must be a view of an [n, k] tensor."},
    {"fp8_gemm_tn", DG_FAST_ENTRY(kDenseFp8TnOp),
     "fp8_gemm_tn" DG_DENSE_FP8_PARAMETERS("mn") "fp8_gemm_nt with a given as [k, m] and b as [k, n], both "
                                                 "with their scales; see fp8_gemm_nn."},
    {"fp8_gemm_tt", DG_FAST_ENTRY(kDenseFp8TtOp),
     "fp8_gemm_tt" DG_DENSE_FP8_PARAMETERS(
         "mn") "fp8_gemm_nt with a and its scales given as [k, m]; see fp8_gemm_nn."},
    {"m_grouped_fp8_gemm_nt_contiguous", DG_FAST_ENTRY(kContiguousFp8Op),
     "m_grouped_fp8_gemm_nt_contiguous" DG_CONTIGUOUS_FP8_PARAMETERS
     "Rows of a [m, k] belong to matrices of b [groups, n, k]: grouped_layout "
     "is int32 [m], the group of "
     "each row, with -1\n"
     "(or any number outside the groups) for rows that become zeros; segments "
     "start at multiples of 128 "
     "rows. With\n"
     "use_psum_layout it is int32 [groups], the end row of each group, the "
     "next group starting at a multiple "
     "of 128;\n"
     "an empty group ends where the one before it does or at its own start. "
     "expected_m_for_psum_layout, the rows a group is likely to have, chooses the kernel and "
     "nothing else. Rows\nbetween a group's end and the next multiple of 128 are written as zeros whatever "
     "ensure_zero_padding says; rows beyond the last group's are not written, but for k = 0, which writes "
     "all."},
    {"m_grouped_fp8_gemm_nn_contiguous", DG_FAST_ENTRY(kContiguousFp8NnOp),
     "m_grouped_fp8_gemm_nn_contiguous" DG_CONTIGUOUS_FP8_PARAMETERS
     "m_grouped_fp8_gemm_nt_contiguous with b and its scales given as [groups, k, n]; see fp8_gemm_nn."},
    {"m_grouped_fp8_gemm_nt_masked", DG_FAST_ENTRY(kMaskedFp8Op),
     "m_grouped_fp8_gemm_nt_masked(a, b, d, masked_m, expected_m, recipe=None, "
     "recipe_a=None, recipe_b=None, "
     "compiled_dims='nk', disable_ue8m0_cast=False, *, spec=None, device=None, "
     "stream=None)\n--\n\n"
     "a [groups, max_m, k], b [groups, n, k], d [groups, max_m, n]; masked_m "
     "is int32 [groups], the valid "
     "rows of each\n"
     "group, 0 to max_m; rows of d beyond it hold anything. expected_m chooses the kernel "
     "and nothing else."},
    {"bf16_gemm_nt", DG_FAST_ENTRY(kDenseBf16Op),
     "bf16_gemm_nt" DG_DENSE_BF16_PARAMETERS(
         "nk") "D = C + A B^T for bf16 a [m, k] and b [n, k], each contiguous along either dimension, with "
               "rows (or columns) that start at multiples of 16 bytes; d and c bf16 or fp32 [m, n]."},
    {"bf16_gemm_nn", DG_FAST_ENTRY(kDenseBf16NnOp),
     "bf16_gemm_nn" DG_DENSE_BF16_PARAMETERS(
         "nk") "bf16_gemm_nt with b given as [k, n], contiguous along either."},
    {"bf16_gemm_tn", DG_FAST_ENTRY(kDenseBf16TnOp),
     "bf16_gemm_tn" DG_DENSE_BF16_PARAMETERS(
         "mn") "bf16_gemm_nt with a given as [k, m] and b as [k, n], contiguous along either."},
    {"bf16_gemm_tt", DG_FAST_ENTRY(kDenseBf16TtOp),
     "bf16_gemm_tt" DG_DENSE_BF16_PARAMETERS(
         "mn") "bf16_gemm_nt with a given as [k, m], contiguous along either."},
    {"m_grouped_bf16_gemm_nt_contiguous", DG_FAST_ENTRY(kContiguousBf16Op),
     "m_grouped_bf16_gemm_nt_contiguous" DG_CONTIGUOUS_BF16_PARAMETERS
     "As m_grouped_fp8_gemm_nt_contiguous, for bf16 a and b without scales, each "
     "contiguous along either of its last dimensions."},
    {"m_grouped_bf16_gemm_nn_contiguous", DG_FAST_ENTRY(kContiguousBf16NnOp),
     "m_grouped_bf16_gemm_nn_contiguous" DG_CONTIGUOUS_BF16_PARAMETERS
     "m_grouped_bf16_gemm_nt_contiguous with b given as [groups, k, n], contiguous along either."},
    {"m_grouped_bf16_gemm_nt_masked", DG_FAST_ENTRY(kMaskedBf16Op),
     "m_grouped_bf16_gemm_nt_masked(a, b, d, masked_m, expected_m, "
     "compiled_dims='nk', *, spec=None, "
     "device=None, "
     "stream=None)\n--\n\n"
     "As m_grouped_fp8_gemm_nt_masked, for bf16 a and b without scales, each "
     "contiguous along either of its last dimensions."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void bind_op(py::module_& module) {
    if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace deep_gemm::python
