// What fills the streams of a token. The rules of op/model_ops.h hold.
#pragma once

#include "op/api.h"

namespace deep_gemm::op {

// Every stream of x becomes the token's row: tokens int32 [t], table real [v, d], x real [t, d] or [t, h, d].
// A token outside [0, v) gives zeros.
struct EmbedArguments {
    TensorView tokens, table, x;
    void* stream = nullptr;
};
void embed(const EmbedArguments& arguments);

// x[:, i] = value, or x[:, i] + value if `accumulate`: value real [t, d], x real [t, h, d].
struct ExpandArguments {
    TensorView value, x;
    bool accumulate = false;
    void* stream = nullptr;
};
void expand_streams(const ExpandArguments& arguments);

}  // namespace deep_gemm::op
