// A checkpoint that was never trained, for measuring: every tensor that a config.json asks for, in the
// formats that its architecture is released in, with random values whose scales keep activations near one.
// Tensors share a few megabytes of random bytes, repeated, so that a model of any size is there within
// seconds.
#pragma once

#include "runtime/checkpoint.h"

namespace deep_gemm::runtime {

// `config` is the text of a config.json. Error(value) as parse_config().
[[nodiscard]] Checkpoint synthetic_checkpoint(const std::string& config);

}  // namespace deep_gemm::runtime
