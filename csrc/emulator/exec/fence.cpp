// Fences, hints and the scheduling controls: what they order is modelled for the asynchronous proxy only (the
// interpreter is sequentially consistent otherwise).
#include "emulator/exec/collective.h"
#include "emulator/exec/families.h"

namespace deep_gemm::emulator {
namespace {

void nothing(Warp&, const Op&, u32) {}

void fence_async(Warp& w, const Op&, u32) {
    w.async_fence = w.init_fence = ++w.cta->cluster->fence_ticks;
}
void fence_mbarrier_init(Warp& w, const Op&, u32) {
    w.init_fence = ++w.cta->cluster->fence_ticks;
}

void wait_for_dependency(Warp& w, const Op&, u32) {
    w.before_dependency = false;
}
void sleep(Warp& w, const Op&, u32) {
    w.turn_over = true;
}

// A cache policy is an opaque 64-bit value that only travels to other instructions.
void create_policy(Warp& w, const Op& op, u32 mask) {
    each_lane<u64>(slot(w, op.d), mask, [](u32) { return u64{0x12f0000000000000}; });
}

// setmaxnreg: registers move between warps through a pool of the SM; an increase waits until the pool has
// them.
void set_max_registers(Warp& w, const Op& op, u32 mask) {
    if (!whole_warp_present(w, mask)) return;
    const i32 wanted = static_cast<i32>(op.immediate), held = static_cast<i32>(w.max_registers);
    const bool increase = op.flags != 0;
    if (increase ? wanted < held : wanted > held) {
        fault(w, -1, "setmaxnreg.{} to {} registers while the warp has {}", increase ? "inc" : "dec", wanted,
              held);
    }
    const i32 needed = (wanted - held) * static_cast<i32>(kLanes);
    if (needed > w.cta->register_pool) {
        w.block(w.pc - 1, {WaitKind::registers, w.pc - 1, mask, 0, static_cast<u32>(wanted)});
        return;
    }
    w.cta->register_pool -= needed;
    w.max_registers = static_cast<u32>(wanted);
    if (needed < 0) w.cta->cluster->wake();
}

void decode_fence_kind(Decoder& x) {
    if (x.has("mbarrier_init")) {
        x.op.run = fence_mbarrier_init;
    } else if (x.has("proxy") || x.has_prefix("proxy")) {
        x.op.run = x.has("async") || x.has_prefix("async") ? fence_async : nothing;
    } else {
        if (x.has("gpu") || x.has("sys") || x.has("gl")) x.program.communicates = true;
        x.op.run = nothing;
    }
}

}  // namespace

void decode_fence(Decoder& x) {
    const std::string_view root = x.in->root;
    if (root == "fence" || root == "membar") {
        decode_fence_kind(x);
    } else if (root == "setmaxnreg") {
        x.op.immediate = static_cast<i64>(x.immediate(x.operand(0)));
        x.op.flags = x.has("inc") ? 1 : 0;
        if (x.op.immediate < 24 || x.op.immediate > 256 || x.op.immediate % 8 != 0) {
            x.unsupported("the register count must be a multiple of 8 in [24, 256]");
        }
        x.op.run = set_max_registers;
    } else if (root == "nanosleep") {
        x.op.run = sleep;
    } else if (root == "createpolicy") {
        x.op.d = x.reg(x.operand(0), 8);
        x.op.run = create_policy;
    } else {
        const bool waits = root == "griddepcontrol" && x.has("wait");
        x.op.run = waits ? wait_for_dependency
                         : nothing;  // prefetch, discard, applypriority: hints and cross-launch order
    }
}

}  // namespace deep_gemm::emulator
