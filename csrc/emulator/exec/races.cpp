// Accesses and order of a running cluster, and the text of a race.
#include "emulator/exec/races.h"

#include "emulator/exec/fault.h"
#include "emulator/exec/lanes.h"

namespace deep_gemm::emulator {
namespace {

constexpr u32 kMBarrierUnits =
    32;  // of a CTA; more mbarriers share them, which hides races but makes none up

}  // namespace

u32 Races::first_mbarrier_unit() const {
    return 3 * num_warps_ + static_cast<u32>(ctas_.size()) * groups_per_cta_;
}

Races::MBarrierClock& Races::mbarrier(const Cta& cta, u32 offset) {
    CtaState& state = state_of(cta);
    if (state.last_offset != offset) state.last_offset = offset, state.last = &state.mbarriers[offset];
    return *state.last;
}

void Races::reset(Cluster& c) {
    cluster_state_ = &c;
    const u32 num_ctas = static_cast<u32>(c.ctas.size());
    warps_per_cta_ = c.launch->warps();
    groups_per_cta_ = ceil_div(warps_per_cta_, 4u);
    num_warps_ = num_ctas * warps_per_cta_;
    ctas_.resize(num_ctas);
    for (auto& cta : ctas_) {
        if (!cta) cta = std::make_unique<CtaState>();
        cta->accesses.reset(c.launch->smem_bytes, num_warps_);
        cta->mbarriers.clear();
        cta->last_offset = ~0u;
        cta->strong.clear();
    }
    zero_.reset(num_warps_, first_mbarrier_unit() + num_ctas * kMBarrierUnits - num_warps_);
    for (auto& cta : ctas_) {
        for (BarrierClock& barrier : cta->barriers) barrier.clear();
    }
    cluster_.reset(zero_);
    warps_.resize(num_warps_);
    for (u32 unit = 0; unit < num_warps_; ++unit) {
        const Warp& w = c.ctas[unit / warps_per_cta_]->warps[unit % warps_per_cta_];
        warps_[unit].reset(unit, w.live, zero_);
    }
}

Access Races::access_of(const Warp& w, u32 unit, Time time) const {
    return {.time = time, .lanes = 1, .pc = w.pc - 1, .unit = static_cast<u16>(unit)};
}

// ---- Accesses

void Races::read(Warp& w, u32 lanes, Cta& cta, u32 offset, u32 bytes, bool strong) {
    const WarpClock& clock = clock_of(w);
    Accesses& accesses = state_of(cta).accesses;
    // Strong accesses learn from each other, and lanes that are apart know different things. Across chunks,
    // the first lane's second chunk comes before the second lane's first.
    const bool one_chunk = offset % kAccessChunkBytes + bytes <= kAccessChunkBytes;
    const bool together = !strong && one_chunk && (lanes & clock.apart) == 0;
    for (u32 rest = lanes; rest != 0; rest = together ? 0 : rest & (rest - 1)) {
        const u32 lane = first_lane(rest);
        if (strong) strong_access(w, lane, cta, offset, false);
        Access access = access_of(w, warp_unit(w), clock.now);
        access.lanes = together ? rest : 1u << lane;
        access.strong = strong ? 1 : 0;
        const Race* race = accesses.read(observer(w, lane), access, offset, bytes);
        if (race != nullptr) [[unlikely]]
            fail(w, static_cast<i32>(race->observer.lane), cta, "read", false, *race);
    }
}

void Races::write(Warp& w, u32 lane, Cta& cta, u32 offset, u32 bytes, bool strong) {
    if (strong) strong_access(w, lane, cta, offset, true);
    Access access = access_of(w, warp_unit(w), clock_of(w).now);
    access.lanes = 1u << lane;
    access.strong = strong ? 1 : 0;
    const Race* race = state_of(cta).accesses.write(observer(w, lane), access, offset, bytes);
    if (race != nullptr) [[unlikely]]
        fail(w, static_cast<i32>(lane), cta, "write", true, *race);
}

void Races::strong_access(Warp& w, u32 lane, Cta& cta, u32 offset, bool tells) {
    Clock& place = state_of(cta).strong[offset & ~7u];
    if (place.empty()) place = zero_;
    WarpClock& clock = clock_of(w);
    clock.learn(1u << lane, w.live, [&](Clock& c) { c.join(place); });
    if (tells) clock.tell(1u << lane, place);
    if (tells) ++clock.now;
}

void Races::initialise_mbarrier(Warp& w, u32 lane, const Cta& cta, u32 offset) {
    CtaState& state = state_of(cta);
    const u32 index = static_cast<u32>(state.mbarriers.size());
    const auto [at, added] = state.mbarriers.try_emplace(offset);
    MBarrierClock& barrier = at->second;
    if (added) {
        barrier.unit = first_mbarrier_unit() + cta.rank * kMBarrierUnits + index % kMBarrierUnits;
        barrier.own.reset(zero_);
        if (ctas_.size() > 1) barrier.remote.reset(zero_);
    }
    barrier.init = access_of(w, warp_unit(w), clock_of(w).now);
    barrier.init.lanes = 1u << lane;
    barrier.init.performed = 1;
    barrier.init_known.assign(num_warps_, 0);
}

void Races::use_mbarrier(Warp& w, u32 lane, const Cta& cta, u32 offset) {
    MBarrierClock& barrier = mbarrier(cta, offset);
    u32& known = barrier.init_known[warp_unit(w)];
    if (known >> lane & 1) [[likely]]
        return;
    const Observer who = observer(w, lane);
    if (!state_of(cta).accesses.knows(who, barrier.init, true))
        fail(w, static_cast<i32>(lane), cta, "use of an mbarrier", true, {barrier.init, true, who, offset});
    known |= 1u << lane;
}

void Races::copy_in(Warp& w, u32 lane, Cta& cta, u32 offset, u32 bytes, const Cta& barrier_cta, u32 barrier) {
    const MBarrierClock& b = mbarrier(barrier_cta, barrier);
    const Access access = access_of(w, b.unit, b.phases + 1);
    Accesses& accesses = state_of(cta).accesses;
    const bool whole_chunks = (offset | bytes) % kAccessChunkBytes == 0;
    const Race* race = whole_chunks ? accesses.engine_write(observer(w, lane), access, offset, bytes)
                                    : accesses.write(observer(w, lane), access, offset, bytes);
    if (race != nullptr) fail(w, static_cast<i32>(lane), cta, "asynchronous write", true, *race);
}

void Races::copy_out(Warp& w, u32 lane, Cta& cta, u32 offset, u32 bytes, const Cta& barrier_cta,
                     u32 barrier) {
    const MBarrierClock& b = mbarrier(barrier_cta, barrier);
    const Access access = access_of(w, b.unit, b.phases + 1);
    const Race* race = state_of(cta).accesses.engine_read(observer(w, lane), access, offset, bytes);
    if (race != nullptr) fail(w, static_cast<i32>(lane), cta, "asynchronous read", false, *race);
}

void Races::bulk_store(Warp& w, u32 lane, Cta& cta, u32 offset, u32 bytes, u64 group) {
    const Access access = access_of(w, bulk_unit(w), static_cast<Time>(group + 1));
    const Race* race = state_of(cta).accesses.engine_read(observer(w, lane), access, offset, bytes);
    if (race != nullptr) fail(w, static_cast<i32>(lane), cta, "asynchronous read", false, *race);
}

void Races::cp_async(Warp& w, u32 lane, Cta& cta, u32 offset, u32 bytes, u64 group) {
    Access access = access_of(w, copies_unit(w), static_cast<Time>(group + 1));
    const Race* race = state_of(cta).accesses.write(observer(w, lane), access, offset, bytes);
    if (race != nullptr) fail(w, static_cast<i32>(lane), cta, "cp.async", true, *race);
}

void Races::wgmma(Warp& last, const TensorOp& t, u32 number) {
    Cta& cta = *last.cta;
    const u32 group = last.id / 4;
    std::vector<Observer> observers;
    for (u32 id = group * 4; id < group * 4 + 4; ++id) {
        Warp& w = cta.warps[id];
        const u32 apart = clock_of(w).apart;
        observers.push_back(observer(w, first_lane(~apart & w.live ? ~apart & w.live : w.live)));
        for_lanes(apart, [&](u32 lane) { observers.push_back(observer(w, lane)); });
    }
    const Access access = access_of(last, tensor_unit(cta, group), number + 1);
    const Race* race = state_of(cta).accesses.engine_read(observers, access, t.chunks);
    if (race == nullptr) return;
    const Warp& blind = cta.warps[race->observer.unit % warps_per_cta_];
    fail(blind, static_cast<i32>(race->observer.lane), cta, "wgmma's read", false, *race);
}

// ---- Order

void Races::barrier_arrive(Warp& w, u32 id) {
    WarpClock& clock = clock_of(w);
    BarrierClock& barrier = state_of(*w.cta).barriers[id];
    if (barrier.empty()) barrier.reset(zero_);  // most kernels use one or two
    clock.tell(w.live, barrier.told);
    ++clock.now;
}

void Races::cluster_arrive(Warp& w, u32 mask, bool relaxed) {
    WarpClock& clock = clock_of(w);
    clock.tell(mask, cluster_.told, relaxed);
    ++clock.now;
}

void Races::cluster_pass(Warp& w, u32 mask) {
    clock_of(w).learn(mask, w.live, [&](Clock& c) { c.join(cluster_.learned); });
}

void Races::mbarrier_arrive(Warp& w, u32 lane, const Cta& cta, u32 offset, bool cluster_scope, bool relaxed) {
    MBarrierClock& barrier = mbarrier(cta, offset);
    const WarpClock& clock = clock_of(w);
    const bool remote = w.cta != &cta;
    clock.tell(1u << lane, barrier.own.told, remote || relaxed);
    if (remote && cluster_scope && !relaxed) clock.tell(1u << lane, barrier.remote.told);
}

void Races::mbarrier_complete(const Cta& cta, u32 offset) {
    MBarrierClock& barrier = mbarrier(cta, offset);
    barrier.own.complete();
    barrier.own.learned.learn_engine(barrier.unit - num_warps_, ++barrier.phases);
    if (ctas_.size() > 1) barrier.remote.complete();
}

void Races::mbarrier_pass(Warp& w, u32 mask, const Cta& cta, u32 offset, bool cluster_scope, bool relaxed) {
    const MBarrierClock& barrier = mbarrier(cta, offset);
    clock_of(w).learn(mask, w.live, [&](Clock& c) {
        relaxed ? c.join_performed(barrier.own.learned) : c.join(barrier.own.learned);
        if (cluster_scope && !relaxed && ctas_.size() > 1) c.join(barrier.remote.learned);
    });
}

void Races::bulk_pass(Warp& w, u32 mask, u64 groups) {
    const u32 entry = bulk_unit(w) - num_warps_;
    clock_of(w).learn(mask, w.live, [&](Clock& c) { c.learn_engine(entry, static_cast<Time>(groups)); });
}

void Races::cp_async_pass(Warp& w, u32 mask, u64 groups) {
    const u32 entry = copies_unit(w) - num_warps_;
    clock_of(w).learn(mask, w.live, [&](Clock& c) { c.learn_engine(entry, static_cast<Time>(groups)); });
}

void Races::cp_async_arrive(Warp& w, const Cta& cta, u32 offset) {
    Clock& told = mbarrier(cta, offset).own.told;
    told.learn_engine(copies_unit(w) - num_warps_, static_cast<Time>(w.copy_groups.open() + 1));
}

void Races::wgmma_pass(Warp& w, u32 operations) {
    const u32 entry = tensor_unit(*w.cta, w.id / 4) - num_warps_;
    clock_of(w).learn(w.live, w.live, [&](Clock& c) { c.learn_engine(entry, operations); });
}

// ---- The report

std::string Races::who(const Access& access, bool write) const {
    const Program& program = *cluster_state_->launch->program;
    const std::string line = describe_line(program, access.pc);
    const char* kind = write ? "write" : "read";
    const auto warp = [&](u32 unit) {
        return fmt::format("warp {} of CTA rank {}", unit % warps_per_cta_, unit / warps_per_cta_);
    };
    if (access.unit < num_warps_)
        return fmt::format("the {} by {}, lanes {:#010x}, {}", kind, warp(access.unit), access.lanes, line);
    if (access.unit < 2 * num_warps_)
        return fmt::format("the cp.async of {}, {}", warp(access.unit - num_warps_), line);
    if (access.unit < 3 * num_warps_)
        return fmt::format("the read by a bulk store of {}, {}", warp(access.unit - 2 * num_warps_), line);
    const u32 rest = access.unit - 3 * num_warps_;
    if (access.unit < first_mbarrier_unit())
        return fmt::format("the read by a wgmma of warpgroup {} of CTA rank {}, {}", rest % groups_per_cta_,
                           rest / groups_per_cta_, line);
    return fmt::format("the {} by an asynchronous copy, {}", kind, line);
}

std::string Races::missing(const Warp& w, const Cta& cta, const Race& race, bool write) const {
    const Access& earlier = race.earlier;
    if (earlier.unit >= first_mbarrier_unit()) return "this thread has not waited for the copy's mbarrier";
    if (earlier.unit >= 3 * num_warps_)
        return "no wgmma.wait_group of its warps, followed by a barrier that this thread waits for, covers "
               "it";
    if (earlier.unit >= 2 * num_warps_)
        return "no cp.async.bulk.wait_group.read of the issuing thread, followed by a barrier, covers it";
    if (earlier.unit >= num_warps_) return "no cp.async.wait_group, followed by a barrier, covers it";
    if (earlier.unit == warp_unit(w)) {
        return "no bar.warp.sync lies between: lanes of a warp are not ordered by running together";
    }
    Race later = race;
    later.earlier.performed = 1;
    const Accesses& accesses = ctas_[cta.rank]->accesses;
    if (accesses.knows(race.observer, later.earlier, true) && !earlier.performed && race.earlier_writes) {
        return write
                   ? "the arrival in between has CTA scope, which orders no writes of another CTA"
                   : "the arrival or the wait in between has CTA scope, which carries no values from another "
                     "CTA: release and acquire at cluster scope";
    }
    u32 known = 0;
    for_lanes(kFullMask, [&](u32 lane) {
        later.earlier.lanes = 1u << lane;
        known |= static_cast<u32>(accesses.knows(race.observer, later.earlier, true)) << lane;
    });
    if (known != 0) {
        return fmt::format(
            "warp {} arrived for its lanes {:#010x} only: a bar.warp.sync before the arrival would cover the "
            "others",
            earlier.unit % warps_per_cta_, known);
    }
    return "no barrier or mbarrier orders the two";
}

void Races::fail(const Warp& w, i32 lane, const Cta& cta, const char* what, bool write,
                 const Race& race) const {
    fault(w, lane, "race: {} at shared offset {} of CTA rank {} is not ordered after {}: {}", what,
          race.offset, cta.rank, who(race.earlier, race.earlier_writes), missing(w, cta, race, write));
}

}  // namespace deep_gemm::emulator
