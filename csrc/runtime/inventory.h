// Which tensors a model's checkpoint must hold, and how far a given one does. Names and shapes are those of
// the released files; a matrix may be stored in any of the formats below, with the scales that its format
// needs beside it.
#pragma once

#include "runtime/checkpoint.h"
#include "runtime/config.h"

#include <string>
#include <vector>

namespace deep_gemm::runtime {

enum class Role : u8 {
    plain,   // F32, BF16 or F16
    ids,     // I64 or I32
    linear,  // [n, k]: F32, BF16, F16, Q8_0; F8_E4M3 and `.scale` [n/128, k/128]; I8 (two E2M1, [n, k/2]) and
             // `.scale` [n, k/32] F8_E8M0
};

struct Expected {
    std::string name;  // without ".weight" for linear
    Role role = Role::plain;
    std::vector<u64> shape;
};

[[nodiscard]] std::vector<Expected> expected_tensors(const DeepseekV4Config& config);

// One sentence for each tensor that is missing, misshapen, wrongly stored or not expected; empty: all is
// there.
[[nodiscard]] std::vector<std::string> problems_of(const Checkpoint& checkpoint,
                                                   const std::vector<Expected>& expected);

// The same as Error(value) with the first dozen sentences.
void check_complete(const Checkpoint& checkpoint, const std::vector<Expected>& expected);

}  // namespace deep_gemm::runtime
