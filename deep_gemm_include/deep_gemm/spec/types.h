// Integer names and small arithmetic used on both sides. Compiled by g++ and by NVRTC (no headers there).
#pragma once

namespace deep_gemm {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i8 = signed char;
using i16 = short;
using i32 = int;
using i64 = long long;

constexpr u64 ceil_div(u64 value, u64 divisor) {
    return (value + divisor - 1) / divisor;
}
constexpr u32 ceil_div(u32 value, u32 divisor) {
    return (value + divisor - 1) / divisor;
}
constexpr u64 align_up(u64 value, u64 alignment) {
    return ceil_div(value, alignment) * alignment;
}
constexpr u32 align_up(u32 value, u32 alignment) {
    return ceil_div(value, alignment) * alignment;
}

// The shared memory plan of a kernel that has none.
struct NoSmem {
    u32 bytes = 0;
};

}  // namespace deep_gemm
