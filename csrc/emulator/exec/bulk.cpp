// cp.async.bulk and cp.async.bulk.tensor: the copy engine, in the asynchronous proxy. Loads land late, in any
// order, and complete transactions on an mbarrier; stores read shared memory late and write global memory
// later still. From issue to landing the bytes are marked in the shadow, so whoever touches them too early is
// a fault.
#include "emulator/async/tma.h"
#include "emulator/exec/copy.h"
#include "emulator/exec/events.h"
#include "emulator/exec/global_port.h"
#include "emulator/exec/mbarrier_access.h"

namespace deep_gemm::emulator {
namespace {

u64 address_value(Warp& w, const Address& address, u32 lane) {
    const void* base = slot(w, address.base);
    return (address.wide ? static_cast<const u64*>(base)[lane] : static_cast<const u32*>(base)[lane]) +
           static_cast<u64>(address.offset);
}

}  // namespace

u32 shared_value(Warp& w, const Address& address, u32 lane) {
    return static_cast<u32>(address_value(w, address, lane) & ~kWindowMask);
}

void check_landing(Warp& w, u32 lane, const SharedPlace& place, u32 bytes) {
    if (!place.cta->shadow.writable(place.offset, bytes))
        shared_state_fault(w, lane, place, bytes, "asynchronous write");
    if (place.cta->tensor_ops_in_flight != 0) check_tensor_reads(w, lane, place, bytes, "asynchronous write");
    place.cta->shadow.mark(kLanding, place.offset, bytes);
}

void check_alive(const Cta& cta) {
    DG_CHECK(
        !cta.exited, emulator,
        "the CTA of rank {} exited while an asynchronous copy to or from its shared memory was in flight",
        cta.rank);
}

namespace {

enum class Direction : u8 { load, store, reduce, shared_to_shared };

struct BulkForm {
    Direction direction = Direction::load;
    bool tensor = false, multicast = false;
    ReduceOp reduce = ReduceOp::add;
    Format format = Format::none;  // element type of a non-tensor reduction
    Address shared, global, barrier, shared_source;
    std::vector<u32> coords;  // slots
    u32 size = kNoSlot, mask = kNoSlot;
};

// What one lane asks the engine to move: a tile or a run of bytes.
struct Transfer {
    const BulkForm* form = nullptr;
    std::shared_ptr<const TensorMapView> map;
    std::vector<i32> coords;
    u64 address = 0;  // global, of a plain copy
    u32 bytes = 0;

    void load(Cta& to, u32 offset, GlobalMemory& global) const {
        if (map) {
            tma_load(*map, coords, global, to.smem, offset);
        } else {
            bulk_load(global, address, to.smem, offset, bytes);
        }
    }
    void store(std::span<const std::byte> from, u32 offset, GlobalMemory& global) const {
        const bool reduces = form->direction == Direction::reduce;
        if (map && reduces) {
            tma_reduce(*map, form->reduce, coords, global, from, offset);
        } else if (map) {
            tma_store(*map, coords, global, from, offset);
        } else if (reduces) {
            bulk_reduce(form->reduce, form->format, global, address, from, offset, bytes);
        } else {
            bulk_store(global, address, from, offset, bytes);
        }
    }
};

Transfer make_transfer(Warp& w, const BulkForm& form, u32 lane, u32 offset) {
    Transfer t;
    t.form = &form;
    const u64 address = address_value(w, form.global, lane);
    if (!form.tensor) {
        t.address = address;
        t.bytes = read_lane<u32>(slot(w, form.size), lane);
        check_bulk(address, offset, t.bytes);
        return t;
    }
    TensorMap map;
    std::memcpy(&map, global_place(w, lane, address, sizeof map, 64, false), sizeof map);
    t.map = std::make_shared<TensorMapView>(decode_tensor_map(map));
    for (u32 c : form.coords) t.coords.push_back(read_lane<i32>(slot(w, c), lane));
    check_tile(*t.map, t.coords, offset);
    // Loads may start before the tensor; a store that does stopped an H200 with an illegal instruction.
    if (form.direction != Direction::load) {
        for (size_t i = 0; i < t.coords.size(); ++i)
            if (t.coords[i] < 0)
                fault(w, static_cast<i32>(lane),
                      "a TMA store at coordinate {} of dimension {}: must not be negative", t.coords[i], i);
    }
    t.bytes = t.map->box_bytes();
    return t;
}

void issue_load(Warp& w, const BulkForm& form, u32 lane) {
    Cluster& c = *w.cta->cluster;
    const u32 to = shared_value(w, form.shared, lane), bar = shared_value(w, form.barrier, lane);
    if ((to >> kRankShift) != (bar >> kRankShift)) {
        fault(w, static_cast<i32>(lane),
              "the mbarrier (CTA rank {}) and the destination (CTA rank {}) must be in one CTA",
              bar >> kRankShift, to >> kRankShift);
    }
    const Transfer transfer = make_transfer(w, form, lane, to & kOffsetMask);
    u32 targets = 1u << (to >> kRankShift);
    if (form.multicast) targets = read_lane<u32>(slot(w, form.mask), lane) & 0xffff;
    if (targets == 0 || targets >> c.ctas.size() != 0) {
        fault(w, static_cast<i32>(lane), "CTA mask {:#x} of a cluster of {}", targets, c.ctas.size());
    }
    for_lanes(targets, [&](u32 rank) {
        const u32 base = rank << kRankShift;
        const SharedPlace place = shared_place(w, lane, base | (to & kOffsetMask), transfer.bytes, 1, true);
        const SharedPlace barrier = mbarrier_place(w, lane, base | (bar & kOffsetMask), true);
        check_mbarrier_fenced(w, lane, barrier);
        check_landing(w, lane, place, transfer.bytes);
        Cta* cta = place.cta;
        if (c.races)
            c.races->copy_in(w, lane, *cta, place.offset, transfer.bytes, *barrier.cta, barrier.offset);
        ++cta->async_writes;
        schedule(c, place_of(w, static_cast<i32>(lane)),
                 [cta, transfer, offset = place.offset, at = barrier.offset] {
                     check_alive(*cta);
                     GlobalPort global(cta->cluster->launch->ranges);
                     transfer.load(*cta, offset, global);
                     cta->shadow.async_write(offset, transfer.bytes);
                     --cta->async_writes;
                     update_mbarrier(*cta, at,
                                     [&](u64& word) { mbarrier::complete_tx(word, transfer.bytes); });
                 });
    });
}

// Shared to shared of another CTA of the cluster.
void issue_cluster_copy(Warp& w, const BulkForm& form, u32 lane) {
    const u32 bytes = read_lane<u32>(slot(w, form.size), lane);
    const SharedPlace from =
        shared_place(w, lane, shared_value(w, form.shared_source, lane), bytes, 16, false);
    const SharedPlace to = shared_place(w, lane, shared_value(w, form.shared, lane), bytes, 16, true);
    const SharedPlace barrier = mbarrier_place(w, lane, shared_value(w, form.barrier, lane), true);
    if (bytes % 16 != 0)
        fault(w, static_cast<i32>(lane), "a bulk copy of {} bytes: must be a multiple of 16", bytes);
    check_async_read(w, lane, from, bytes);
    check_landing(w, lane, to, bytes);
    from.cta->shadow.mark(kReading, from.offset, bytes);
    if (Races* races = w.cta->cluster->races.get()) {
        races->copy_out(w, lane, *from.cta, from.offset, bytes, *barrier.cta, barrier.offset);
        races->copy_in(w, lane, *to.cta, to.offset, bytes, *barrier.cta, barrier.offset);
    }
    ++to.cta->async_writes;
    schedule(*w.cta->cluster, place_of(w, static_cast<i32>(lane)), [from, to, bytes, barrier] {
        check_alive(*to.cta);
        std::memcpy(to.data(), from.data(), bytes);
        from.cta->shadow.unmark(kReading, from.offset, bytes);
        to.cta->shadow.async_write(to.offset, bytes);
        --to.cta->async_writes;
        update_mbarrier(*barrier.cta, barrier.offset, [&](u64& word) { mbarrier::complete_tx(word, bytes); });
    });
}

// Two events: the engine reads shared memory (wait_group.read), later global memory changes (wait_group).
void issue_store(Warp& w, const BulkForm& form, u32 lane) {
    const u32 from = shared_value(w, form.shared, lane);
    Transfer transfer = make_transfer(w, form, lane, from & kOffsetMask);
    const SharedPlace place = shared_place(w, lane, from, transfer.bytes, 1, false);
    check_async_read(w, lane, place, transfer.bytes);
    Cta* cta = place.cta;
    cta->shadow.mark(kReading, place.offset, transfer.bytes);
    const u64 group = w.bulk_groups.open();
    if (Races* races = cta->cluster->races.get())
        races->bulk_store(w, lane, *cta, place.offset, transfer.bytes, group);
    ++w.bulk_groups.at(group).reading;
    ++w.bulk_groups.at(group).writing;
    ++cta->async_reads;
    const Place where = place_of(w, static_cast<i32>(lane));
    schedule(*cta->cluster, where,
             [&w, cta, transfer = std::move(transfer), offset = place.offset, group, where] {
                 check_alive(*cta);
                 DG_CHECK(cta->shadow.readable(offset, transfer.bytes), emulator,
                          "the source of a bulk store changed while it was in flight");
                 // Swizzles see address bits up to 9: a copy that starts at a multiple of 1024 keeps them.
                 const u32 base = offset & ~1023u;
                 auto copy = std::make_shared<std::vector<std::byte>>(
                     cta->smem.begin() + base, cta->smem.begin() + offset + transfer.bytes);
                 cta->shadow.unmark(kReading, offset, transfer.bytes);
                 --cta->async_reads;
                 --w.bulk_groups.at(group).reading;
                 cta->cluster->wake();
                 schedule(*cta->cluster, where, [&w, cta, transfer, copy, at = offset - base, group] {
                     GlobalPort global(cta->cluster->launch->ranges);
                     transfer.store(*copy, at, global);
                     --w.bulk_groups.at(group).writing;
                     cta->cluster->wake();
                 });
             });
}

void bulk(Warp& w, const Op& op, u32 mask) {
    const BulkForm& form = *static_cast<const BulkForm*>(op.extra);
    for_lanes(mask, [&](u32 lane) {
        switch (form.direction) {
            case Direction::load: return issue_load(w, form, lane);
            case Direction::shared_to_shared: return issue_cluster_copy(w, form, lane);
            default: return issue_store(w, form, lane);
        }
    });
}

void commit(Warp& w, const Op&, u32) {
    w.bulk_groups.commit();
}

void wait_group(Warp& w, const Op& op, u32 mask) {
    const u64 pending = static_cast<u64>(op.immediate), open = w.bulk_groups.open();
    if (w.bulk_groups.done(pending, op.flags != 0)) {
        Races* races = w.cta->cluster->races.get();
        if (races != nullptr && open > pending) races->bulk_pass(w, mask, open - pending);
        return;
    }
    w.block(w.pc - 1, {WaitKind::bulk_group, w.pc - 1, mask, 0, static_cast<u32>(op.immediate)});
}

void nothing(Warp&, const Op&, u32) {}

ReduceOp reduction_of(const Decoder& x) {
    return x.has("min")   ? ReduceOp::min
           : x.has("max") ? ReduceOp::max
           : x.has("and") ? ReduceOp::bit_and
           : x.has("or")  ? ReduceOp::bit_or
           : x.has("xor") ? ReduceOp::bit_xor
                          : ReduceOp::add;
}

Format format_of(const Decoder& x) {
    switch (x.type()) {
        case Type::f32: return Format::fp32;
        case Type::bf16: return Format::bf16;
        case Type::s32: return Format::int32;
        default: x.unsupported("the element type of a bulk reduction");
    }
}

// [map, {x, y}] or [address]
void tensor_operand(Decoder& x, BulkForm& form, const ptx::Operand& operand) {
    form.global = x.address(operand, !form.tensor);
    if (!form.tensor) return;
    if (operand.items.size() != 2 || operand.items[1].kind != ptx::OperandKind::vector)
        x.unsupported("a tensor operand is [map, {coordinates}]");
    const size_t rank = operand.items[1].items.size();
    if (rank < 1 || rank > 5 || !x.has(fmt::format("{}d", rank))) x.unsupported("the number of coordinates");
    for (const auto& c : operand.items[1].items) form.coords.push_back(x.source(c, 4));
}

}  // namespace

void check_async_read(Warp& w, u32 lane, const SharedPlace& place, u32 bytes) {
    if (!place.cta->shadow.readable(place.offset, bytes))
        shared_state_fault(w, lane, place, bytes, "asynchronous read");
    const Cluster& c = *w.cta->cluster;
    const u32 writer = place.cta->shadow.unfenced_writer(place.offset, bytes, w.async_fence, [&](u32 id) {
        return c.ctas[id >> 6]->warps[id & 63].async_fence;
    });
    if (writer != SharedShadow::kNoWriter) {
        fault(w, static_cast<i32>(lane),
              "asynchronous read of {} bytes at shared offset {}: warp {} wrote there through the generic "
              "proxy and no "
              "fence.proxy.async followed",
              bytes, place.offset, writer & 63);
    }
}

void decode_bulk(Decoder& x) {
    if (x.has("commit_group")) {
        x.op.run = commit;
        return;
    }
    if (x.has("wait_group")) {
        x.op.immediate = static_cast<i64>(x.immediate(x.operand(0)));
        x.op.flags = x.has("read") ? 1 : 0;
        x.op.run = wait_group;
        return;
    }
    if (x.has("prefetch")) {
        x.op.run = nothing;
        return;
    }
    if (x.has_prefix("im2col") || x.has_prefix("tile::") || x.has_prefix("cta_group")) x.unsupported();
    BulkForm form;
    form.tensor = x.has("tensor");
    form.multicast = x.has("multicast::cluster");
    const bool reduce = x.modifier(0) == "reduce";
    const bool to_shared = !x.has("bulk_group");
    u32 i = 0;
    if (to_shared) {
        form.direction = x.has("global") ? Direction::load : Direction::shared_to_shared;
        form.shared = x.address(x.operand(i++));
        if (form.direction == Direction::load) {
            tensor_operand(x, form, x.operand(i++));
        } else {
            form.shared_source = x.address(x.operand(i++));
        }
        if (!form.tensor) form.size = x.source(x.operand(i++), 4);
        form.barrier = x.address(x.operand(i++));
        if (form.multicast) form.mask = x.source(x.operand(i++), 4);
    } else {
        form.direction = reduce ? Direction::reduce : Direction::store;
        tensor_operand(x, form, x.operand(i++));
        form.shared = x.address(x.operand(i++));
        if (!form.tensor) form.size = x.source(x.operand(i++), 4);
        if (reduce) {
            x.program.communicates = true;
            form.reduce = reduction_of(x);
            if (!form.tensor) form.format = format_of(x);
        }
    }
    x.make_extra(std::move(form));
    x.op.run = bulk;
}

void decode_copy(Decoder& x) {
    if (x.has("bulk")) return decode_bulk(x);
    if (!x.has("async")) x.unsupported();
    decode_copy_async(x);
}

}  // namespace deep_gemm::emulator
