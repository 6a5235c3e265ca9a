// Handler templates for lane-by-lane functions, and selection of a template by PTX type.
#pragma once

#include "emulator/exec/families.h"
#include "emulator/exec/lanes.h"

namespace deep_gemm::emulator {

template <typename T, typename F>
void unary(Warp& w, const Op& op, u32 mask) {
    void* d = slot(w, op.d);
    const void* a = slot(w, op.a);
    each_lane<T>(d, mask, [=](u32 lane) { return F::apply(read_lane<T>(a, lane)); });
}

template <typename T, typename F>
void binary(Warp& w, const Op& op, u32 mask) {
    void* d = slot(w, op.d);
    const void *a = slot(w, op.a), *b = slot(w, op.b);
    each_lane<T>(d, mask, [=](u32 lane) { return F::apply(read_lane<T>(a, lane), read_lane<T>(b, lane)); });
}

template <typename T, typename F>
void ternary(Warp& w, const Op& op, u32 mask) {
    void* d = slot(w, op.d);
    const void *a = slot(w, op.a), *b = slot(w, op.b), *c = slot(w, op.c);
    each_lane<T>(d, mask, [=](u32 lane) {
        return F::apply(read_lane<T>(a, lane), read_lane<T>(b, lane), read_lane<T>(c, lane));
    });
}

// make(T{}) -> Handler for the integer type; null when the type is none.
template <typename F>
Handler for_integer(Type type, F make) {
    switch (type) {
        case Type::u8:
        case Type::b8: return make(u8{});
        case Type::s8: return make(i8{});
        case Type::u16:
        case Type::b16: return make(u16{});
        case Type::s16: return make(i16{});
        case Type::u32:
        case Type::b32: return make(u32{});
        case Type::s32: return make(i32{});
        case Type::u64:
        case Type::b64: return make(u64{});
        case Type::s64: return make(i64{});
        default: return nullptr;
    }
}

template <typename F>
Handler for_float(Type type, F make) {
    if (type == Type::f32) return make(float{});
    if (type == Type::f64) return make(double{});
    return nullptr;
}

}  // namespace deep_gemm::emulator
