// atom and red. Lanes apply in lane order. A kernel that uses these on global memory runs on one host thread,
// so no host atomics are needed.
#include "emulator/exec/families.h"
#include "emulator/exec/memory.h"
#include "emulator/formats/formats.h"

namespace deep_gemm::emulator {
namespace {

enum class Atomic : u8 { add, min, max, inc, dec, bit_and, bit_or, bit_xor, exchange, compare_exchange };

template <typename T>
T combine(Atomic kind, T old, T value, T other) {
    if constexpr (std::is_floating_point_v<T>) {
        switch (kind) {
            case Atomic::add: return old + value;
            case Atomic::min: return old != old ? value : value != value || old < value ? old : value;
            case Atomic::max: return old != old ? value : value != value || old > value ? old : value;
            default: return value;
        }
    } else {
        using U = std::make_unsigned_t<T>;
        switch (kind) {
            case Atomic::add: return static_cast<T>(static_cast<U>(old) + static_cast<U>(value));
            case Atomic::min: return old < value ? old : value;
            case Atomic::max: return old > value ? old : value;
            case Atomic::inc: return old >= value ? T{0} : static_cast<T>(old + 1);
            case Atomic::dec: return old == 0 || old > value ? value : static_cast<T>(old - 1);
            case Atomic::bit_and: return old & value;
            case Atomic::bit_or: return old | value;
            case Atomic::bit_xor: return old ^ value;
            case Atomic::exchange: return value;
            case Atomic::compare_exchange: return old == value ? other : old;
        }
    }
    return value;
}

// Packed and single 16-bit floats.
struct F16x2 {
    u32 bits;
};
struct Bf16x2 {
    u32 bits;
};
struct F16 {
    u16 bits;
};
struct Bf16 {
    u16 bits;
};

u32 half_sum(u32 a, u32 b, const formats::FloatLayout& layout) {
    return formats::encode(
        static_cast<double>(formats::decode(a & 0xffff, layout)) + formats::decode(b & 0xffff, layout),
        layout);
}
template <typename T>
T half_combine(T old, T value) {
    constexpr bool kIsF16 = std::is_same_v<T, F16x2> || std::is_same_v<T, F16>;
    const formats::FloatLayout& layout = kIsF16 ? formats::kF16 : formats::kBf16;
    u32 sum = half_sum(old.bits, value.bits, layout);
    if constexpr (sizeof(T) == 4) sum |= half_sum(old.bits >> 16, value.bits >> 16, layout) << 16;
    return {static_cast<decltype(T::bits)>(sum)};
}

template <typename T>
T operand_lane(Warp& w, u32 offset, u32 lane) {
    if constexpr (std::is_class_v<T>) {
        return {read_lane<decltype(T::bits)>(slot(w, offset), lane)};
    } else {
        return read_lane<T>(slot(w, offset), lane);
    }
}

// op.b: value, op.c: second value of cas; op.list: further elements of a vector form; op.target: MemorySpace;
// op.flags low byte: Atomic.
template <typename T>
void atomic(Warp& w, const Op& op, u32 mask) {
    const Atomic kind = static_cast<Atomic>(op.flags & 0xff);
    const MemorySpace space = static_cast<MemorySpace>(op.target);
    const u32 count = 1 + static_cast<u32>(op.list.size());
    const u32 bytes = static_cast<u32>(sizeof(T)) * count;
    for_lanes(mask, [&](u32 lane) {
        std::byte* at =
            lane_place(w, space, lane, lane_address(w, op, op.a, lane), bytes, bytes, true, true, true);
        for (u32 e = 0; e < count; ++e) {
            T old;
            std::memcpy(&old, at + e * sizeof(T), sizeof(T));
            const T value = operand_lane<T>(w, e == 0 ? op.b : op.list[e - 1], lane);
            T result;
            if constexpr (std::is_class_v<T>) {
                result = half_combine(old, value);
            } else {
                result = combine(kind, old, value, op.c == kNoSlot ? T{} : operand_lane<T>(w, op.c, lane));
            }
            std::memcpy(at + e * sizeof(T), &result, sizeof(T));
            if (op.d == kNoSlot) continue;
            if constexpr (std::is_class_v<T>) {
                write_lane<decltype(T::bits)>(slot(w, op.d), lane, old.bits);
            } else {
                write_lane<T>(slot(w, op.d), lane, old);
            }
        }
    });
    ++w.cta->cluster->progress;
}

Handler handler_of(Type type, Atomic kind) {
    const bool sum_only = kind == Atomic::add;
    switch (type) {
        case Type::u32:
        case Type::b32: return atomic<u32>;
        case Type::s32: return atomic<i32>;
        case Type::u64:
        case Type::b64: return atomic<u64>;
        case Type::s64: return atomic<i64>;
        case Type::b16:
        case Type::u16: return atomic<u16>;
        case Type::f32: return atomic<float>;
        case Type::f64: return atomic<double>;
        case Type::f16x2: return sum_only ? atomic<F16x2> : nullptr;
        case Type::bf16x2: return sum_only ? atomic<Bf16x2> : nullptr;
        case Type::f16: return sum_only ? atomic<F16> : nullptr;
        case Type::bf16: return sum_only ? atomic<Bf16> : nullptr;
        default: return nullptr;
    }
}

Atomic kind_of(const Decoder& x) {
    constexpr std::pair<std::string_view, Atomic> kNames[] = {
        {"add", Atomic::add},       {"min", Atomic::min},
        {"max", Atomic::max},       {"inc", Atomic::inc},
        {"dec", Atomic::dec},       {"and", Atomic::bit_and},
        {"or", Atomic::bit_or},     {"xor", Atomic::bit_xor},
        {"exch", Atomic::exchange}, {"cas", Atomic::compare_exchange}};
    for (const auto& [name, kind] : kNames) {
        if (x.has(name)) return kind;
    }
    x.unsupported("the operation of an atomic");
}

}  // namespace

void decode_atomic(Decoder& x) {
    const Type type = x.type();
    const Atomic kind = kind_of(x);
    const MemorySpace space = space_of(x);
    const u32 bytes = type_bytes(type);
    const bool returns = x.in->root == "atom";
    u32 i = 0;
    if (returns) x.op.d = x.reg_or_none(x.operand(i++), bytes);
    x.set_address(x.operand(i++));
    const ptx::Operand& value = x.operand(i++);
    if (value.kind == ptx::OperandKind::vector) {
        if (returns || value.items.empty()) x.unsupported("vector atom");
        x.op.b = x.source(value.items[0], bytes);
        std::vector<u32> rest;
        for (size_t e = 1; e < value.items.size(); ++e) rest.push_back(x.source(value.items[e], bytes));
        x.set_list(std::move(rest));
    } else {
        x.op.b = x.source(value, bytes);
    }
    if (kind == Atomic::compare_exchange) x.op.c = x.source(x.operand(i++), bytes);
    x.op.flags |= static_cast<u32>(kind);
    x.op.target = static_cast<u32>(space);
    x.op.run = handler_of(type, kind);
    note_communication(x, space);
}

}  // namespace deep_gemm::emulator
