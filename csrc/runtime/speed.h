// ModelSpeed: how long the passes of a model take, with random weights (synthetic.h) and caches that hold
// random rows of a context that was never computed. Each pass is replayed as one graph, as sessions do.
#pragma once

#include "runtime/engine.h"
#include "runtime/launch_probe.h"
#include "runtime/replay.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace deep_gemm::runtime {

enum class PassKind : u8 {
    decode,   // one row for each of `rows` sequences at the end of the context, and their logits
    verify,   // `rows` rows of one sequence, their logits, acceptance and rollback
    draft,    // one row of the MTP block, its logits and their maximum
    iterate,  // a whole speculative step: the MTP block over `pending` rows, `rows` - 1 drafts, and verify
    prefill,  // the first `rows` tokens of one sequence, and the logits of the last
    head,     // the logits of `rows` rows and their maxima, which decode and verify end with
};

struct SpeedOptions {
    std::string config;  // text of a config.json
    Numerics numerics = Numerics::released;
    u32 context = 4096;
    u32 sequences = 1;  // most rows of PassKind::decode
    u32 max_rows = 64;  // of any pass
};

struct LaunchTime {
    std::string kernel;
    u32 blocks = 0, threads = 0;
    float us = 0;  // what the pass takes longer for it
};

class ModelSpeed {
  public:
    ModelSpeed(driver::Device& device, const SpeedOptions& options);
    ~ModelSpeed();

    [[nodiscard]] const Engine& engine() const { return *engine_; }
    // (name, bytes on disk) of every tensor of the model.
    [[nodiscard]] const std::vector<std::pair<std::string, u64>>& tensors() const { return tensors_; }
    // The kernels that a pass launches, in order.
    [[nodiscard]] std::vector<std::string> kernels(PassKind kind, u32 rows);
    // Median over `repeats` replays. `pending`, of PassKind::iterate: tokens that the step before added.
    [[nodiscard]] float pass_us(PassKind kind, u32 rows, u32 repeats, u32 pending = 1);
    // The launches of a pass in order. Prefixes of the pass are timed, each after a fill that empties the L2
    // cache; a launch's time is what its prefix takes longer than the one before.
    [[nodiscard]] std::vector<LaunchTime> launch_times(PassKind kind, u32 rows, u32 repeats);

  private:
    void fill_caches();
    void issue(PassKind kind, u32 rows, u32 pending = 1);
    void issue_drafts(u32 pending, u32 drafts);
    [[nodiscard]] float replay_us(const std::function<void()>& capture, u32 repeats);

    LaunchProbe& device_;
    SpeedOptions options_;
    std::vector<std::pair<std::string, u64>> tensors_;
    std::unique_ptr<const Engine> engine_;
    std::unique_ptr<ModelState> state_;
    DeviceTensor hidden_, logits_, draft_x_, draft_logits_;
    DeviceTensor tokens_, decode_positions_, decode_sequences_, verify_positions_, prefill_positions_,
        targets_, record_;
    Replay replay_;  // for its stream
    driver::Stream stream_ = replay_.stream();
};

}  // namespace deep_gemm::runtime
