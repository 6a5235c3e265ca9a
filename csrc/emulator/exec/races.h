// The happens-before check of shared memory: tells check/accesses what every instruction accesses, and
// check/clocks what orders what.
//
//   orders                                                   does not
//   mbarrier arrive -> wait that sees the phase complete     an mbarrier of CTA scope, for values of another CTA
//   a copy's landing -> wait on its mbarrier or group        shfl, vote, match, redux, elect
//   bar, barrier, barrier.cluster                            running in one warp, wgmma being .aligned
//   bar.warp.sync                                            time passing
//   wgmma read -> wgmma.wait_group of its warps
//   bulk store's read -> bulk wait_group of the issuer
//
// Atomic, volatile, relaxed, acquire and release accesses do not race with each other and are taken to order
// what they touch: more than some do, never less. Global memory is not checked.
#pragma once

#include "emulator/check/accesses.h"
#include "emulator/exec/state.h"

namespace deep_gemm::emulator {

class Races {
  public:
    // A cluster starts; `c` has its CTAs and warps.
    void reset(Cluster& c);

    // ---- accesses
    void read(Warp& w, u32 lanes, Cta& cta, u32 offset, u32 bytes, bool strong);  // one lane after the other
    void write(Warp& w, u32 lane, Cta& cta, u32 offset, u32 bytes, bool strong);
    // A lane uses an mbarrier, which someone initialised.
    void use_mbarrier(Warp& w, u32 lane, const Cta& cta, u32 offset);
    void initialise_mbarrier(Warp& w, u32 lane, const Cta& cta, u32 offset);
    // The copy engine writes, or reads, until this mbarrier's phase completes.
    void copy_in(Warp& w, u32 lane, Cta& cta, u32 offset, u32 bytes, const Cta& barrier_cta, u32 barrier);
    void copy_out(Warp& w, u32 lane, Cta& cta, u32 offset, u32 bytes, const Cta& barrier_cta, u32 barrier);
    void bulk_store(Warp& w, u32 lane, Cta& cta, u32 offset, u32 bytes, u64 group);
    void cp_async(Warp& w, u32 lane, Cta& cta, u32 offset, u32 bytes, u64 group);
    // A wgmma that all four warps have issued; `number` counts the warpgroup's operations.
    void wgmma(Warp& last, const TensorOp& t, u32 number);

    // ---- order
    void warp_sync(Warp& w, u32 mask) { clock_of(w).meet(mask, w.live); }
    void barrier_arrive(Warp& w, u32 id);
    void barrier_complete(const Cta& cta, u32 id) { state_of(cta).barriers[id].complete(); }
    void barrier_pass(Warp& w, u32 id) { clock_of(w).meet_at(state_of(*w.cta).barriers[id].learned); }
    void cluster_arrive(Warp& w, u32 mask, bool relaxed);
    void cluster_complete() { cluster_.complete(); }
    void cluster_pass(Warp& w, u32 mask);
    void mbarrier_arrive(Warp& w, u32 lane, const Cta& cta, u32 offset, bool cluster_scope, bool relaxed);
    // The instruction told all its lanes had to tell.
    void told(Warp& w) { ++clock_of(w).now; }
    void mbarrier_complete(const Cta& cta, u32 offset);
    void mbarrier_pass(Warp& w, u32 mask, const Cta& cta, u32 offset, bool cluster_scope, bool relaxed);
    void bulk_pass(Warp& w, u32 mask, u64 groups);
    void cp_async_pass(Warp& w, u32 mask, u64 groups);
    void cp_async_arrive(Warp& w, const Cta& cta, u32 offset);  // its copies landed
    void wgmma_pass(Warp& w, u32 operations);

  private:
    struct MBarrierClock {
        BarrierClock own;     // told by this CTA's threads; what is performed also by others
        BarrierClock remote;  // told by other CTAs at cluster scope
        Access init;
        std::vector<u32> init_known;  // by warp of the cluster: lanes found to be ordered after it
        u32 unit = 0;
        Time phases = 0;  // completed
    };
    struct CtaState {
        Accesses accesses;
        BarrierClock barriers[16];
        std::map<u32, MBarrierClock> mbarriers;  // by offset
        u32 last_offset = ~0u;                   // the one used last
        MBarrierClock* last = nullptr;
        std::map<u32, Clock> strong;  // by offset: what strong accesses told
    };

    [[nodiscard]] WarpClock& clock_of(const Warp& w) { return warps_[warp_unit(w)]; }
    [[nodiscard]] CtaState& state_of(const Cta& cta) { return *ctas_[cta.rank]; }
    [[nodiscard]] u32 warp_unit(const Warp& w) const { return w.cta->rank * warps_per_cta_ + w.id; }
    [[nodiscard]] u32 copies_unit(const Warp& w) const { return num_warps_ + warp_unit(w); }
    [[nodiscard]] u32 bulk_unit(const Warp& w) const { return 2 * num_warps_ + warp_unit(w); }
    [[nodiscard]] u32 tensor_unit(const Cta& cta, u32 warpgroup) const {
        return 3 * num_warps_ + cta.rank * groups_per_cta_ + warpgroup;
    }
    [[nodiscard]] u32 first_mbarrier_unit() const;
    [[nodiscard]] MBarrierClock& mbarrier(const Cta& cta, u32 offset);
    [[nodiscard]] Observer observer(Warp& w, u32 lane) { return {&clock_of(w).of(lane), warp_unit(w), lane}; }
    [[nodiscard]] Access access_of(const Warp& w, u32 unit, Time time) const;
    void strong_access(Warp& w, u32 lane, Cta& cta, u32 offset, bool tells);
    [[noreturn]] void fail(const Warp& w, i32 lane, const Cta& cta, const char* what, bool write,
                           const Race& race) const;
    [[nodiscard]] std::string who(const Access& access, bool write) const;
    [[nodiscard]] std::string missing(const Warp& w, const Cta& cta, const Race& race, bool write) const;

    Cluster* cluster_state_ = nullptr;
    u32 warps_per_cta_ = 0, groups_per_cta_ = 0, num_warps_ = 0;
    Clock zero_;  // of one who knows nothing
    std::vector<WarpClock> warps_;
    std::vector<std::unique_ptr<CtaState>> ctas_;
    BarrierClock cluster_;
};

}  // namespace deep_gemm::emulator
