// The FP8 x FP4 operations as Python functions, in the manner of bind_op.cpp.
#include "op/fp4_gemm.h"
#include "python/call_arguments.h"
#include "python/errors.h"
#include "python/fp4_codes.h"
#include "python/fp4_recipes.h"
#include "python/fp4_weights.h"
#include "python/tensor.h"

namespace deep_gemm::python {

namespace {

// Which argument stands where; -1: this operation has none.
struct Positions {
    int c = -1, group_layout = -1, expected_m = -1, recipe = -1, psum = -1, list = -1, spec = -1;
};

struct Operation {
    Signature signature;
    GroupMode groups;  // contiguous may become psum by its flag
    const char* fp8;   // the operation for FP8 weights; nullptr: there is none
    Positions at;
    bool a_turned = false, b_turned = false;  // given as [k, m], [k, n]; Fp4Weights are never turned
};

// Another form of an nt operation.
constexpr Operation form_of(Operation nt, const char* name, const char* fp8, bool a_turned, bool b_turned) {
    nt.signature.function = name;
    nt.fp8 = fp8;
    nt.a_turned = a_turned;
    nt.b_turned = b_turned;
    return nt;
}

constexpr const char* kDense[] = {"a",
                                  "b",
                                  "d",
                                  "c",
                                  "recipe",
                                  "recipe_a",
                                  "recipe_b",
                                  "compiled_dims",
                                  "disable_ue8m0_cast",
                                  "fast_accumulation",
                                  "bf16_products",
                                  "spec",
                                  "device",
                                  "stream"};
constexpr const char* kContiguous[] = {"a",
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
                                       "fast_accumulation",
                                       "bf16_products",
                                       "spec",
                                       "device",
                                       "stream"};
constexpr const char* kMasked[] = {"a",
                                   "b",
                                   "d",
                                   "masked_m",
                                   "expected_m",
                                   "recipe",
                                   "recipe_a",
                                   "recipe_b",
                                   "compiled_dims",
                                   "disable_ue8m0_cast",
                                   "fast_accumulation",
                                   "bf16_products",
                                   "spec",
                                   "device",
                                   "stream"};
constexpr const char* kGathered[] = {
    "a",    "b",      "d",     "entries", "head", "a_rows", "d_rows", "fast_accumulation", "bf16_products",
    "spec", "device", "stream"};

constexpr Operation kDenseOp{
    {"fp8_fp4_gemm_nt", kDense, 3, 9}, GroupMode::dense, "fp8_gemm_nt", {.c = 3, .recipe = 4, .spec = 11}};
constexpr Operation kDenseNnOp = form_of(kDenseOp, "fp8_fp4_gemm_nn", "fp8_gemm_nn", false, true);
constexpr Operation kDenseTnOp = form_of(kDenseOp, "fp8_fp4_gemm_tn", "fp8_gemm_tn", true, true);
constexpr Operation kDenseTtOp = form_of(kDenseOp, "fp8_fp4_gemm_tt", "fp8_gemm_tt", true, false);
constexpr Operation kContiguousOp{{"m_grouped_fp8_fp4_gemm_nt_contiguous", kContiguous, 4, 12},
                                  GroupMode::contiguous,
                                  "m_grouped_fp8_gemm_nt_contiguous",
                                  {.group_layout = 3, .expected_m = 11, .recipe = 4, .psum = 9, .spec = 14}};
constexpr Operation kContiguousNnOp = form_of(kContiguousOp, "m_grouped_fp8_fp4_gemm_nn_contiguous",
                                              "m_grouped_fp8_gemm_nn_contiguous", false, true);
constexpr Operation kMaskedOp{{"m_grouped_fp8_fp4_gemm_nt_masked", kMasked, 5, 10},
                              GroupMode::masked,
                              "m_grouped_fp8_gemm_nt_masked",
                              {.group_layout = 3, .expected_m = 4, .recipe = 5, .spec = 12}};
constexpr Operation kGatheredOp{{"m_grouped_fp8_fp4_gemm_nt_gathered", kGathered, 5, 7},
                                GroupMode::gathered,
                                nullptr,
                                {.group_layout = 3, .list = 4, .spec = 9}};

void read_activations(TensorReader& reader, PyObject* pair, const char* function,
                      op::Fp4GemmArguments& gemm) {
    if (pair != nullptr && !PyTuple_Check(pair) && !PyList_Check(pair)) {
        gemm.a = reader.read(pair, "a");
        DG_CHECK(
            gemm.a.format == Format::bf16, type,
            "{}: a is a tensor of {}, expected (fp8 tensor, fp32 scales) or a tensor of bf16; pass one of "
            "them",
            function, name_of(gemm.a.format));
        return;
    }
    const auto [values, scales] = scaled_pair(reader, pair, function, "a");
    gemm.a = reader.read(values, "a", false, "fp8_e4m3");
    gemm.scale_a = reader.read(scales, "scales of a", false, "fp32");
}

void read_weights(TensorReader& reader, PyObject* object, const char* function, op::Fp4WeightViews& views) {
    DG_CHECK(py::isinstance<Fp4Weights>(object), type,
             "{}: b is a {}, expected Fp4Weights: pack FP4 weights once, when they are loaded, by "
             "deep_gemm.pack_fp4_weights(codes, scales)",
             function, Py_TYPE(object)->tp_name);
    const auto& weights = *py::cast<const Fp4Weights*>(py::handle(object));
    views.blobs = reader.read(weights.blobs.ptr(), "blobs of the weights");
    views.row_scales = reader.read(weights.row_scales.ptr(), "row scales of the weights");
    if (!weights.runs.is_none()) views.runs = reader.read(weights.runs.ptr(), "runs of the weights");
    views.shape = weights.shape;
    views.form = weights.form;
}

void run(const Operation& operation, const CallArguments& arguments) {
    const Signature& signature = operation.signature;
    const Positions& at = operation.at;
    TensorReader reader(arguments[at.spec + 1], signature.function);
    op::Fp4GemmArguments gemm;
    gemm.groups = operation.groups;
    gemm.function = signature.function;
    for (size_t i = 0; i < signature.required; ++i)
        DG_CHECK(arguments[i], type, "{}: {} is None, expected a value; pass it", signature.function,
                 signature.names[i]);
    read_activations(reader, arguments[0], signature.function, gemm);
    if (operation.a_turned)
        for (TensorView* view : {&gemm.a, &gemm.scale_a}) turn(*view);
    read_weights(reader, arguments[1], signature.function, gemm.weights);
    gemm.d = reader.read(arguments[2], "d", true, "bf16 or fp32");
    if (at.c >= 0 && arguments[at.c]) gemm.c = reader.read(arguments[at.c], "c", false, "bf16 or fp32");
    if (at.recipe >= 0) {
        read_recipes(signature.function, arguments[at.recipe], arguments[at.recipe + 1],
                     arguments[at.recipe + 2], gemm);
    }
    if (at.group_layout >= 0)
        gemm.group_layout =
            reader.read(arguments[at.group_layout], signature.names[at.group_layout], false, "int32");
    if (at.list >= 0) {
        gemm.list = reader.read(arguments[at.list], "head", true, "int32");
        if (arguments[at.list + 1])
            gemm.a_rows = reader.read(arguments[at.list + 1], "a_rows", false, "int32");
        if (arguments[at.list + 2])
            gemm.d_rows = reader.read(arguments[at.list + 2], "d_rows", false, "int32");
    }
    if (at.psum >= 0 && flag_of(arguments[at.psum])) gemm.groups = GroupMode::psum;
    if (at.expected_m >= 0 && arguments[at.expected_m]) {
        const char* name = signature.names[at.expected_m];
        DG_CHECK(gemm.groups != GroupMode::contiguous, value,
                 "{}: got {}, expected it only with use_psum_layout=True; leave it out", signature.function,
                 name);
        gemm.expected_m = integer_of(arguments[at.expected_m], signature.function, name);
    }
    // Before `spec`, in every operation.
    gemm.fast_accumulation = flag_of(arguments[at.spec - 2]);
    gemm.bf16_products = flag_of(arguments[at.spec - 1]);
    if (arguments[at.spec]) {
        DG_CHECK(
            py::isinstance<Fp4GemmSpec>(arguments[at.spec]), type,
            "{}: spec is a {}, expected a deep_gemm.Fp4GemmSpec; deep_gemm.plan_fp4(problem)['spec'] is one",
            signature.function, Py_TYPE(arguments[at.spec])->tp_name);
        gemm.spec = py::cast<const Fp4GemmSpec*>(py::handle(arguments[at.spec]));
    }
    gemm.stream = reader.stream(arguments[at.spec + 2]);

    const op::Fp4GemmCall call = op::check_fp4_gemm(gemm);
    const py::gil_scoped_release no_gil;
    op::run(call);
}

// DeepGEMM's names take FP8 weights as well: a pair goes to the FP8 operation of the same signature.
PyObject* fp8_operation(const Operation& operation, PyObject* b) {
    if (operation.fp8 == nullptr || b == nullptr || !(PyTuple_Check(b) || PyList_Check(b))) return nullptr;
    py::object function = py::module_::import("deep_gemm._C").attr(operation.fp8);
    return function.release().ptr();
}

// Sets the error that was raised, of another operation, as one of the operation that was called.
void name_in_error(const Operation& operation) {
    py::error_already_set error;  // takes it
    const auto text = py::str(error.value()).cast<std::string>();
    const std::string other = std::string(operation.fp8) + ": ";
    if (text.starts_with(other))
        PyErr_SetString(
            error.type().ptr(),
            fmt::format("{}: {}", operation.signature.function, text.substr(other.size())).c_str());
    else
        error.restore();
}

template <const Operation& kOperation>
PyObject* entry(PyObject*, PyObject* const* arguments, Py_ssize_t count, PyObject* keywords) {
    try {
        CallArguments parsed(kOperation.signature, arguments, count, keywords);
        py::object packed;  // until the launch: memory of PyTorch then waits for the stream on its own
        if (kOperation.fp8 != nullptr && is_fp4_pair(parsed[1])) {
            packed = packed_for_one_call(kOperation.signature.function, parsed[1], kOperation.b_turned,
                                         parsed[kOperation.at.spec + 2] != nullptr);
            parsed.replace(1, packed.ptr());
        }
        if (PyObject* other = fp8_operation(kOperation, parsed[1])) {
            const auto function = py::reinterpret_steal<py::object>(other);
            PyObject* const done =
                PyObject_Vectorcall(function.ptr(), arguments, static_cast<size_t>(count), keywords);
            if (!done) name_in_error(kOperation);
            return done;
        }
        run(kOperation, parsed);
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
#define DG_DENSE_PARAMETERS(dims)                                                                            \
    "(a, b, d, c=None, recipe=None, recipe_a=None, recipe_b=None, compiled_dims='" dims                      \
    "', disable_ue8m0_cast=False, *, fast_accumulation=False, bf16_products=False, spec=None, device=None, " \
    "stream=None)\n--\n\n"
#define DG_CONTIGUOUS_PARAMETERS                                                                                 \
    "(a, b, d, grouped_layout, recipe=None, recipe_a=None, recipe_b=None, compiled_dims='nk', "                  \
    "disable_ue8m0_cast=False, use_psum_layout=False, ensure_zero_padding=True, "                                \
    "expected_m_for_psum_layout=None, *, fast_accumulation=False, bf16_products=False, spec=None, device=None, " \
    "stream=None)\n--\n\n"

PyMethodDef methods[] = {
    {"fp8_fp4_gemm_nt", DG_FAST_ENTRY(kDenseOp),
     "fp8_fp4_gemm_nt" DG_DENSE_PARAMETERS(
         "nk") "D = C + A B^T. a = (fp8 [m, k], fp32 scales [m, k / 128] "
               "or [m, k / 32]), b the Fp4Weights of one matrix [n, k], "
               "d and c bf16 or fp32 [m, n]; or a bf16 [m, k], which "
               "weights of all forms but nv_single take: as two E4M3 terms "
               "where d is bf16 and that is cheaper, off by less than d's "
               "rounding (docs/fp4.md), or as bf16, always with bf16_products. "
               "Scales with stride 0 along K, one for each row, have "
               "faster kernels. The products are exact; sums are "
               "promoted to fp32 every 128 along K. With "
               "fast_accumulation, one scale for each row and many rows "
               "they may stay in the tensor core, which keeps 14 bits, "
               "over all of K (docs/fp4.md): a row's bits then depend on "
               "the batch. With many tokens all FP4 operations but "
               "fused_moe use a workspace of the stream: CUDA graphs of "
               "such calls, captured on one stream, must not run at the "
               "same time (docs/fp4.md). b may also be DeepGEMM's pair "
               "(int8 codes [n, k / 2], scales [n, k / 32] as UE8M0 "
               "bytes, packed in int32 or fp32 powers of two): it is "
               "then packed anew in each call, which waits for the "
               "device and costs more than most products; and a pair of "
               "FP8 weights, which goes to fp8_gemm_nt."},
    {"fp8_fp4_gemm_nn", DG_FAST_ENTRY(kDenseNnOp),
     "fp8_fp4_gemm_nn" DG_DENSE_PARAMETERS("nk") "fp8_fp4_gemm_nt with b given as [k, n] where it is a "
                                                 "pair: of FP8 weights, as fp8_gemm_nn takes them, or "
                                                 "DeepGEMM's of FP4 codes [k / 2, n] and their scales, "
                                                 "which must be a view of [n, k / 2], as two neighbours "
                                                 "along K share a byte. Fp4Weights are their matrix [n, k] "
                                                 "whatever a form's letters say."},
    {"fp8_fp4_gemm_tn", DG_FAST_ENTRY(kDenseTnOp),
     "fp8_fp4_gemm_tn" DG_DENSE_PARAMETERS(
         "mn") "fp8_fp4_gemm_nn with a and its scales given as [k, m], which must be a view of [m, k]."},
    {"fp8_fp4_gemm_tt", DG_FAST_ENTRY(kDenseTtOp),
     "fp8_fp4_gemm_tt" DG_DENSE_PARAMETERS(
         "mn") "fp8_fp4_gemm_nt with a and its scales given as [k, m], which must be a view of [m, k]."},
    {"m_grouped_fp8_fp4_gemm_nt_contiguous", DG_FAST_ENTRY(kContiguousOp),
     "m_grouped_fp8_fp4_gemm_nt_contiguous" DG_CONTIGUOUS_PARAMETERS
     "Rows of a belong to experts of b as in m_grouped_fp8_gemm_nt_contiguous; rows of no expert become "
     "zeros."},
    {"m_grouped_fp8_fp4_gemm_nn_contiguous", DG_FAST_ENTRY(kContiguousNnOp),
     "m_grouped_fp8_fp4_gemm_nn_contiguous" DG_CONTIGUOUS_PARAMETERS
     "m_grouped_fp8_fp4_gemm_nt_contiguous with b given as [groups, k, n] where it is a pair; see "
     "fp8_fp4_gemm_nn."},
    {"m_grouped_fp8_fp4_gemm_nt_masked", DG_FAST_ENTRY(kMaskedOp),
     "m_grouped_fp8_fp4_gemm_nt_masked(a, b, d, masked_m, expected_m, recipe=None, recipe_a=None, "
     "recipe_b=None, "
     "compiled_dims='nk', disable_ue8m0_cast=False, *, fast_accumulation=False, bf16_products=False, spec=None, device=None, "
     "stream=None)\n--\n\n"
     "a [groups, max_m, k], b Fp4Weights of as many experts, d [groups, max_m, n]; masked_m is int32 "
     "[groups], the "
     "valid rows of each; rows of d beyond it are not written."},
    {"m_grouped_fp8_fp4_gemm_nt_gathered", DG_FAST_ENTRY(kGatheredOp),
     "m_grouped_fp8_fp4_gemm_nt_gathered(a, b, d, entries, head, a_rows=None, d_rows=None, *, "
     "fast_accumulation=False, bf16_products=False, spec=None, "
     "device=None, "
     "stream=None)\n--\n\n"
     "Tokens wherever they lie: entries is int32 [experts, 4] of (expert, first slot, number of slots, "
     "unused), head int32 [4] of (number of entries, 0, 0, unused), both written on the "
     "device (group_tokens makes them) at multiples of 16 bytes; a_rows and "
     "d_rows, int32 [slots], say which row of a [rows, k] a slot reads and which row of d [rows, n] it "
     "writes "
     "(the slot itself without them). The "
     "zeros of head are counters that each launch leaves at zero: one list serves one stream. Entries of an "
     "expert or a first slot that does not exist are skipped, and so are slots whose row of d does not (-1); "
     "a "
     "row that a does not have is read as its row 0."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void bind_fp4_op(py::module_& module) {
    if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace deep_gemm::python
