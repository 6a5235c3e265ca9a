// Poison: registers and shared memory start as 0xee bytes, so nothing depends on what ran before.
#include "emulator/sched/setup.h"

#include "emulator/exec/lanes.h"
#include "emulator/exec/races.h"

#include <algorithm>

namespace deep_gemm::emulator {
namespace {

constexpr std::byte kPoison{0xee};
constexpr u32 kAlignment = 64;
constexpr u32 kSmRegisters = 65536;
constexpr u32 kMaxRegistersPerThread = 255;

std::byte* aligned(std::vector<std::byte>& storage, size_t bytes) {
    if (storage.size() < bytes + kAlignment) storage.resize(bytes + kAlignment);
    return reinterpret_cast<std::byte*>(align_up(reinterpret_cast<u64>(storage.data()), u64{kAlignment}));
}

// Whether lanes differ in it.
bool varies(Special what) {
    switch (what) {
        case Special::tid_x:
        case Special::tid_y:
        case Special::tid_z:
        case Special::laneid:
        case Special::lanemask_eq:
        case Special::lanemask_le:
        case Special::lanemask_lt:
        case Special::lanemask_ge:
        case Special::lanemask_gt: return true;
        default: return false;
    }
}

u64 special_value(const Cta& cta, const Warp& w, const SpecialSlot& special, u32 lane) {
    const Cluster& c = *cta.cluster;
    const Launch& l = *c.launch;
    const u32 thread = w.id * kLanes + lane;
    const u32 size = l.cluster_size();
    switch (special.what) {
        case Special::tid_x: return thread % l.block.x;
        case Special::tid_y: return thread / l.block.x % l.block.y;
        case Special::tid_z: return thread / l.block.x / l.block.y;
        case Special::ntid_x: return l.block.x;
        case Special::ntid_y: return l.block.y;
        case Special::ntid_z: return l.block.z;
        case Special::ctaid_x: return cta.index[0];
        case Special::ctaid_y: return cta.index[1];
        case Special::ctaid_z: return cta.index[2];
        case Special::nctaid_x: return l.grid.x;
        case Special::nctaid_y: return l.grid.y;
        case Special::nctaid_z: return l.grid.z;
        case Special::laneid: return lane;
        case Special::warpid: return w.id;
        case Special::nwarpid: return l.warps();
        case Special::smid: return (static_cast<u64>(c.number) * size + cta.rank) % l.num_sms;
        case Special::nsmid: return l.num_sms;
        case Special::gridid: return l.grid_id;
        case Special::lanemask_eq: return u64{1} << lane;
        case Special::lanemask_le: return (u64{2} << lane) - 1;
        case Special::lanemask_lt: return (u64{1} << lane) - 1;
        case Special::lanemask_ge: return kFullMask & ~((u64{1} << lane) - 1);
        case Special::lanemask_gt: return kFullMask & ~((u64{2} << lane) - 1);
        case Special::clusterid_x: return c.index[0];
        case Special::clusterid_y: return c.index[1];
        case Special::clusterid_z: return c.index[2];
        case Special::nclusterid_x: return l.grid.x / l.cluster.x;
        case Special::nclusterid_y: return l.grid.y / l.cluster.y;
        case Special::nclusterid_z: return l.grid.z / l.cluster.z;
        case Special::cluster_ctaid_x: return cta.rank % l.cluster.x;
        case Special::cluster_ctaid_y: return cta.rank / l.cluster.x % l.cluster.y;
        case Special::cluster_ctaid_z: return cta.rank / l.cluster.x / l.cluster.y;
        case Special::cluster_nctaid_x: return l.cluster.x;
        case Special::cluster_nctaid_y: return l.cluster.y;
        case Special::cluster_nctaid_z: return l.cluster.z;
        case Special::cluster_ctarank: return cta.rank;
        case Special::cluster_nctarank: return size;
        case Special::is_explicit_cluster: return size > 1;
        case Special::dynamic_smem_size: return l.dynamic_smem_bytes;
        case Special::total_smem_size: return l.smem_bytes;
        case Special::shared_address: return (static_cast<u64>(cta.rank) << kRankShift) + special.addend;
        case Special::param_address: return reinterpret_cast<u64>(l.params) + special.addend;
    }
    return 0;
}

void set_up_warp(Cta& cta, Warp& w, u32 id, std::byte* registers, std::byte* local) {
    const Launch& launch = *cta.cluster->launch;
    const Program& program = *launch.program;
    std::vector<Wait> waits = std::move(w.waits);  // keeps its memory
    waits.clear();
    w = Warp{};
    w.waits = std::move(waits);
    w.registers = reinterpret_cast<u8*>(registers);
    w.local = local;
    w.program = &program;
    w.cta = &cta;
    w.id = id;
    const u32 left = launch.threads() - id * kLanes;
    w.live = w.active = left >= kLanes ? kFullMask : (1u << left) - 1;
    w.before_dependency = launch.programmatic;
    w.max_registers = std::min(kMaxRegistersPerThread, kSmRegisters / (launch.warps() * kLanes) & ~7u);
    std::memset(w.registers, static_cast<int>(kPoison), program.constants_begin);
    std::memset(local, static_cast<int>(kPoison), static_cast<size_t>(program.local_bytes) * kLanes);
    std::memcpy(w.registers + program.constants_begin, program.constants.data(), program.constants.size());
    for (const SpecialSlot& special : program.specials) {
        void* at = slot(w, special.slot);
        u64 value = special_value(cta, w, special, 0);
        const bool differs = varies(special.what);
        for (u32 lane = 0; lane < kLanes; ++lane) {
            if (differs && lane != 0) value = special_value(cta, w, special, lane);
            if (special.bytes == 8) {
                static_cast<u64*>(at)[lane] = value;
            } else {
                static_cast<u32*>(at)[lane] = static_cast<u32>(value);
            }
        }
    }
}

void set_up_cta(Cluster& c, Cta& cta, u32 rank) {
    const Launch& l = *c.launch;
    cta.cluster = &c;
    cta.rank = rank;
    cta.index[0] = c.index[0] * l.cluster.x + rank % l.cluster.x;
    cta.index[1] = c.index[1] * l.cluster.y + rank / l.cluster.x % l.cluster.y;
    cta.index[2] = c.index[2] * l.cluster.z + rank / l.cluster.x / l.cluster.y;
    cta.smem.assign(l.smem_bytes, kPoison);
    cta.shadow.reset(l.smem_bytes);
    cta.exited = false;
    cta.barrier_inits.clear();
    cta.async_reads = cta.async_writes = cta.tensor_ops_in_flight = 0;
    std::fill(std::begin(cta.barriers), std::end(cta.barriers), NamedBarrier{});
    const u32 warps = l.warps();
    cta.warpgroups.clear();
    cta.warpgroups.resize((warps + 3) / 4);
    cta.live_warps = warps;
    cta.warps.resize(warps);
    const size_t register_bytes = l.program->register_bytes,
                 local_bytes = static_cast<size_t>(l.program->local_bytes) * kLanes;
    std::byte* registers = aligned(cta.register_files, register_bytes * warps);
    std::byte* local = aligned(cta.local_memory, local_bytes * warps);
    for (u32 id = 0; id < warps; ++id)
        set_up_warp(cta, cta.warps[id], id, registers + id * register_bytes, local + id * local_bytes);
    // A CTA owns what it was launched with: setmaxnreg only moves registers between its warps.
    cta.register_pool = 0;
}

}  // namespace

void set_up_cluster(Cluster& c, const Launch& launch, u32 number) {
    c.launch = &launch;
    c.number = number;
    const u32 nx = launch.grid.x / launch.cluster.x, ny = launch.grid.y / launch.cluster.y;
    c.index[0] = number % nx;
    c.index[1] = number / nx % ny;
    c.index[2] = number / nx / ny;
    c.rng = Rng(launch.options.seed * 0x100000001b3u + number);
    c.now = c.wakes = c.progress = c.num_events = 0;
    c.fence_ticks = 0;
    c.events.clear();
    c.barrier_arrived = 0;
    c.barrier_generation = 0;
    c.spurious_rounds = 0;
    c.live_ctas = launch.cluster_size();
    c.live_threads = c.live_ctas * launch.threads();
    c.schedule.clear();
    c.ctas.resize(c.live_ctas);
    for (u32 rank = 0; rank < c.live_ctas; ++rank) {
        if (!c.ctas[rank]) c.ctas[rank] = std::make_unique<Cta>();
        set_up_cta(c, *c.ctas[rank], rank);
        for (Warp& w : c.ctas[rank]->warps) c.schedule.push_back(&w);
    }
    if (!launch.options.races) c.races = nullptr;
    if (launch.options.races && !c.races) c.races = std::make_shared<Races>();
    if (c.races) c.races->reset(c);
}

}  // namespace deep_gemm::emulator
