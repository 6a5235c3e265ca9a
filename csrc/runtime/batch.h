// Batch: several timelines of one engine, decoded together: one pass gives each of them its next token. Every
// operation computes a row from that row and its own cache alone, so a slot's tokens and logits are those of
// a Session that decodes plainly, bit for bit, whatever the other slots do.
#pragma once

#include "runtime/engine.h"
#include "runtime/replay.h"
#include "runtime/sampling.h"

#include <span>

namespace deep_gemm::runtime {

class Batch {
  public:
    // Caches for `slots` timelines, at most the engine's max_rows.
    Batch(std::shared_ptr<const Engine> engine, u32 slots);

    [[nodiscard]] const Engine& engine() const { return *engine_; }
    [[nodiscard]] u32 num_slots() const { return static_cast<u32>(slots_.size()); }
    [[nodiscard]] const std::vector<i32>& tokens(u32 slot) const { return at(slot).tokens; }
    [[nodiscard]] u32 room(u32 slot) const {
        return engine_->context() - static_cast<u32>(tokens(slot).size());
    }

    // Starts a slot anew with these tokens; it takes part in steps from then on. Error(value) for no tokens,
    // ids outside the vocabulary, more than the context, or than the engine has pages for; the slot is then
    // as it was. A failing device call leaves it stopped.
    void start(u32 slot, std::span<const i32> tokens, const Sampling& sampling);
    // Takes a slot out of the steps; its pages of the cache are free for others.
    void stop(u32 slot);

    // The next token of every slot that takes part and has room; -1 for the others. Error(value), with
    // nothing added to any: where the logits of a slot hold NaN, which stops that slot, and where the engine
    // has no page left for a slot's next token.
    std::vector<i32> step();

    // Logits, fp32 [vocab], of the token after the slot's last one.
    [[nodiscard]] std::vector<float> logits(u32 slot) const;

  private:
    struct Slot {
        std::vector<i32> tokens;
        Sampling sampling;
        SamplingRows parameters;
        bool active = false;
    };
    [[nodiscard]] const Slot& at(u32 slot) const;
    [[nodiscard]] Slot& at(u32 slot) { return const_cast<Slot&>(std::as_const(*this).at(slot)); }
    void put(const DeviceTensor& target, std::span<const i32> values);
    [[nodiscard]] Pass pass(i64 t) const;
    void feed(u32 slot, std::span<const i32> tokens);
    [[nodiscard]] std::vector<i32> choose(std::span<const i32> slots);
    void issue(u32 rows);
    void run(std::span<const i32> slots);
    // Does `work`; where it throws, these slots are stopped, and the error says so.
    template <typename Work>
    void guarded(std::span<const i32> slots, Work&& work);

    std::shared_ptr<const Engine> engine_;
    std::vector<Slot> slots_;
    std::unique_ptr<ModelState> state_;
    DeviceTensor hidden_;                // [max_rows, row_shape]
    DeviceTensor logits_, pass_logits_;  // fp32 [slots, vocab]: of a slot, of a row of the pass
    DeviceTensor probabilities_;         // fp32 [1, vocab]
    DeviceTensor tokens_, positions_, sequences_, next_;  // int32 [max_rows]
    Replay replay_;                                       // by rows of the pass; destroyed first
    driver::Stream stream_ = replay_.stream();
};

}  // namespace deep_gemm::runtime
