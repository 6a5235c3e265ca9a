// mbarrier.*. A failing try_wait or test_wait puts the lane group to sleep until something happens; it then
// goes on with the false result, as after the hardware's time limit.
#include "emulator/exec/mbarrier_access.h"

#include "emulator/exec/families.h"

namespace deep_gemm::emulator {
namespace {

constexpr u32 kBytes = 8;
constexpr u32 kRemote = 1, kParity = 2, kExpect = 4, kDrop = 8, kClusterScope = 16, kRelaxed = 32;

void initialise(Warp& w, const Op& op, u32 mask) {
    for_lanes(mask, [&](u32 lane) {
        const SharedPlace place =
            shared_place(w, lane, lane_address(w, op, op.a, lane), kBytes, kBytes, false);
        SharedShadow& shadow = place.cta->shadow;
        if (shadow.any(kBarrier, place.offset, kBytes)) {
            fault(w, static_cast<i32>(lane),
                  "initialises the mbarrier at shared offset {} a second time without mbarrier.inval",
                  place.offset);
        }
        shadow.generic_write(place.offset, kBytes, kWritten | kBarrier, writer_id(w),
                             w.cta->cluster->fence_ticks);
        place.cta->barrier_inits[place.offset] = w.cta->cluster->barrier_generation;
        if (Races* races = w.cta->cluster->races.get())
            races->initialise_mbarrier(w, lane, *place.cta, place.offset);
        const u32 count = read_lane<u32>(slot(w, op.b), lane);
        update_mbarrier(*place.cta, place.offset, [&](u64& word) {
            word = 0;
            mbarrier::init(word, count);
        });
    });
}

void invalidate(Warp& w, const Op& op, u32 mask) {
    for_lanes(mask, [&](u32 lane) {
        const SharedPlace place = mbarrier_place(w, lane, lane_address(w, op, op.a, lane), false);
        update_mbarrier(*place.cta, place.offset, [](u64& word) { mbarrier::invalidate(word); });
        place.cta->shadow.forget(place.offset, kBytes);
    });
}

// op.b: bytes of expect_tx; op.c: arrival count.
void arrive(Warp& w, const Op& op, u32 mask) {
    Races* races = w.cta->cluster->races.get();
    for_lanes(mask, [&](u32 lane) {
        const SharedPlace place =
            mbarrier_place(w, lane, lane_address(w, op, op.a, lane), (op.flags & kRemote) != 0);
        const u32 count = op.c == kNoSlot ? 1 : read_lane<u32>(slot(w, op.c), lane);
        u64 token = 0;
        if (races != nullptr) {
            races->mbarrier_arrive(w, lane, *place.cta, place.offset, (op.flags & kClusterScope) != 0,
                                   (op.flags & kRelaxed) != 0);
        }
        update_mbarrier(*place.cta, place.offset, [&](u64& word) {
            if (op.flags & kExpect) {
                token = mbarrier::arrive_expect_tx(word, read_lane<u32>(slot(w, op.b), lane), count);
            } else {
                token = op.flags & kDrop ? mbarrier::arrive_drop(word, count) : mbarrier::arrive(word, count);
            }
        });
        if (op.d != kNoSlot) static_cast<u64*>(slot(w, op.d))[lane] = token;
    });
    if (races != nullptr) races->told(w);
}

template <bool complete>
void transactions(Warp& w, const Op& op, u32 mask) {
    for_lanes(mask, [&](u32 lane) {
        const SharedPlace place =
            mbarrier_place(w, lane, lane_address(w, op, op.a, lane), (op.flags & kRemote) != 0);
        const u32 bytes = read_lane<u32>(slot(w, op.b), lane);
        update_mbarrier(*place.cta, place.offset, [&](u64& word) {
            complete ? mbarrier::complete_tx(word, bytes) : mbarrier::expect_tx(word, bytes);
        });
    });
}

// Lanes that saw the same mbarrier's phase complete.
struct Passed {
    u32 lanes = 0;
    SharedPlace place;
    bool add(u32 lane, const SharedPlace& at) {
        if (lanes != 0 && (at.cta != place.cta || at.offset != place.offset)) return false;
        place = at;
        lanes |= 1u << lane;
        return true;
    }
    void restart(u32 lane, const SharedPlace& at) { lanes = 1u << lane, place = at; }
};

void pass(Warp& w, const Op& op, const Passed& passed) {
    Races* races = w.cta->cluster->races.get();
    if (races == nullptr || passed.lanes == 0) return;
    races->mbarrier_pass(w, passed.lanes, *passed.place.cta, passed.place.offset,
                         (op.flags & kClusterScope) != 0, (op.flags & kRelaxed) != 0);
}

void wait(Warp& w, const Op& op, u32 mask) {
    u32 done = 0;
    Passed passed;
    Wait why{WaitKind::mbarrier, w.pc - 1, mask, 0, 0};
    for_lanes(mask, [&](u32 lane) {
        const SharedPlace place = mbarrier_place(w, lane, lane_address(w, op, op.a, lane), false);
        u64 word;
        std::memcpy(&word, place.data(), kBytes);
        bool complete = false;
        if (op.flags & kParity) {
            const u32 parity = read_lane<u32>(slot(w, op.b), lane);
            complete = mbarrier::test_parity(word, parity & 1);
            why.value = parity & 1;
        } else {
            complete = mbarrier::test(word, static_cast<u64*>(slot(w, op.b))[lane]);
        }
        done |= static_cast<u32>(complete) << lane;
        if (complete && !passed.add(lane, place)) pass(w, op, passed), passed.restart(lane, place);
        why.address = place.offset;
    });
    pass(w, op, passed);
    set_predicate(w, op.d, mask, done);
    if (done == 0) w.block(w.pc, why);
}

void pending_count(Warp& w, const Op& op, u32 mask) {
    const u64* a = static_cast<u64*>(slot(w, op.a));
    for_lanes(mask,
              [&](u32 lane) { static_cast<u32*>(slot(w, op.d))[lane] = mbarrier::pending_count(a[lane]); });
}

u32 order_flags(const Decoder& x) {
    return (x.has("cluster") ? kClusterScope : 0) | (x.has("relaxed") ? kRelaxed : 0);
}

void decode_arrive(Decoder& x) {
    u32 i = 0;
    if (x.operand(0).kind != ptx::OperandKind::address) x.op.d = x.reg_or_none(x.operand(i++), 8);
    x.set_address(x.operand(i++));
    if (x.has("expect_tx")) {
        x.op.b = x.source(x.operand(i++), 4);
        x.op.flags |= kExpect;
    } else if (i < x.num_operands()) {
        x.op.c = x.source(x.operand(i++), 4);
    }
    x.op.flags |= (x.has("shared::cluster") ? kRemote : 0) | order_flags(x);
    x.op.run = arrive;
}

}  // namespace

SharedPlace mbarrier_place(Warp& w, u32 lane, u64 address, bool cluster) {
    if ((address & kWindowMask) == kSharedWindow) address &= ~kWindowMask;
    const SharedPlace place = shared_place(w, lane, address, kBytes, kBytes, cluster);
    if (!place.cta->shadow.all(kBarrier, kBarrier, place.offset, kBytes)) {
        fault(w, static_cast<i32>(lane), "shared offset {} of CTA rank {} holds no initialised mbarrier",
              place.offset, place.cta->rank);
    }
    if (place.cta != w.cta && place.cta->barrier_inits[place.offset] == w.cta->cluster->barrier_generation) {
        fault(w, static_cast<i32>(lane),
              "uses the mbarrier at shared offset {} of CTA rank {} with no cluster barrier since its "
              "initialisation",
              place.offset, place.cta->rank);
    }
    if (Races* races = w.cta->cluster->races.get()) races->use_mbarrier(w, lane, *place.cta, place.offset);
    return place;
}

void check_mbarrier_fenced(Warp& w, u32 lane, const SharedPlace& place) {
    const Cluster& c = *w.cta->cluster;
    const u32 writer = place.cta->shadow.unfenced_writer(place.offset, kBytes, w.init_fence, [&](u32 id) {
        return c.ctas[id >> 6]->warps[id & 63].init_fence;
    });
    if (writer != SharedShadow::kNoWriter) {
        fault(w, static_cast<i32>(lane),
              "the mbarrier at shared offset {} was initialised by warp {} without fence.mbarrier_init or "
              "fence.proxy.async since; "
              "the copy engine may not see it",
              place.offset, writer & 63);
    }
}

void decode_mbarrier(Decoder& x) {
    const std::string_view kind = x.modifier(0);
    if (kind == "init") {
        x.set_address(x.operand(0));
        x.op.b = x.source(x.operand(1), 4);
        x.op.run = initialise;
    } else if (kind == "inval") {
        x.set_address(x.operand(0));
        x.op.run = invalidate;
    } else if (kind == "arrive") {
        decode_arrive(x);
    } else if (kind == "arrive_drop") {
        decode_arrive(x);
        if (x.has("expect_tx")) x.unsupported();
        x.op.flags |= kDrop;
    } else if (kind == "expect_tx" || kind == "complete_tx") {
        x.set_address(x.operand(0));
        x.op.b = x.source(x.operand(1), 4);
        x.op.flags |= x.has("shared::cluster") ? kRemote : 0;
        x.op.run = kind == "expect_tx" ? transactions<false> : transactions<true>;
    } else if (kind == "test_wait" || kind == "try_wait") {
        x.op.d = x.predicate(x.operand(0));
        x.set_address(x.operand(1));
        const bool parity = x.has("parity");
        x.op.b = x.source(x.operand(2), parity ? 4 : 8);
        x.op.flags |= (parity ? kParity : 0) | order_flags(x);
        x.op.run = wait;
    } else if (kind == "pending_count") {
        x.op.d = x.reg(x.operand(0), 4);
        x.op.a = x.source(x.operand(1), 8);
        x.op.run = pending_count;
    }
}

}  // namespace deep_gemm::emulator
