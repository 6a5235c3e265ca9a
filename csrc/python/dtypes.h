// Element types of DLPack, numpy (ml_dtypes) and PyTorch as Formats; Format::none for those that no operation
// takes.
#pragma once

#include "python/dlpack.h"

#include <deep_gemm/spec/format.h>

#include <string_view>

namespace deep_gemm::python {

[[nodiscard]] inline Format format_of(dlpack::DataType type) {
    if (type.lanes != 1) return Format::none;
    switch (type.code) {
        case dlpack::kFloat:
            return type.bits == 32 ? Format::fp32 : type.bits == 16 ? Format::fp16 : Format::none;
        case dlpack::kInt:
            return type.bits == 32 ? Format::int32 : type.bits == 8 ? Format::int8 : Format::none;
        case dlpack::kBfloat: return type.bits == 16 ? Format::bf16 : Format::none;
        case dlpack::kFloat8E4m3fn: return type.bits == 8 ? Format::fp8_e4m3 : Format::none;
        case dlpack::kFloat8E5m2: return type.bits == 8 ? Format::fp8_e5m2 : Format::none;
        case dlpack::kFloat8E8m0fnu: return type.bits == 8 ? Format::fp8_ue8m0 : Format::none;
        case dlpack::kFloat4E2m1fn: return type.bits == 4 ? Format::fp4_e2m1 : Format::none;
        default: return Format::none;
    }
}

// numpy's and ml_dtypes' names, and PyTorch's without its "torch." prefix.
[[nodiscard]] inline Format format_of_dtype_name(std::string_view name) {
    struct Row {
        std::string_view name;
        Format format;
    };
    constexpr Row kRows[] = {
        {"float32", Format::fp32},
        {"float16", Format::fp16},
        {"bfloat16", Format::bf16},
        {"float8_e4m3fn", Format::fp8_e4m3},
        {"float8_e5m2", Format::fp8_e5m2},
        {"float8_e8m0fnu", Format::fp8_ue8m0},
        {"int8", Format::int8},
        {"int32", Format::int32},
    };
    for (const Row& row : kRows)
        if (row.name == name) return row.format;
    return Format::none;
}

}  // namespace deep_gemm::python
