// mov (scalars, predicates, packing and unpacking of vectors, clocks) and cvta.
#include "emulator/exec/families.h"
#include "emulator/exec/fault.h"
#include "emulator/exec/lanes.h"

namespace deep_gemm::emulator {
namespace {

template <typename T>
void move(Warp& w, const Op& op, u32 mask) {
    T* d = static_cast<T*>(slot(w, op.d));
    const T* a = static_cast<const T*>(slot(w, op.a));
    each_lane<T>(d, mask, [=](u32 lane) { return a[lane]; });
}

void move_predicate(Warp& w, const Op& op, u32 mask) {
    set_predicate(w, op.d, mask, predicate(w, op.a));
}
void move_predicate_immediate(Warp& w, const Op& op, u32 mask) {
    set_predicate(w, op.d, mask, op.immediate != 0 ? kFullMask : 0);
}

// op.immediate: bits per element.
template <typename T>
void pack(Warp& w, const Op& op, u32 mask) {
    const u32 bits = static_cast<u32>(op.immediate);
    const T keep = static_cast<T>((u64{1} << bits) - 1);
    each_lane<T>(slot(w, op.d), mask, [&](u32 lane) {
        T value = 0;
        for (u32 e = 0; e < op.list.size(); ++e) {
            value |= (static_cast<T>(read_lane<u32>(slot(w, op.list[e]), lane)) & keep) << (e * bits);
        }
        return value;
    });
}

template <typename T>
void unpack(Warp& w, const Op& op, u32 mask) {
    const u32 bits = static_cast<u32>(op.immediate);
    const T keep = static_cast<T>((u64{1} << bits) - 1);
    T values[kLanes];
    std::memcpy(values, slot(w, op.a), sizeof values);
    for (u32 e = 0; e < op.list.size(); ++e) {
        if (op.list[e] == kNoSlot) continue;
        each_lane<u32>(slot(w, op.list[e]), mask,
                       [&](u32 lane) { return static_cast<u32>(values[lane] >> (e * bits) & keep); });
    }
}

// Time is the number of warp instructions the cluster has executed: monotonic and deterministic.
template <typename T>
void read_clock(Warp& w, const Op& op, u32 mask) {
    const T now = static_cast<T>(w.cta->cluster->now);
    each_lane<T>(slot(w, op.d), mask, [=](u32) { return now; });
}

template <bool to_generic>
void convert_window(Warp& w, const Op& op, u32 mask) {
    const u64* a = static_cast<const u64*>(slot(w, op.a));
    const u64 window = static_cast<u64>(op.immediate);
    each_lane<u64>(slot(w, op.d), mask, [=](u32 lane) {
        return to_generic ? (a[lane] & ~kWindowMask) | window : a[lane] & ~kWindowMask;
    });
}

void decode_vector_move(Decoder& x, u32 bytes) {
    const bool packs = x.operand(1).kind == ptx::OperandKind::vector;
    const auto& items = x.operand(packs ? 1 : 0).items;
    if (items.size() != 2 && items.size() != 4) x.unsupported("the number of elements");
    std::vector<u32> list;
    for (const auto& item : items) list.push_back(packs ? x.source(item, 4) : x.reg_or_none(item, 4));
    x.set_list(std::move(list));
    x.op.immediate = bytes * 8 / static_cast<u32>(items.size());
    if (x.op.immediate > 32) x.unsupported("elements wider than 32 bits");
    if (packs) {
        x.op.d = x.reg(x.operand(0), bytes);
        x.op.run = bytes == 8 ? pack<u64> : pack<u32>;
    } else {
        x.op.a = x.source(x.operand(1), bytes);
        x.op.run = bytes == 8 ? unpack<u64> : unpack<u32>;
    }
}

}  // namespace

void decode_move(Decoder& x) {
    if (x.in->root == "cvta") {
        const u64 window = x.has("shared") || x.has("shared::cta") || x.has("shared::cluster") ? kSharedWindow
                           : x.has("local")                                                    ? kLocalWindow
                                                                                               : 0;
        x.destination_and_sources(8);
        x.op.immediate = static_cast<i64>(window);
        x.op.run = window == 0 ? move<u64> : x.has("to") ? convert_window<false> : convert_window<true>;
        return;
    }
    const Type type = x.type();
    const ptx::Operand& from = x.operand(1);
    if (type == Type::pred) {
        x.op.d = x.predicate(x.operand(0));
        if (x.is_immediate(from)) {
            x.op.immediate = static_cast<i64>(from.value);
            x.op.run = move_predicate_immediate;
        } else {
            x.op.a = x.predicate(from);
            x.op.run = move_predicate;
        }
        return;
    }
    const u32 bytes = type_bytes(type);
    if (bytes == 0 || bytes > 8) x.unsupported("the type of mov");
    if (from.kind == ptx::OperandKind::vector || x.operand(0).kind == ptx::OperandKind::vector) {
        decode_vector_move(x, bytes);
        return;
    }
    const bool is_clock = from.kind == ptx::OperandKind::special &&
                          (from.text.starts_with("%clock") || from.text.starts_with("%globaltimer"));
    if (is_clock) {
        x.op.d = x.reg(x.operand(0), bytes);
        x.op.run = bytes == 8 ? read_clock<u64> : read_clock<u32>;
        return;
    }
    x.destination_and_sources(bytes);
    x.op.run = bytes == 8 ? move<u64> : move<u32>;
}

}  // namespace deep_gemm::emulator
