// bra, ret, exit, trap. Divergence: lane groups at different pcs; the smallest pc runs first, so groups meet
// again at the end of the branch.
#include "emulator/exec/barrier.h"
#include "emulator/exec/families.h"
#include "emulator/exec/fault.h"
#include "emulator/exec/lanes.h"

namespace deep_gemm::emulator {
namespace {

void branch(Warp& w, const Op& op, u32 mask) {
    if (mask == w.live) {
        w.pc = op.target;
        return;
    }
    w.save(w.active & ~mask, w.pc);
    w.save(mask, op.target);
    w.pick_group();
}

void exit_lanes(Warp& w, const Op&, u32 mask) {
    Cta& cta = *w.cta;
    w.live &= ~mask;
    w.stuck &= ~mask;
    cta.cluster->live_threads -= static_cast<u32>(std::popcount(mask));
    cta.cluster->wake();
    complete_cluster_barrier_if_full(*cta.cluster);
    if (w.live == 0) {
        w.state = WarpState::exited;
        --cta.live_warps;
        complete_barriers_after_exit(cta);
        return;
    }
    w.save(w.active & ~mask, w.pc);
    if (!w.pick_group()) w.state = WarpState::blocked;
}

void trap(Warp& w, const Op&, u32 mask) { fault(w, static_cast<i32>(first_lane(mask)), "the kernel executed trap"); }

}  // namespace

void decode_control(Decoder& x) {
    const std::string_view root = x.in->root;
    if (root == "bra") {
        if (x.operand(0).kind != ptx::OperandKind::label) x.unsupported("an indirect branch");
        x.op.target = x.operand(0).id;
        x.op.run = branch;
    } else if (root == "ret" || root == "exit") {
        x.op.run = exit_lanes;
    } else if (root == "trap" || root == "brkpt") {
        x.op.run = trap;
    } else {
        x.unsupported("device functions that are called, not inlined; mark them __forceinline__");
    }
}

}  // namespace deep_gemm::emulator
