// Op: one decoded instruction, ready to run. Program: a kernel of Ops plus what a warp needs before its first
// one. Operands are byte offsets into the warp's register file: 32 lanes of 4 or 8 bytes, or one 4-byte lane
// mask for a predicate. Invariant: an Op never changes after decoding; one Program serves any number of
// threads.
#pragma once

#include "emulator/ptx/ast.h"

#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace deep_gemm::emulator {

struct Warp;
struct Op;
using Handler = void (*)(Warp&, const Op&, u32 mask);

constexpr u32 kNoSlot = ~0u;
constexpr u32 kLanes = 32;
constexpr u32 kFullMask = ~0u;
constexpr u32 kWideBase = 1u << 31;  // Op::flags of every addressing op: the base holds 64-bit lanes

struct Op {
    Handler run = nullptr;
    u32 d = kNoSlot, a = kNoSlot, b = kNoSlot, c = kNoSlot;
    i32 guard = -1;               // offset of the predicate, or none
    u32 guard_flip = 0;           // ~0 for @!p
    u32 target = 0;               // branch target
    u32 flags = 0;                // meaning belongs to the handler
    i64 immediate = 0;            // address offset, lookup table, barrier id
    std::span<const u32> list;    // vector operands and everything beyond d, a, b, c
    const void* extra = nullptr;  // a descriptor owned by the Program (wgmma shape, TMA form)
};

// Values a warp's registers hold from the start: %tid.x and friends, and addresses of shared variables.
enum class Special : u8 {
    tid_x,
    tid_y,
    tid_z,
    ntid_x,
    ntid_y,
    ntid_z,
    ctaid_x,
    ctaid_y,
    ctaid_z,
    nctaid_x,
    nctaid_y,
    nctaid_z,
    laneid,
    warpid,
    nwarpid,
    smid,
    nsmid,
    gridid,
    lanemask_eq,
    lanemask_le,
    lanemask_lt,
    lanemask_ge,
    lanemask_gt,
    clusterid_x,
    clusterid_y,
    clusterid_z,
    nclusterid_x,
    nclusterid_y,
    nclusterid_z,
    cluster_ctaid_x,
    cluster_ctaid_y,
    cluster_ctaid_z,
    cluster_nctaid_x,
    cluster_nctaid_y,
    cluster_nctaid_z,
    cluster_ctarank,
    cluster_nctarank,
    is_explicit_cluster,
    dynamic_smem_size,
    total_smem_size,
    shared_address,
    param_address,
};

struct SpecialSlot {
    Special what;
    u32 slot;
    u32 bytes;   // 4 or 8
    u64 addend;  // shared_address, param_address: offset of the variable
};

struct ModuleImage;  // global variables of a loaded module

struct Program {
    std::string name;
    std::shared_ptr<const ptx::Module> module;
    const ptx::Function* function = nullptr;
    std::vector<Op> code;
    std::vector<const ptx::Instruction*> instructions;  // parallel to code; null for the closing exit
    std::vector<const ptx::Function*> owners;           // the function each op came from
    std::deque<std::vector<u32>> lists;
    std::deque<std::shared_ptr<void>> extras;
    u32 register_bytes = 0;   // whole register file of a warp
    u32 constants_begin = 0;  // [constants_begin, register_bytes) is copied from `constants` at warp start
    std::vector<u8> constants;
    std::vector<SpecialSlot> specials;
    u32 num_registers = 0;      // distinct 32-bit slots, reported as the kernel's register count
    u32 static_smem_bytes = 0;  // including the reserved first bytes
    u32 dynamic_smem_alignment = 16;
    u32 local_bytes = 0;  // per lane
    u32 param_bytes = 0;
    bool communicates = false;  // CTAs may talk through global memory: one host thread runs all of them
    // Ops other than wgmma that touch a register some wgmma holds while in flight: the handler that checks is
    // in `code`, the real one and the register slots are here.
    struct Guarded {
        Handler run = nullptr;
        std::vector<u32> slots;
    };
    std::vector<Guarded> guarded;  // parallel to code, or empty
};

constexpr u32 kReservedSmemBytes = 1024;

}  // namespace deep_gemm::emulator
