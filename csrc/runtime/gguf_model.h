// GGUF files as the checkpoints that the architectures know: their names for tensors, their config.json.
#pragma once

#include "runtime/checkpoint.h"

#include <map>
#include <string>

namespace deep_gemm::runtime {

// Metadata under GGUF's keys, each value as JSON text; arrays that are not of numbers are left out.
using GgufMetadata = std::map<std::string, std::string, std::less<>>;

struct GgufFile {
    std::vector<Tensor> tensors;  // in any order, under GGUF's names
    GgufMetadata metadata;
};
[[nodiscard]] GgufFile read_gguf(const MappedFile& file);  // gguf.cpp

// Gives tensors the architecture's released names, a stack of experts as one tensor for each, and returns the
// text of its config.json. Tensors that it does not know keep their names. For an architecture without a
// table the text holds nothing but its name as model_type. Empty: a file without general.architecture.
[[nodiscard]] std::string translate_gguf(const GgufMetadata& metadata, std::vector<Tensor>& tensors,
                                         const std::string& source);

// What GGUF's general.architecture calls a model_type of config.json; "" where it has no such models.
[[nodiscard]] std::string_view gguf_architecture_of(std::string_view model_type);

}  // namespace deep_gemm::runtime
