// What warp-collective instructions have in common: the lanes that must take part have to be here together.
#pragma once

#include "emulator/exec/fault.h"
#include "emulator/exec/lanes.h"

namespace deep_gemm::emulator {

// .aligned: every live lane executes it. False: the group was parked until the other lanes arrive.
inline bool whole_warp_present(Warp& w, u32 mask) {
    if (mask == w.live) return true;
    if (mask != w.active)
        fault(w, -1,
              "an .aligned instruction is predicated off in part of the warp (lanes {:#010x} of {:#010x})",
              mask, w.active);
    w.block(w.pc - 1, {.kind = WaitKind::reconvergence, .pc = w.pc - 1, .mask = w.live & ~mask});
    return false;
}

// .sync with a member mask held in `slot_offset`. Exited members do not count.
inline bool members_present(Warp& w, u32 slot_offset, u32 mask) {
    const u32 members = static_cast<const u32*>(slot(w, slot_offset))[first_lane(mask)];
    if ((mask & ~members) != 0) {
        fault(w, static_cast<i32>(first_lane(mask & ~members)),
              "executes a .sync instruction whose member mask {:#010x} leaves it out", members);
    }
    const u32 missing = members & w.live & ~mask;
    if (missing == 0) return true;
    w.block(w.pc - 1, {.kind = WaitKind::reconvergence, .pc = w.pc - 1, .mask = missing});
    return false;
}

}  // namespace deep_gemm::emulator
