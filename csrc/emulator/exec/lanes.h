// Access to registers: 32 lanes of T. Values narrower than 32 bits live in 32-bit lanes: reads truncate,
// writes extend by the sign of T. `each_lane` computes only the lanes of the mask; the full mask is one
// vector loop.
#pragma once

#include "emulator/exec/state.h"

#include <type_traits>

namespace deep_gemm::emulator {

template <typename T>
inline T read_lane(const void* slot, u32 lane) {
    if constexpr (sizeof(T) >= 4) {
        return static_cast<const T*>(slot)[lane];
    } else {
        return static_cast<T>(static_cast<const u32*>(slot)[lane]);
    }
}

template <typename T>
inline void write_lane(void* slot, u32 lane, T value) {
    if constexpr (sizeof(T) >= 4) {
        static_cast<T*>(slot)[lane] = value;
    } else {
        static_cast<u32*>(slot)[lane] = static_cast<u32>(static_cast<i32>(value));
    }
}

template <typename T, typename F>
inline void each_lane(void* slot, u32 mask, F compute) {
    if (mask == kFullMask) {
#pragma GCC ivdep
        for (u32 lane = 0; lane < kLanes; ++lane) write_lane<T>(slot, lane, compute(lane));
    } else {
        for (u32 m = mask; m != 0; m &= m - 1) {
            const u32 lane = static_cast<u32>(std::countr_zero(m));
            write_lane<T>(slot, lane, compute(lane));
        }
    }
}

template <typename F>
inline void for_lanes(u32 mask, F body) {
    for (u32 m = mask; m != 0; m &= m - 1) body(static_cast<u32>(std::countr_zero(m)));
}

inline void* slot(Warp& w, u32 offset) {
    return w.registers + offset;
}
inline u32& predicate(Warp& w, u32 offset) {
    return *reinterpret_cast<u32*>(w.registers + offset);
}
inline void set_predicate(Warp& w, u32 offset, u32 mask, u32 bits) {
    u32& p = predicate(w, offset);
    p = (p & ~mask) | (bits & mask);
}
inline u32 first_lane(u32 mask) {
    return static_cast<u32>(std::countr_zero(mask));
}

}  // namespace deep_gemm::emulator
