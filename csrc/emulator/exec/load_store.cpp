// ld and st, scalar and vector, all spaces. Cache operators, eviction priorities and cache policies change
// nothing here: they are hints. The common cases (global, own shared memory) have their own loops.
#include "emulator/exec/families.h"
#include "emulator/exec/memory.h"

namespace deep_gemm::emulator {
namespace {

constexpr u32 kMaxVector = 8;

template <typename T>
inline void load_values(Warp& w, const Op& op, u32 lane, const std::byte* from) {
    T values[kMaxVector];
    std::memcpy(values, from, sizeof(T) * op.list.size());
    for (u32 e = 0; e < op.list.size(); ++e) {
        if (op.list[e] != kNoSlot) write_lane<T>(slot(w, op.list[e]), lane, values[e]);
    }
}

template <typename T>
inline void store_values(Warp& w, const Op& op, u32 lane, std::byte* to) {
    T values[kMaxVector];
    for (u32 e = 0; e < op.list.size(); ++e) values[e] = read_lane<T>(slot(w, op.list[e]), lane);
    std::memcpy(to, values, sizeof(T) * op.list.size());
}

template <typename T, MemorySpace space>
void load(Warp& w, const Op& op, u32 mask) {
    const u32 bytes = static_cast<u32>(sizeof(T) * op.list.size());
    for_lanes(mask, [&](u32 lane) {
        const u64 address = lane_address(w, op, op.a, lane);
        if constexpr (space == MemorySpace::global) {
            load_values<T>(w, op, lane, global_place(w, lane, address, bytes, bytes, false));
        } else if constexpr (space == MemorySpace::shared_cta) {
            const SharedPlace place = shared_place(w, lane, address, bytes, bytes, false);
            check_shared_read(w, lane, place, bytes, (op.flags & kStrong) != 0);
            load_values<T>(w, op, lane, place.data());
        } else {
            load_values<T>(
                w, op, lane,
                lane_place(w, space, lane, address, bytes, bytes, true, false, (op.flags & kStrong) != 0));
        }
    });
}

// One element per lane from global memory: the inner loop of memory-bound kernels. All lanes are checked
// against the last range at once; only a lane outside it takes the long way.
template <typename T>
void load_scalar_global(Warp& w, const Op& op, u32 mask) {
    void* d = slot(w, op.list[0]);
    u64 addresses[kLanes], low = ~u64{0}, high = 0, bits = 0;
    for_lanes(mask, [&](u32 lane) {
        const u64 address = lane_address(w, op, op.a, lane);
        addresses[lane] = address;
        low = address < low ? address : low;
        high = address > high ? address : high;
        bits |= address;
    });
    const bool inside =
        low >= w.last_segment.begin && high + sizeof(T) <= w.last_segment.end && high + sizeof(T) > high;
    if (inside && (bits & (sizeof(T) - 1)) == 0) [[likely]] {
        for_lanes(mask,
                  [&](u32 lane) { write_lane<T>(d, lane, *reinterpret_cast<const T*>(addresses[lane])); });
        return;
    }
    for_lanes(mask, [&](u32 lane) {
        write_lane<T>(
            d, lane,
            *reinterpret_cast<const T*>(global_place(w, lane, addresses[lane], sizeof(T), sizeof(T), false)));
    });
}

template <typename T, MemorySpace space>
void store(Warp& w, const Op& op, u32 mask) {
    const u32 bytes = static_cast<u32>(sizeof(T) * op.list.size());
    for_lanes(mask, [&](u32 lane) {
        const u64 address = lane_address(w, op, op.a, lane);
        if constexpr (space == MemorySpace::global) {
            store_values<T>(w, op, lane, global_place(w, lane, address, bytes, bytes, true));
        } else if constexpr (space == MemorySpace::shared_cta) {
            const SharedPlace place = shared_place(w, lane, address, bytes, bytes, false);
            note_shared_write(w, lane, place, bytes, (op.flags & kStrong) != 0);
            store_values<T>(w, op, lane, place.data());
        } else {
            store_values<T>(
                w, op, lane,
                lane_place(w, space, lane, address, bytes, bytes, false, true, (op.flags & kStrong) != 0));
        }
    });
    ++w.cta->cluster->progress;
}

// Kernel parameters: the same value for all lanes, at a fixed offset.
template <typename T>
void load_parameter(Warp& w, const Op& op, u32 mask) {
    const std::byte* from = w.cta->cluster->launch->params + op.immediate;
    for (u32 e = 0; e < op.list.size(); ++e) {
        T value;
        std::memcpy(&value, from + e * sizeof(T), sizeof(T));
        if (op.list[e] != kNoSlot) each_lane<T>(slot(w, op.list[e]), mask, [=](u32) { return value; });
    }
}

// A load whose destination registers are 64 bits wide while the data is not: the value is extended by its
// type's sign.
template <Handler narrow, bool is_signed>
void widened(Warp& w, const Op& op, u32 mask) {
    u64 before[kMaxVector][kLanes];
    for (u32 e = 0; e < op.list.size(); ++e) {
        if (op.list[e] != kNoSlot) std::memcpy(before[e], slot(w, op.list[e]), sizeof before[e]);
    }
    narrow(w, op, mask);  // leaves 32-bit lanes in the first half of the slot
    for (u32 e = 0; e < op.list.size(); ++e) {
        if (op.list[e] == kNoSlot) continue;
        u32 loaded[kLanes];
        std::memcpy(loaded, slot(w, op.list[e]), sizeof loaded);
        for_lanes(mask, [&](u32 lane) {
            before[e][lane] =
                is_signed ? static_cast<u64>(static_cast<i64>(static_cast<i32>(loaded[lane]))) : loaded[lane];
        });
        std::memcpy(slot(w, op.list[e]), before[e], sizeof before[e]);
    }
}

template <Handler narrow>
Handler pick_width(bool wide, bool is_signed) {
    if (!wide) return narrow;
    return is_signed ? widened<narrow, true> : widened<narrow, false>;
}

template <typename F>
Handler for_memory_type(Type type, F make) {
    switch (type) {
        case Type::f16:
        case Type::bf16: return make(u16{});
        case Type::f32:
        case Type::f16x2:
        case Type::bf16x2: return make(u32{});
        case Type::f64: return make(u64{});
        case Type::u8:
        case Type::b8: return make(u8{});
        case Type::s8: return make(i8{});
        case Type::u16:
        case Type::b16: return make(u16{});
        case Type::s16: return make(i16{});
        case Type::u32:
        case Type::b32:
        case Type::s32: return make(u32{});
        case Type::u64:
        case Type::b64:
        case Type::s64: return make(u64{});
        default: return nullptr;
    }
}

// Registers of a scalar or {vector} operand.
std::vector<u32> values_of(Decoder& x, const ptx::Operand& operand, u32 bytes, bool destination) {
    std::vector<u32> list;
    auto one = [&](const ptx::Operand& item) {
        list.push_back(destination ? x.reg_or_none(item) : x.source(item, bytes));
    };
    if (operand.kind == ptx::OperandKind::vector) {
        for (const auto& item : operand.items) one(item);
    } else {
        one(operand);
    }
    if (list.size() > kMaxVector) x.unsupported("more than eight elements");
    return list;
}

// Whether loaded values go to registers of 64 bits though the data is narrower. (A vector's registers are
// alike.)
struct Width {
    bool wide = false, is_signed = false;
};

Width width_of(Decoder& x, const ptx::Operand& destination, Type type) {
    const bool vector = destination.kind == ptx::OperandKind::vector;
    u32 bytes = 0;
    for (const ptx::Operand& item : vector ? destination.items : std::vector<ptx::Operand>{destination}) {
        if (x.reg_or_none(item) != kNoSlot) bytes = x.register_bytes(item);
    }
    return {.wide = bytes == 8 && type_bytes(type) < 8,
            .is_signed = type == Type::s8 || type == Type::s16 || type == Type::s32};
}

// .param: of the kernel (a fixed buffer), of a call (local memory), or a kernel parameter's address in a
// register.
bool decode_parameter(Decoder& x, const ptx::Operand& address, MemorySpace& space, Type type, Width width) {
    const ptx::Operand& base = address.items[0];
    if (base.kind != ptx::OperandKind::variable) {
        space = MemorySpace::global;
        return false;
    }
    const VariablePlace& place = x.place(base);
    if (place.space != ptx::Space::param) {
        space = MemorySpace::local;
        return false;
    }
    x.op.immediate = static_cast<i64>(place.value + base.value + address.value);
    if (static_cast<u64>(x.op.immediate) + type_bytes(type) * x.op.list.size() > x.program.param_bytes) {
        x.unsupported("a parameter access is out of bounds");
    }
    x.op.run = for_memory_type(
        type, [&](auto t) { return pick_width<load_parameter<decltype(t)>>(width.wide, width.is_signed); });
    return true;
}

template <typename T>
Handler load_handler(MemorySpace space, bool scalar, Width width) {
    const auto [wide, is_signed] = width;
    switch (space) {
        case MemorySpace::global:
            return scalar ? pick_width<load_scalar_global<T>>(wide, is_signed)
                          : pick_width<load<T, MemorySpace::global>>(wide, is_signed);
        case MemorySpace::shared_cta: return pick_width<load<T, MemorySpace::shared_cta>>(wide, is_signed);
        case MemorySpace::shared_cluster:
            return pick_width<load<T, MemorySpace::shared_cluster>>(wide, is_signed);
        case MemorySpace::local: return pick_width<load<T, MemorySpace::local>>(wide, is_signed);
        case MemorySpace::generic: return pick_width<load<T, MemorySpace::generic>>(wide, is_signed);
    }
    return nullptr;
}

template <typename T>
Handler store_handler(MemorySpace space) {
    switch (space) {
        case MemorySpace::global: return store<T, MemorySpace::global>;
        case MemorySpace::shared_cta: return store<T, MemorySpace::shared_cta>;
        case MemorySpace::shared_cluster: return store<T, MemorySpace::shared_cluster>;
        case MemorySpace::local: return store<T, MemorySpace::local>;
        case MemorySpace::generic: return store<T, MemorySpace::generic>;
    }
    return nullptr;
}

}  // namespace

void decode_load(Decoder& x) {
    const Type type = x.type();
    MemorySpace space = space_of(x);
    x.set_list(values_of(x, x.operand(0), type_bytes(type), true));
    const Width width = width_of(x, x.operand(0), type);
    if (x.has_prefix("param") && decode_parameter(x, x.operand(1), space, type, width)) return;
    note_communication(x, space);
    x.set_address(x.operand(1));
    const bool scalar = x.op.list.size() == 1 && x.op.list[0] != kNoSlot;
    x.op.run = for_memory_type(type, [&](auto t) { return load_handler<decltype(t)>(space, scalar, width); });
}

void decode_store(Decoder& x) {
    const Type type = x.type();
    MemorySpace space = space_of(x);
    if (x.has("async") || x.has("bulk")) x.unsupported("st.async and st.bulk");
    x.set_list(values_of(x, x.operand(1), type_bytes(type), false));
    if (x.has_prefix("param")) space = MemorySpace::local;
    note_communication(x, space);
    x.set_address(x.operand(0));
    x.op.run = for_memory_type(type, [&](auto t) { return store_handler<decltype(t)>(space); });
}

}  // namespace deep_gemm::emulator
