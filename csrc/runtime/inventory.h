// Which tensors a model's checkpoint must hold, and how far a given one does. Names and shapes are those of
// the released files; a matrix may be stored in any of the formats below, with the scales that its format
// needs beside it.
#pragma once

#include "runtime/checkpoint.h"

#include <string>
#include <vector>

namespace deep_gemm::runtime {

enum class Role : u8 {
    plain,   // F32, BF16 or F16
    ids,     // I64 or I32
    table,   // [n, k] whose rows are looked up: F32, BF16, F16 or Q8_0
    linear,  // [n, k]: F32, BF16, F16, Q8_0, MXFP4; F8_E4M3 and scales [n/128, k/128]; I8 (two E2M1, [n,
             // k/2]) and scales [n, k/32] F8_E8M0
};

struct Expected {
    std::string name;  // without ".weight" for linear and table
    Role role = Role::plain;
    std::vector<u64> shape;
    std::string like = {};  // linear: a matrix that must be stored in the same format
};

// A list in the making.
struct Inventory {
    std::vector<Expected> entries;

    void plain(std::string name, std::vector<u64> shape) {
        entries.push_back({std::move(name), Role::plain, std::move(shape)});
    }
    void ids(std::string name, std::vector<u64> shape) {
        entries.push_back({std::move(name), Role::ids, std::move(shape)});
    }
    void table(std::string name, u64 n, u64 k) { entries.push_back({std::move(name), Role::table, {n, k}}); }
    void linear(std::string name, u64 n, u64 k, std::string like = {}) {
        entries.push_back({std::move(name), Role::linear, {n, k}, std::move(like)});
    }
};

// The scales of matrix `name`: `name`.scale (DeepSeek) or `name`.weight_scale_inv (Qwen), which multiplies
// just the same; nullptr where there are none.
[[nodiscard]] const Tensor* find_scale(const Checkpoint& checkpoint, const std::string& name);

// One sentence for each tensor that is missing, misshapen, wrongly stored or not expected; empty: all is
// there.
[[nodiscard]] std::vector<std::string> problems_of(const Checkpoint& checkpoint,
                                                   const std::vector<Expected>& expected);

// The same as Error(value) with the first dozen sentences.
void check_complete(const Checkpoint& checkpoint, const std::vector<Expected>& expected);

}  // namespace deep_gemm::runtime
