// bra, call, ret, exit, trap. Divergence: lane groups at different pcs; the smallest pc runs first, so groups
// meet again at the end of the branch.
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

// Each lane goes to its entry of the table op.list. op.a: the index.
void branch_by_table(Warp& w, const Op& op, u32 mask) {
    const u32* index = static_cast<u32*>(slot(w, op.a));
    w.spread();
    w.save(w.active & ~mask, w.pc);
    for_lanes(mask, [&](u32 lane) {
        if (index[lane] >= op.list.size()) {
            fault(w, static_cast<i32>(lane), "branch index {} of a table of {} labels", index[lane],
                  op.list.size());
        }
        w.lane_pc[lane] = op.list[index[lane]];
    });
    w.pick_group();
}

void nothing(Warp&, const Op&, u32) {}

void exit_lanes(Warp& w, const Op&, u32 mask) {
    Cta& cta = *w.cta;
    if (mask != w.live) w.spread();
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

void trap(Warp& w, const Op&, u32 mask) {
    fault(w, static_cast<i32>(first_lane(mask)), "the kernel executed trap");
}

void assertion_failed(Warp& w, const Op&, u32 mask) {
    fault(w, static_cast<i32>(first_lane(mask)), "an assertion of the kernel failed");
}

// op.d: where the callee keeps its return pcs.
void call(Warp& w, const Op& op, u32 mask) {
    const u32 back = w.pc;
    each_lane<u32>(slot(w, op.d), mask, [=](u32) { return back; });
    branch(w, op, mask);
}

// Lanes may go back to different places. op.a: the return pcs.
void return_lanes(Warp& w, const Op& op, u32 mask) {
    const u32* back = static_cast<u32*>(slot(w, op.a));
    w.spread();
    w.save(w.active & ~mask, w.pc);
    for_lanes(mask, [&](u32 lane) { w.lane_pc[lane] = back[lane]; });
    w.pick_group();
}

// call (result), f, (arguments): .param variables of the call are the callee's own (loader.cpp), so nothing
// is copied.
void decode_call(Decoder& x) {
    for (const ptx::Operand& operand : x.in->operands) {
        if (operand.kind != ptx::OperandKind::function) continue;
        if (operand.text == "__assertfail") {
            x.op.run = assertion_failed;
            return;
        }
        for (const Unit& unit : x.units) {
            if (unit.function->name != operand.text) continue;
            x.op.target = unit.code_begin;
            x.op.d = unit.return_slot;
            x.op.run = call;
            return;
        }
        x.unsupported("a function without a body");
    }
    x.unsupported("an indirect call");
}

}  // namespace

void decode_control(Decoder& x) {
    const std::string_view root = x.in->root;
    if (root == ".branchtargets") {
        for (const auto& label : x.in->operands) {
            if (label.kind != ptx::OperandKind::label) x.unsupported("a branch target is no label");
        }
        x.op.run = nothing;
    } else if (root == "brx") {
        const ptx::Operand& table = x.operand(1);
        if (table.kind != ptx::OperandKind::label) x.unsupported("brx needs a label of .branchtargets");
        const auto& code = x.unit.function->code;
        if (table.id >= code.size() || code[table.id].root != ".branchtargets")
            x.unsupported("brx needs a label of .branchtargets");
        std::vector<u32> targets;
        for (const auto& label : code[table.id].operands) targets.push_back(x.unit.code_begin + label.id);
        x.op.a = x.source(x.operand(0), 4);
        x.set_list(std::move(targets));
        x.op.run = branch_by_table;
    } else if (root == "bra") {
        if (x.operand(0).kind != ptx::OperandKind::label) x.unsupported("an indirect branch");
        x.op.target = x.unit.code_begin + x.operand(0).id;
        x.op.run = branch;
    } else if (root == "ret" && x.unit.return_slot != kNoSlot) {
        x.op.a = x.unit.return_slot;
        x.op.run = return_lanes;
    } else if (root == "ret" || root == "exit") {
        x.op.run = exit_lanes;
    } else if (root == "trap" || root == "brkpt") {
        x.op.run = trap;
    } else {
        decode_call(x);
    }
}

}  // namespace deep_gemm::emulator
