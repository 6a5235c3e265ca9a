#include "runtime/inventory.h"

#include "base/error.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <unordered_set>

namespace deep_gemm::runtime {

namespace {

bool is_one_of(Storage storage, std::initializer_list<Storage> allowed) {
    return std::find(allowed.begin(), allowed.end(), storage) != allowed.end();
}

class Checker {
  public:
    explicit Checker(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

    void check(const Expected& expected) {
        if (expected.role == Role::linear) return check_linear(expected);
        if (expected.role == Role::table) return check_table(expected);
        const Tensor* tensor = find(expected.name, expected.shape);
        if (!tensor) return;
        const bool right = expected.role == Role::ids
                               ? is_one_of(tensor->storage, {Storage::i64, Storage::i32})
                               : is_one_of(tensor->storage, {Storage::f32, Storage::bf16, Storage::f16});
        if (!right) wrong_storage(*tensor, expected.role == Role::ids ? "I64 or I32" : "F32, BF16 or F16");
    }

    void check_extra() {
        for (const Tensor& tensor : checkpoint_.tensors())
            if (!used_.contains(tensor.name))
                problems.push_back(fmt::format("extra: {} {} {}", tensor.name, row_of(tensor.storage).name,
                                               text_of(tensor.shape)));
    }

    std::vector<std::string> problems;

  private:
    const Tensor* find(const std::string& name, const std::vector<u64>& shape) {
        const Tensor* tensor = checkpoint_.find(name);
        if (!tensor) {
            problems.push_back(fmt::format("missing: {} {}", name, text_of(shape)));
            return nullptr;
        }
        used_.insert(tensor->name);
        if (tensor->shape == shape) return tensor;
        problems.push_back(
            fmt::format("shape: {} is {}, expected {}", name, text_of(tensor->shape), text_of(shape)));
        return nullptr;
    }
    void wrong_storage(const Tensor& tensor, const char* expected) {
        problems.push_back(
            fmt::format("dtype: {} is {}, expected {}", tensor.name, row_of(tensor.storage).name, expected));
    }
    const Tensor* find_scales(const std::string& name, const std::vector<u64>& shape) {
        const Tensor* scale = find_scale(checkpoint_, name);
        if (scale) return find(scale->name, shape);
        problems.push_back(
            fmt::format("missing: {0}.scale or {0}.weight_scale_inv {1}", name, text_of(shape)));
        return nullptr;
    }
    // What the kernels of matrix products take.
    void check_columns(const Tensor& tensor, u64 columns) {
        const bool narrow = is_one_of(tensor.storage, {Storage::f8_e4m3, Storage::i8, Storage::mxfp4_gguf});
        const u64 step = narrow ? 128 : 4;
        if (columns % step != 0)
            problems.push_back(fmt::format("columns: {} has {}, expected a multiple of {} in {}", tensor.name,
                                           columns, step, row_of(tensor.storage).name));
    }
    void check_table(const Expected& expected) {
        const Tensor* tensor = find(expected.name + ".weight", expected.shape);
        if (!tensor) return;
        check_columns(*tensor, expected.shape[1]);
        if (!is_one_of(tensor->storage, {Storage::f32, Storage::bf16, Storage::f16, Storage::q8_0}))
            wrong_storage(*tensor, "F32, BF16, F16 or Q8_0, because its rows are looked up");
    }
    // Matrices that lie in one buffer, or meet in one product.
    void check_like(const Tensor& tensor, const Expected& expected) {
        const Tensor* other = checkpoint_.find(expected.like + ".weight");
        if (!other) return;  // reported by itself
        const Tensor *scale = find_scale(checkpoint_, expected.name),
                     *other_scale = find_scale(checkpoint_, expected.like);
        if (tensor.storage != other->storage)
            wrong_storage(tensor, fmt::format("{} as {}", row_of(other->storage).name, other->name).c_str());
        else if (scale && other_scale && scale->storage != other_scale->storage)
            wrong_storage(
                *scale,
                fmt::format("{} as {}", row_of(other_scale->storage).name, other_scale->name).c_str());
    }
    void check_linear(const Expected& expected) {
        const u64 n = expected.shape[0], k = expected.shape[1];
        const std::string weight = expected.name + ".weight";
        const Tensor* stored = checkpoint_.find(weight);
        const bool fp4 = stored && stored->storage == Storage::i8;
        const Tensor* tensor = find(weight, fp4 ? std::vector<u64>{n, k / 2} : expected.shape);
        if (!tensor) {
            if (const Tensor* scale = find_scale(checkpoint_, expected.name)) used_.insert(scale->name);
            return;
        }
        check_columns(*tensor, k);
        if (!expected.like.empty()) check_like(*tensor, expected);
        if (fp4) {
            const Tensor* scales = find_scales(expected.name, {n, (k + 31) / 32});
            if (scales && scales->storage != Storage::f8_e8m0) wrong_storage(*scales, "F8_E8M0");
        } else if (tensor->storage == Storage::f8_e4m3) {
            const Tensor* scales = find_scales(expected.name, {(n + 127) / 128, (k + 127) / 128});
            if (scales &&
                !is_one_of(scales->storage, {Storage::f8_e8m0, Storage::f32, Storage::bf16, Storage::f16}))
                wrong_storage(*scales, "F8_E8M0, F32, BF16 or F16");
        } else if (!is_one_of(tensor->storage, {Storage::f32, Storage::bf16, Storage::f16, Storage::q8_0,
                                                Storage::mxfp4_gguf})) {
            wrong_storage(*tensor, "F8_E4M3, I8, BF16, F16, F32, Q8_0 or MXFP4");
        }
    }

    const Checkpoint& checkpoint_;
    std::unordered_set<std::string_view> used_;
};

}  // namespace

const Tensor* find_scale(const Checkpoint& checkpoint, const std::string& name) {
    const Tensor* scale = checkpoint.find(name + ".scale");
    return scale ? scale : checkpoint.find(name + ".weight_scale_inv");
}

std::vector<std::string> problems_of(const Checkpoint& checkpoint, const std::vector<Expected>& expected) {
    Checker checker(checkpoint);
    for (const Expected& entry : expected) checker.check(entry);
    checker.check_extra();
    return std::move(checker.problems);
}

void check_complete(const Checkpoint& checkpoint, const std::vector<Expected>& expected) {
    const std::vector<std::string> problems = problems_of(checkpoint, expected);
    const size_t shown = std::min<size_t>(problems.size(), 12);
    DG_CHECK(
        problems.empty(), value,
        "checkpoint: {} of its tensors are not as the configuration asks:\n  {}{}\nGet the checkpoint again, or "
        "correct its config.json; python -m deep_gemm inspect lists all of it",
        problems.size(), fmt::join(problems.begin(), problems.begin() + static_cast<i64>(shown), "\n  "),
        problems.size() > shown ? "\n  ..." : "");
}

}  // namespace deep_gemm::runtime
