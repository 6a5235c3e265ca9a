// The type suffixes of PTX instructions.
#pragma once

#include <deep_gemm/spec/types.h>

#include <string_view>

namespace deep_gemm::emulator {

enum class Type : u8 {
    none,
    pred,
    u8,
    s8,
    b8,
    u16,
    s16,
    b16,
    u32,
    s32,
    b32,
    u64,
    s64,
    b64,
    b128,
    f16,
    f16x2,
    bf16,
    bf16x2,
    f32,
    f32x2,
    f64,
    tf32,
    e4m3,
    e5m2,
    e2m1,
    e2m3,
    e3m2,
    e4m3x2,
    e5m2x2,
    e2m1x2,
    e2m3x2,
    e3m2x2,
    ue8m0x2,
    u16x2,
    s16x2,
};

struct TypeInfo {
    std::string_view name;
    Type type;
    u32 bytes;
};

[[nodiscard]] Type parse_type(std::string_view name);  // Type::none when it is no type
[[nodiscard]] u32 type_bytes(Type type);               // 0 for pred and none

}  // namespace deep_gemm::emulator
