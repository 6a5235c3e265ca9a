// The mbarrier state machine, on the 8 bytes it occupies in shared memory. A phase completes when no arrival
// is pending and the transaction count is zero; completing flips the phase bit and re-arms the arrival count.
//
//   bits   0      phase            parity of the phase in progress
//          1..20  pending          arrivals still missing in this phase
//         21..40  expected         arrivals of a phase
//         41..62  transactions     bytes expected minus bytes completed, two's complement
//         63      live             set by init, cleared by inval
//
// The bits are the emulator's own; kernels may only pass the address around. Faults throw ErrorKind::emulator
// with a sentence; the caller adds who did it. "Used before init" needs the live bit and the caller's
// knowledge of which shared memory was ever written (the word below may be poison).
#pragma once

#include <deep_gemm/spec/types.h>

#include <string>

namespace deep_gemm::emulator::mbarrier {

constexpr u32 kMaxArrivals = (1u << 20) - 1;
constexpr i64 kMaxTransactions = (1 << 20) - 1;

struct State {
    u32 phase = 0, pending = 0, expected = 0;
    i32 transactions = 0;
    bool live = false;
};

[[nodiscard]] State unpack(u64 word);
[[nodiscard]] u64 pack(const State& state);
// Live, and the fields are ones that the operations below can produce.
[[nodiscard]] bool is_valid(u64 word);

void init(u64& word, u32 count);
void invalidate(u64& word);

// Arrive-on; returns the state token (the word before), for test(). Also cp.async.mbarrier.arrive.noinc when
// it lands.
u64 arrive(u64& word, u32 count = 1);
u64 arrive_expect_tx(u64& word, u32 bytes, u32 count = 1);
u64 arrive_drop(u64& word, u32 count = 1);
void expect_tx(u64& word, u32 bytes);
void complete_tx(u64& word, u32 bytes);
// cp.async.mbarrier.arrive without .noinc: one more arrival is pending until the copies land and arrive() is
// called.
void add_pending(u64& word);

// Has the phase with this parity completed? (mbarrier.test_wait.parity, try_wait.parity)
[[nodiscard]] bool test_parity(u64 word, u32 parity);
// Has the phase of this token completed? (mbarrier.test_wait)
[[nodiscard]] bool test(u64 word, u64 token);
[[nodiscard]] u32 pending_count(u64 token);

// "phase 1, 3 of 8 arrivals pending, 16384 bytes outstanding"
[[nodiscard]] std::string describe(u64 word);

}  // namespace deep_gemm::emulator::mbarrier
