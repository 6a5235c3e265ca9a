#include "emulator/async/mbarrier.h"

#include "base/error.h"

namespace deep_gemm::emulator::mbarrier {

namespace {

constexpr u32 kPendingShift = 1, kExpectedShift = 21, kTransactionsShift = 41, kLiveShift = 63;
constexpr u64 kTransactionsMask = (u64{1} << 22) - 1;

State load(u64 word, const char* what) {
    DG_CHECK(is_valid(word), emulator,
             "{}: the word {:#018x} is not an initialised mbarrier; call mbarrier.init, make it visible to "
             "this thread, and "
             "let nothing else write there",
             what, word);
    return unpack(word);
}

void store(u64& word, State state) {
    if (state.pending == 0 && state.transactions == 0) {
        state.phase ^= 1;
        state.pending = state.expected;
    }
    word = pack(state);
}

void take_arrivals(State& state, u32 count, const char* what) {
    DG_CHECK(count >= 1 && count <= state.pending, emulator,
             "{}: {} arrivals while {} of {} are pending in phase {}; the count given to mbarrier.init is "
             "too small, or "
             "too many threads arrive",
             what, count, state.pending, state.expected, state.phase);
    state.pending -= count;
}

void add_transactions(State& state, i64 bytes, const char* what) {
    const i64 sum = state.transactions + bytes;
    DG_CHECK(sum >= -kMaxTransactions && sum <= kMaxTransactions, emulator,
             "{}: transaction count {} after {:+} bytes, expected within +-{}; split the copies over several "
             "barriers",
             what, sum, bytes, kMaxTransactions);
    state.transactions = static_cast<i32>(sum);
}

}  // namespace

State unpack(u64 word) {
    // Shift the sign of the 22-bit field up and back down.
    const i64 transactions = static_cast<i64>(word << 1) >> (64 - 22);
    return {.phase = static_cast<u32>(word & 1),
            .pending = static_cast<u32>(word >> kPendingShift & kMaxArrivals),
            .expected = static_cast<u32>(word >> kExpectedShift & kMaxArrivals),
            .transactions = static_cast<i32>(transactions),
            .live = (word >> kLiveShift) != 0};
}

u64 pack(const State& state) {
    return u64{state.phase} | u64{state.pending} << kPendingShift | u64{state.expected} << kExpectedShift |
           (static_cast<u64>(static_cast<i64>(state.transactions)) & kTransactionsMask)
               << kTransactionsShift |
           u64{state.live} << kLiveShift;
}

bool is_valid(u64 word) {
    const State state = unpack(word);
    // A dropped barrier may have expected == 0; pending may exceed expected only through add_pending.
    const bool idle = state.pending == 0 && state.transactions == 0;
    return state.live && !(idle && state.expected != 0) && state.transactions >= -kMaxTransactions;
}

void init(u64& word, u32 count) {
    DG_CHECK(count >= 1 && count <= kMaxArrivals, emulator, "mbarrier.init: count {}, expected 1 to {}",
             count, kMaxArrivals);
    word = pack({.phase = 0, .pending = count, .expected = count, .transactions = 0, .live = true});
}

void invalidate(u64& word) {
    static_cast<void>(load(word, "mbarrier.inval"));
    word = 0;
}

u64 arrive(u64& word, u32 count) {
    const u64 token = word;
    State state = load(word, "mbarrier.arrive");
    take_arrivals(state, count, "mbarrier.arrive");
    store(word, state);
    return token;
}

u64 arrive_expect_tx(u64& word, u32 bytes, u32 count) {
    const u64 token = word;
    State state = load(word, "mbarrier.arrive.expect_tx");
    add_transactions(state, bytes, "mbarrier.arrive.expect_tx");
    take_arrivals(state, count, "mbarrier.arrive.expect_tx");
    store(word, state);
    return token;
}

u64 arrive_drop(u64& word, u32 count) {
    const u64 token = word;
    State state = load(word, "mbarrier.arrive_drop");
    take_arrivals(state, count, "mbarrier.arrive_drop");
    DG_CHECK(count <= state.expected, emulator, "mbarrier.arrive_drop: {} drops of {} expected arrivals",
             count, state.expected);
    state.expected -= count;
    store(word, state);
    return token;
}

void expect_tx(u64& word, u32 bytes) {
    State state = load(word, "mbarrier.expect_tx");
    add_transactions(state, bytes, "mbarrier.expect_tx");
    store(word, state);
}

void complete_tx(u64& word, u32 bytes) {
    State state = load(word, "mbarrier.complete_tx");
    add_transactions(state, -static_cast<i64>(bytes), "mbarrier.complete_tx");
    store(word, state);
}

void add_pending(u64& word) {
    State state = load(word, "cp.async.mbarrier.arrive");
    DG_CHECK(state.pending < kMaxArrivals, emulator, "cp.async.mbarrier.arrive: pending count exceeds {}",
             kMaxArrivals);
    state.pending += 1;
    store(word, state);
}

bool test_parity(u64 word, u32 parity) {
    return load(word, "mbarrier.test_wait.parity").phase != (parity & 1);
}

bool test(u64 word, u64 token) {
    return load(word, "mbarrier.test_wait").phase != unpack(token).phase;
}

u32 pending_count(u64 token) {
    return unpack(token).pending;
}

std::string describe(u64 word) {
    const State state = unpack(word);
    if (!is_valid(word)) return fmt::format("not an initialised mbarrier ({:#018x})", word);
    return fmt::format("phase {}, {} of {} arrivals pending, {} bytes outstanding", state.phase,
                       state.pending, state.expected, state.transactions);
}

}  // namespace deep_gemm::emulator::mbarrier
