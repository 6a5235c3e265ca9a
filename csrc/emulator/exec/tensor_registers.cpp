#include "emulator/exec/tensor_registers.h"

#include "emulator/exec/fault.h"

namespace deep_gemm::emulator {
namespace {

// Slots of lanes start at multiples of this.
constexpr u32 kSlotUnit = 64;

void check_fenced(const Warp& w, u32 slot) {
    const TensorRegister& r = w.tensor_registers[slot / kSlotUnit];
    if (r.touched_after != w.tensor_fences) return;
    fault(w, -1,
          "wgmma.mma_async uses a register that an ordinary instruction touched after the last wgmma.fence "
          "({}); "
          "wgmma.fence between the two",
          describe_line(*w.program, r.touched_at));
}

// Runs an op that touches registers which a wgmma may hold.
void run_guarded(Warp& w, const Op& op, u32 mask) {
    const u32 pc = w.pc - 1;
    const Program::Guarded& guarded = w.program->guarded[pc];
    if (w.tensor_fences != 0) {
        for (u32 slot : guarded.slots) {
            TensorRegister& r = w.tensor_registers[slot / kSlotUnit];
            if (r.result_of > w.tensor_waited)
                fault(w, -1, "touches an accumulator register of a wgmma in flight; wgmma.wait_group first");
            if (r.source_of > w.tensor_waited)
                fault(w, -1, "touches a register of A of a wgmma in flight; wgmma.wait_group first");
            r.touched_after = w.tensor_fences;
            r.touched_at = pc;
        }
    }
    guarded.run(w, op, mask);
}

}  // namespace

void fence_tensor_registers(Warp& w) {
    if (w.tensor_fences++ == 0) w.tensor_registers.resize(w.program->register_bytes / kSlotUnit);
}

void check_tensor_registers(const Warp& w, std::span<const u32> accumulators, std::span<const u32> a) {
    if (w.tensor_fences == 0)
        fault(w, -1, "wgmma.mma_async without a wgmma.fence before the warp's first one");
    for (u32 slot : accumulators) {
        check_fenced(w, slot);
        if (w.tensor_registers[slot / kSlotUnit].source_of > w.tensor_waited)
            fault(w, -1,
                  "wgmma.mma_async accumulates in a register of A of a wgmma in flight; wgmma.wait_group "
                  "first");
    }
    for (u32 slot : a) check_fenced(w, slot);
    if (tensor_results_in_flight(w, a))
        fault(w, -1,
              "wgmma.mma_async reads A from an accumulator register of a wgmma in flight; wgmma.wait_group "
              "first");
}

void take_tensor_registers(Warp& w, std::span<const u32> accumulators, std::span<const u32> a) {
    const u32 number = w.tensor_issued + 1;
    for (u32 slot : accumulators) w.tensor_registers[slot / kSlotUnit].result_of = number;
    for (u32 slot : a) w.tensor_registers[slot / kSlotUnit].source_of = number;
}

bool tensor_results_in_flight(const Warp& w, std::span<const u32> slots) {
    for (u32 slot : slots) {
        if (w.tensor_registers[slot / kSlotUnit].result_of > w.tensor_waited) return true;
    }
    return false;
}

void guard_tensor_registers(Program& program, u32 pc, std::vector<u32> slots) {
    Op& op = program.code[pc];
    program.guarded.resize(program.code.size());
    program.guarded[pc] = {op.run, std::move(slots)};
    op.run = run_guarded;
}

}  // namespace deep_gemm::emulator
