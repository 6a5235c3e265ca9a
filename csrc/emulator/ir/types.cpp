// One table of type names.
#include "emulator/ir/types.h"

namespace deep_gemm::emulator {
namespace {

constexpr TypeInfo kTypes[] = {
    {"pred", Type::pred, 0},     {"u8", Type::u8, 1},         {"s8", Type::s8, 1},
    {"b8", Type::b8, 1},         {"u16", Type::u16, 2},       {"s16", Type::s16, 2},
    {"b16", Type::b16, 2},       {"u32", Type::u32, 4},       {"s32", Type::s32, 4},
    {"b32", Type::b32, 4},       {"u64", Type::u64, 8},       {"s64", Type::s64, 8},
    {"b64", Type::b64, 8},       {"b128", Type::b128, 16},    {"f16", Type::f16, 2},
    {"f16x2", Type::f16x2, 4},   {"bf16", Type::bf16, 2},     {"bf16x2", Type::bf16x2, 4},
    {"f32", Type::f32, 4},       {"f32x2", Type::f32x2, 8},   {"f64", Type::f64, 8},
    {"tf32", Type::tf32, 4},     {"e4m3", Type::e4m3, 1},     {"e5m2", Type::e5m2, 1},
    {"e2m1", Type::e2m1, 1},     {"e2m3", Type::e2m3, 1},     {"e3m2", Type::e3m2, 1},
    {"e4m3x2", Type::e4m3x2, 2}, {"e5m2x2", Type::e5m2x2, 2}, {"e2m1x2", Type::e2m1x2, 1},
    {"e2m3x2", Type::e2m3x2, 2}, {"e3m2x2", Type::e3m2x2, 2}, {"ue8m0x2", Type::ue8m0x2, 2},
    {"u16x2", Type::u16x2, 4},   {"s16x2", Type::s16x2, 4},
};

}  // namespace

Type parse_type(std::string_view name) {
    for (const TypeInfo& info : kTypes) {
        if (info.name == name) return info.type;
    }
    return Type::none;
}

u32 type_bytes(Type type) {
    for (const TypeInfo& info : kTypes) {
        if (info.type == type) return info.bytes;
    }
    return 0;
}

}  // namespace deep_gemm::emulator
