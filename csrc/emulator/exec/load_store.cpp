// ld and st, scalar and vector, all spaces. Cache operators, eviction priorities and cache policies change
// nothing here: they are hints. The common cases (global, own shared memory) have their own loops.
#include "emulator/exec/copy.h"
#include "emulator/exec/families.h"
#include "emulator/exec/memory.h"

namespace deep_gemm::emulator {
namespace {

constexpr u32 kMaxVector = 8;

template <typename T>
T value_at(const std::byte* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// All lanes of `lanes` get what is at `from`.
template <typename T>
inline void load_values(Warp& w, const Op& op, u32 lanes, const std::byte* from) {
    for (u32 e = 0; e < op.list.size(); ++e) {
        if (op.list[e] == kNoSlot) continue;
        const T value = value_at<T>(from + e * sizeof(T));
        each_lane<T>(slot(w, op.list[e]), lanes, [=](u32) { return value; });
    }
}

template <typename T>
inline void store_values(Warp& w, const Op& op, u32 lane, std::byte* to) {
    for (u32 e = 0; e < op.list.size(); ++e) {
        const T value = read_lane<T>(slot(w, op.list[e]), lane);
        std::memcpy(to + e * sizeof(T), &value, sizeof value);
    }
}

// Element after element, whose lanes lie together: the inner loop of memory-bound kernels. All lanes are
// checked against one range at once; only if one is outside they take the long way.
template <typename T>
void load_global(Warp& w, const Op& op, u32 mask) {
    u64 addresses[kLanes];
    lane_addresses(w, op, op.a, addresses);
    const u32 bytes = static_cast<u32>(sizeof(T) * op.list.size());
    if (!all_in_one_segment(w, addresses, mask, bytes, false)) [[unlikely]] {
        for_lanes(mask, [&](u32 lane) {
            load_values<T>(w, op, 1u << lane, global_place(w, lane, addresses[lane], bytes, bytes, false));
        });
        return;
    }
    for (u32 e = 0; e < op.list.size(); ++e) {
        if (op.list[e] == kNoSlot) continue;
        each_lane<T>(slot(w, op.list[e]), mask,
                     [&](u32 lane) { return reinterpret_cast<const T*>(addresses[lane])[e]; });
    }
}

template <typename T>
void store_global(Warp& w, const Op& op, u32 mask) {
    u64 addresses[kLanes];
    lane_addresses(w, op, op.a, addresses);
    const u32 bytes = static_cast<u32>(sizeof(T) * op.list.size());
    const bool inside = all_in_one_segment(w, addresses, mask, bytes, true);
    for_lanes(mask, [&](u32 lane) {
        std::byte* to = reinterpret_cast<std::byte*>(addresses[lane]);
        if (!inside) to = global_place(w, lane, addresses[lane], bytes, bytes, true);
        store_values<T>(w, op, lane, to);
    });
    ++w.cta->cluster->progress;
}

// Neighbours that read the same place are checked once: weights, tables and what a cluster shares.
template <typename T, bool cluster>
void load_shared(Warp& w, const Op& op, u32 mask) {
    u64 addresses[kLanes];
    lane_addresses(w, op, op.a, addresses);
    const u32 bytes = static_cast<u32>(sizeof(T) * op.list.size());
    for (u32 left = mask; left != 0;) {
        const u32 lane = first_lane(left);
        u32 lanes = 0;
        do {
            lanes |= left & (~left + 1);
            left &= left - 1;
        } while (left != 0 && addresses[first_lane(left)] == addresses[lane]);
        const SharedPlace place = shared_place(w, lane, addresses[lane], bytes, bytes, cluster);
        check_shared_read(w, lanes, place, bytes, (op.flags & kStrong) != 0);
        load_values<T>(w, op, lanes, place.data());
    }
}

// Local memory, and generic addresses.
template <typename T, MemorySpace space>
void load(Warp& w, const Op& op, u32 mask) {
    const u32 bytes = static_cast<u32>(sizeof(T) * op.list.size());
    for_lanes(mask, [&](u32 lane) {
        const u64 address = lane_address(w, op, op.a, lane);
        load_values<T>(
            w, op, 1u << lane,
            lane_place(w, space, lane, address, bytes, bytes, true, false, (op.flags & kStrong) != 0));
    });
}

template <typename T, MemorySpace space>
void store(Warp& w, const Op& op, u32 mask) {
    const u32 bytes = static_cast<u32>(sizeof(T) * op.list.size());
    for_lanes(mask, [&](u32 lane) {
        const u64 address = lane_address(w, op, op.a, lane);
        if constexpr (space == MemorySpace::shared_cta) {
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
    load_values<T>(w, op, mask, w.cta->cluster->launch->params + op.immediate);
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
        list.push_back(destination ? x.reg_or_none(item, bytes) : x.source(item, bytes));
    };
    if (operand.kind == ptx::OperandKind::vector) {
        for (const auto& item : operand.items) one(item);
    } else {
        one(operand);
    }
    const size_t count = x.has("v8") ? 8 : x.has("v4") ? 4 : x.has("v2") ? 2 : 1;
    if (list.size() != count) x.unsupported("the number of elements");
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
        if (x.reg_or_none(item, 0) != kNoSlot) bytes = x.register_bytes(item);
    }
    return {.wide = bytes == 8 && type_bytes(type) < 8,
            .is_signed = type == Type::s8 || type == Type::s16 || type == Type::s32};
}

// .param: of the kernel (a fixed buffer), of a call (local memory), or a kernel parameter's address in a
// register.
bool decode_parameter(Decoder& x, const ptx::Operand& address, MemorySpace& space, Type type, Width width) {
    if (address.kind != ptx::OperandKind::address) x.unsupported("operand is no [address]");
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
    const u64 bytes = type_bytes(type) * x.op.list.size();
    if (bytes > x.program.param_bytes || static_cast<u64>(x.op.immediate) > x.program.param_bytes - bytes) {
        x.unsupported("a parameter access is out of bounds");
    }
    x.op.run = for_memory_type(
        type, [&](auto t) { return pick_width<load_parameter<decltype(t)>>(width.wide, width.is_signed); });
    return true;
}

template <typename T>
Handler load_handler(MemorySpace space, Width width) {
    const auto [wide, is_signed] = width;
    switch (space) {
        case MemorySpace::global: return pick_width<load_global<T>>(wide, is_signed);
        case MemorySpace::shared_cta: return pick_width<load_shared<T, false>>(wide, is_signed);
        case MemorySpace::shared_cluster: return pick_width<load_shared<T, true>>(wide, is_signed);
        case MemorySpace::local: return pick_width<load<T, MemorySpace::local>>(wide, is_signed);
        case MemorySpace::generic: return pick_width<load<T, MemorySpace::generic>>(wide, is_signed);
    }
    return nullptr;
}

template <typename T>
Handler store_handler(MemorySpace space) {
    switch (space) {
        case MemorySpace::global: return store_global<T>;
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
    x.op.run = for_memory_type(type, [&](auto t) { return load_handler<decltype(t)>(space, width); });
}

void decode_store(Decoder& x) {
    if (x.has("async")) return decode_store_async(x);
    if (x.has("bulk")) x.unsupported("st.bulk");
    const Type type = x.type();
    MemorySpace space = space_of(x);
    x.set_list(values_of(x, x.operand(1), type_bytes(type), false));
    if (x.has_prefix("param")) space = MemorySpace::local;
    note_communication(x, space);
    x.set_address(x.operand(0));
    x.op.run = for_memory_type(type, [&](auto t) { return store_handler<decltype(t)>(space); });
}

}  // namespace deep_gemm::emulator
