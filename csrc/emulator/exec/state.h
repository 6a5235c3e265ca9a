// The state of a running grid: Launch > Cluster > Cta > Warp. Plain structs, no behaviour beyond small
// accessors; handlers change them, sched/ runs them. One host thread owns a Cluster at a time; a Launch is
// read-only.
#pragma once

#include "emulator/check/place.h"
#include "emulator/check/ranges.h"
#include "emulator/check/shadow.h"
#include "emulator/ir/op.h"
#include "emulator/options.h"

#include <deep_gemm/spec/types.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <map>

namespace deep_gemm::emulator {

struct Cta;
struct Cluster;
class Races;

// Generic addresses of shared and local memory live in windows that no host address can have.
constexpr u64 kSharedWindow = u64{0x00ff} << 48;
constexpr u64 kLocalWindow = u64{0x00fe} << 48;
constexpr u64 kWindowMask = u64{0xffff} << 48;
constexpr u32 kRankShift = 24;  // shared address = cta rank << 24 | offset
constexpr u32 kOffsetMask = (1u << kRankShift) - 1;

struct Launch {
    const Program* program = nullptr;
    driver::Dim3 grid, cluster, block;
    u32 dynamic_smem_bytes = 0;
    u32 smem_bytes = 0;  // end of the shared window
    const std::byte* params = nullptr;
    Ranges ranges;
    Options options;
    u32 num_sms = 0;
    u64 grid_id = 0;
    bool programmatic = false;  // PDL: the grid before this one may still be running
    [[nodiscard]] u32 threads() const { return block.x * block.y * block.z; }
    [[nodiscard]] u32 warps() const { return (threads() + kLanes - 1) / kLanes; }
    [[nodiscard]] u32 cluster_size() const { return cluster.x * cluster.y * cluster.z; }
};

// Small, fast, splittable: the schedule of a cluster depends on (seed, cluster index) alone.
class Rng {
  public:
    explicit Rng(u64 seed = 0) : state_(seed * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du) { next(); }
    u64 next() {
        u64 z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    u32 below(u32 bound) { return static_cast<u32>((next() >> 32) * bound >> 32); }

  private:
    u64 state_;
};

enum class WarpState : u8 { ready, blocked, exited };

// Why a warp does not move; for the deadlock report.
enum class WaitKind : u8 {
    none,
    mbarrier,
    named_barrier,
    cluster_barrier,
    reconvergence,
    wgmma,
    cp_async,
    bulk_group,
    registers
};

struct Wait {
    WaitKind kind = WaitKind::none;
    u32 pc = 0;
    u32 mask = 0;
    u32 address = 0;  // mbarrier: shared address; barrier: id
    u32 value = 0;    // mbarrier: parity; groups: how many may stay pending
};

// The asynchronous groups of a warp: operations join the open group, commit closes it, wait_group looks at
// the rest. PTX counts groups per thread; one elected lane or the whole warp issues them, so per warp is the
// same or stricter.
struct AsyncGroups {
    struct Group {
        u32 reading = 0,
            writing = 0;  // operations whose sources are not yet read, whose results have not landed
    };
    Group open_group;
    std::vector<Group> committed;
    u64 first = 0;  // sequence number of committed[0]

    [[nodiscard]] u64 open() const { return first + committed.size(); }
    [[nodiscard]] Group& at(u64 sequence) {
        return sequence == open() ? open_group : committed[sequence - first];
    }
    void commit() {
        committed.push_back(open_group);
        open_group = {};
        const auto busy = std::find_if(committed.begin(), committed.end(),
                                       [](const Group& g) { return g.writing != 0 || g.reading != 0; });
        first += static_cast<u64>(busy - committed.begin());
        committed.erase(committed.begin(), busy);
    }
    // All committed groups but the latest `pending` are done (or, for .read, have read their sources).
    [[nodiscard]] bool done(u64 pending, bool read_only) const {
        for (u64 i = 0; i + pending < committed.size(); ++i) {
            if (committed[i].reading != 0 || (!read_only && committed[i].writing != 0)) return false;
        }
        return true;
    }
};

// cp.async.mbarrier.arrive: arrives when the copies issued before it have landed.
struct CopyArrival {
    u64 sequence = 0;
    Cta* cta = nullptr;
    u32 offset = 0;
};

// What became of a register that wgmma may use. Numbers of operations count from 1; 0 is none.
struct TensorRegister {
    u32 touched_after = 0;  // the last ordinary access came after this many wgmma.fence of the warp,
    u32 touched_at = 0;     // at this pc
    u32 result_of = 0;      // the last operation that accumulates here
    u32 source_of = 0;      // the last one that reads A from here
};

struct Warp {
    u8* registers = nullptr;
    const Program* program = nullptr;
    Cta* cta = nullptr;
    u32 pc = 0;
    u32 merge_pc = ~0u;  // smallest pc of the other lanes that is above pc: reaching it means reconvergence
    u32 active = 0, live = 0;
    u32 carry = 0;     // condition code of add.cc and friends, by lane
    u32 stuck = 0;     // live lanes whose group blocked since the last wake-up
    u32 pc_bound = 0;  // this turn prefers lane groups at or above this pc
    WarpState state = WarpState::ready;
    bool turn_over = false;
    u32 id = 0;
    bool converged = false;  // all live lanes are at common_pc, whatever lane_pc says
    u32 common_pc = 0;
    u32 lane_pc[kLanes] = {};
    u64 seen_wakes = 0;
    std::vector<Wait> waits;     // why groups blocked in the last turn
    std::byte* local = nullptr;  // local memory, lane after lane
    Segment last_segment;        // cache of the last global range hit

    // Proxy fences, as ticks of the cluster.
    u32 async_fence = 0;
    u32 init_fence = 0;

    // Named barriers: set while waiting.
    bool barrier_arrived = false;
    u64 barrier_generation = 0;
    // Cluster barrier.
    bool cluster_arrived = false;
    u64 cluster_generation = 0;

    AsyncGroups copy_groups;  // cp.async
    AsyncGroups bulk_groups;  // cp.async.bulk
    u64 copies_issued = 0;
    std::vector<u64> copies_in_flight;  // sequence numbers of cp.async instructions
    std::vector<CopyArrival> copy_arrivals;

    // wgmma
    u32 tensor_issued = 0;            // operations this warp has issued
    std::vector<u32> tensor_commits;  // value of tensor_issued at each commit still of interest
    u32 tensor_waited = 0;            // operations that a wait_group covers: all below this number
    u32 tensor_fences = 0;
    std::vector<TensorRegister> tensor_registers;  // by slot; none before the first fence
    u32 max_registers = 0;                         // setmaxnreg, per thread
    bool before_dependency = false;                // PDL: griddepcontrol.wait has not been executed

    void save(u32 mask, u32 at) {
        if (mask == live) {
            converged = true, common_pc = at;
            return;
        }
        spread();
        for (u32 m = mask; m != 0; m &= m - 1) lane_pc[std::countr_zero(m)] = at;
    }
    // Before lanes go, or get pcs of their own.
    void spread() {
        if (!converged) return;
        converged = false;
        for (u32 m = live; m != 0; m &= m - 1) lane_pc[std::countr_zero(m)] = common_pc;
    }
    [[nodiscard]] u32 pc_of(u32 lane) const {
        return converged && (live >> lane & 1) != 0 ? common_pc : lane_pc[lane];
    }
    // Picks the group to run: the smallest pc at or above pc_bound among lanes that are not stuck. Lanes at
    // the same pc join it. False when every live lane is stuck.
    bool pick_group() {
        const u32 candidates = live & ~stuck;
        if (candidates == 0) return false;
        if (converged) {
            pc = common_pc, active = live, merge_pc = ~0u, stuck = 0;
            return true;
        }
        u32 low = ~0u, bounded = ~0u;
        for (u32 m = candidates; m != 0; m &= m - 1) {
            const u32 at = lane_pc[std::countr_zero(m)];
            low = at < low ? at : low;
            if (at >= pc_bound && at < bounded) bounded = at;
        }
        pc = bounded != ~0u ? bounded : low;
        active = 0, merge_pc = ~0u;
        for (u32 m = live; m != 0; m &= m - 1) {
            const u32 lane = static_cast<u32>(std::countr_zero(m));
            if (lane_pc[lane] == pc) {
                active |= 1u << lane;
            } else if (lane_pc[lane] > pc && lane_pc[lane] < merge_pc) {
                merge_pc = lane_pc[lane];
            }
        }
        stuck &= ~active;
        if (active == live) converged = true, common_pc = pc;
        return true;
    }
    // The running group cannot go on: `next_pc` is where it resumes. Another group of the warp runs, if there
    // is one.
    void block(u32 next_pc, Wait why) {
        waits.push_back(why);
        save(active, next_pc);
        stuck |= active;
        if (!pick_group()) state = WarpState::blocked;
    }
};

struct NamedBarrier {
    u32 arrived = 0, expected = 0;  // threads; expected 0: all threads of the CTA
    u64 generation = 0;
    u32 any = 0, all = 1, count = 0;                 // of the phase in progress
    u32 last_any = 0, last_all = 0, last_count = 0;  // of the last completed one
};

// wgmma is collective over four warps: an operation exists when all four have issued it. Accumulators that
// are in flight live here, not in the registers (which hold a poison NaN), from the first issue to the wait.
struct AccumulatorChain {
    const Op* op = nullptr;          // the first operation on these registers
    std::vector<float> values;       // [64][n]; f32 and f16 accumulators
    std::vector<i32> integers;       // [64][n]; s32 accumulators
    u32 gathered = 0, returned = 0;  // warps of the group whose registers were taken, written back
    u32 last = 0;                    // number of the last operation
};
struct TensorOp {
    const Op* op = nullptr;
    u64 a = 0, b = 0;
    bool scale_d = false;
    u32 issued = 0;  // warps of the group
    std::shared_ptr<AccumulatorChain> chain;
    std::vector<std::byte> a_registers;
    std::vector<u32> chunks;  // shared offsets of the 16-byte chunks it reads
    u32 low = ~0u, high = 0;  // they lie in [low, high)
    Place place;
};
struct Warpgroup {
    std::deque<TensorOp> operations;  // operations[0] has number `executed`: they run in order
    u32 executed = 0;
    u64 last_due = 0;
    std::vector<std::shared_ptr<AccumulatorChain>> chains;
};

struct Cta {
    Cluster* cluster = nullptr;
    u32 rank = 0;
    u32 index[3] = {0, 0, 0};
    std::vector<std::byte> smem;
    SharedShadow shadow;
    std::vector<Warp> warps;
    std::vector<std::byte> register_files;
    std::vector<std::byte> local_memory;
    NamedBarrier barriers[16];
    std::vector<Warpgroup> warpgroups;
    u32 tensor_ops_in_flight = 0;  // wgmma operations that all four warps have issued and that still read
    u32 live_warps = 0;
    u32 async_reads = 0, async_writes = 0;  // bulk operations in flight on this CTA's shared memory
    i32 register_pool = 0;                  // setmaxnreg: registers of the CTA that no warp holds
    std::map<u32, u64>
        barrier_inits;  // by offset of an mbarrier: generation of the cluster barrier when initialised
    bool exited = false;
};

struct Event {
    u64 due = 0, order = 0;
    Place place;
    std::function<void()> run;
};

struct Cluster {
    const Launch* launch = nullptr;
    u32 number = 0;
    u32 index[3] = {0, 0, 0};
    std::vector<std::unique_ptr<Cta>> ctas;
    Rng rng;
    u64 now = 0;       // instructions executed
    u64 wakes = 0;     // things happened that a blocked warp may wait for
    u64 progress = 0;  // counts everything a livelock would not do: stores, arrivals, exits, landings
    u32 fence_ticks = 0;
    std::vector<Event> events;  // a heap: earliest due first
    u64 num_events = 0;
    u32 barrier_arrived = 0, live_threads = 0;  // barrier.cluster
    u64 barrier_generation = 0;
    u32 live_ctas = 0;
    u32 spurious_rounds = 0;  // rounds in which every waiter was told to look again
    std::vector<Warp*> schedule;
    std::shared_ptr<Races> races;  // none where the check is off
    void wake() { ++wakes, ++progress, spurious_rounds = 0; }
};

}  // namespace deep_gemm::emulator
