// Session: one timeline of tokens on an Engine: what was fed, the caches it left, the logits that follow.
// Tokens are fed by sync() and produced by step(), which verifies drafts of the model's MTP block where it
// may: what is produced is the same, token for token and bit for bit, with and without them.
#pragma once

#include "runtime/engine.h"
#include "runtime/replay.h"
#include "runtime/sampling.h"

#include <optional>
#include <span>
#include <vector>

namespace deep_gemm::runtime {

struct SessionOptions {
    u32 window = 0;          // rows of a speculative step, 1 to kMaxWindow; 1: plain decoding; 0: 3 where the
                             // model has an MTP block, else 1
    bool adaptive = false;   // shorter windows while second drafts are rarely accepted
    bool strict = false;     // verify and catch up one row at a time, in the very launches of plain decoding
    bool graphs = true;      // replay a step as one graph
    u32 restore_points = 2;  // ends of prompts that sync() can go back to; fewer where memory is short
};

struct Step {
    std::vector<i32> tokens;  // now part of the session, in order
    u32 drafted = 0, accepted = 0;
};

// One thing that the rows of a text left behind, `width` values of four bytes each.
struct Traced {
    std::string name;
    bool floats = false;  // else int32
    u32 width = 0;
    std::vector<i32> values;  // [rows, width]; of floats, their bits
};

struct SessionStats {
    u64 steps = 0, tokens = 0, drafted = 0, accepted = 0, rollbacks = 0, graph_replays = 0;
};

struct SavedHeader;  // device_state.cpp

class Session {
  public:
    Session(std::shared_ptr<const Engine> engine, const SessionOptions& options);
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    [[nodiscard]] const Engine& engine() const { return *engine_; }
    [[nodiscard]] const std::vector<i32>& tokens() const { return tokens_; }
    [[nodiscard]] const SessionStats& stats() const { return stats_; }
    [[nodiscard]] u32 room() const { return engine_->context() - length(); }  // tokens that still fit

    // Makes the session hold exactly `tokens`: keeps the longest common prefix that its state can go back to,
    // and feeds the rest. Returns the number of tokens that were kept. Token ids outside the vocabulary, more
    // tokens than the context, or than the engine has pages for: Error(value), and nothing changed.
    // `restore_point`: whether their end becomes one; not for a part of a prompt, which would displace another.
    u32 sync(std::span<const i32> tokens, bool restore_point = true);

    // Adds 1 to `budget` tokens (budget >= 1): the pending token, then the accepted drafts. Stops at `eos`
    // (negative: never), which is then the last token. Needs a token to follow; a full context, or no page
    // left for the next token, is Error(value), and nothing changed.
    Step step(u32 budget, i32 eos = -1);

    // Takes effect at the next step. A token that a rejected draft has left to come is drawn already and stays:
    // drawn anew, from all of p, it would have another distribution.
    void set_sampling(const Sampling& sampling);

    // Logits, fp32 [vocab], of the token after the last one.
    [[nodiscard]] std::vector<float> logits();
    // Those that followed each token of the last step, [tokens, vocab]; after sync(), of the last token.
    [[nodiscard]] std::vector<float> last_logits();
    // sync() from nothing, in chunks of `chunk` rows (0: as large as the engine allows), with the logits that
    // follow each of the tokens, [count, vocab]: for tests and perplexity.
    [[nodiscard]] std::vector<float> logits_of(std::span<const i32> tokens, u32 chunk = 0);

    // sync() from nothing, and all that tests compare with other implementations:
    //   logits            that follow each token
    //   layers.3.experts  the experts of each token
    //   layers.3.picks    compressed rows that the indexer chose, ascending, then -1
    // and of the MTP block, where the session drafts, `depth` times (0: not at all):
    //   mtp.0.experts     of row i, which is made of the streams of token i - 1, and of token i
    //   mtp.0.logits.2    of row i: the second token after token i, drafted over the true token i + 1. Rows
    //   end
    //                     with the text. Row 0, without a predecessor, means nothing
    // A depth above 1 needs chunks of one row.
    [[nodiscard]] std::vector<Traced> trace_of(std::span<const i32> tokens, u32 chunk = 0, u32 depth = 0);

    // Back to the first `length` tokens: within the last step exactly, else through sync().
    void rewind(u32 length);

    // The state after the present tokens as one file: versioned, with a checksum, for this model and these
    // options only. With the same sampling, a session that load()s it continues as this one does.
    void save(const Path& path);
    void load(const Path& path);

    // Of all that later tokens depend on: frontiers, visible rows, counters. Equal states have equal digests.
    [[nodiscard]] std::string state_digest();
    // The same for each tensor of the state, by name.
    [[nodiscard]] std::vector<std::pair<std::string, std::string>> state_parts();
    // Flips one bit of a part, for tests of whatever compares states.
    void damage(std::string_view part);

    // The last step's drafts, accepted or not.
    [[nodiscard]] const std::vector<i32>& last_drafts() const { return last_drafts_; }
    // Replaces the drafts of the next step (as many as it has), which must be greedy; for tests.
    void force_drafts(std::vector<i32> drafts);

  private:
    struct RestorePoint {
        u32 length = 0;
        DeviceTensor bytes;  // fixed_state(), one piece after the other
    };
    [[nodiscard]] u32 length() const { return static_cast<u32>(tokens_.size()); }
    [[nodiscard]] bool speculative() const { return options_.window > 1; }
    [[nodiscard]] bool sampled() const { return !sampling_.greedy(); }

    // session.cpp: feeding
    void allocate();
    void reset();
    void feed_anew(std::span<const i32> tokens, u32 chunk, std::vector<float>* all_logits);
    void feed(std::span<const i32> tokens, u32 chunk, std::vector<float>* all_logits);
    void feed_chunk(std::span<const i32> tokens, bool last, std::vector<float>* all_logits);
    void choose_pending();
    void ensure_pending();
    struct Trace {
        Observer observe;
        u32 depth = 0;
        std::span<const i32> text;
    };
    void trace_chunk(u32 first, i64 t);
    void trace_logits(const std::string& name, bool drafts, const DeviceTensor& x, i64 first, i64 t);
    [[nodiscard]] std::vector<float> read_logits(u32 first, u32 count);
    template <typename Work>
    auto guarded(Work&& work);  // an exception leaves the session invalid until sync() or load()
    void require_valid() const;

    // step.cpp: decoding
    [[nodiscard]] u32 choose_window(u32 budget) const;
    [[nodiscard]] u32 reserve(u32 rows);
    void run_step(u32 rows);
    void issue_step(u32 rows);
    void draft(u32 rows);
    void catch_up(i64 rows);
    void run_mtp(const TensorView& hidden, const TensorView& x, const TensorView& tokens,
                 const TensorView& positions, const Observer* observer = nullptr);
    void draw_draft(u32 index, const TensorView& x, const TensorView& position);
    void verify(u32 rows);
    void run_trunk(const TensorView& x, const TensorView& tokens, const TensorView& positions,
                   const TensorView& logits, u32 rows);
    Step finish_step(u32 rows, i32 eos);
    void undo_to_row(u32 row);
    void flush_mtp();
    void adapt(u32 rows, u32 accepted);
    void fill_positions(const TensorView& positions, i32 offset);

    // device_state.cpp: copies, restore points, files
    void copy(const TensorView& to, const TensorView& from);
    void write_ints(const TensorView& to, std::span<const i32> values);
    [[nodiscard]] std::vector<i32> read_ints(const TensorView& from);
    void normalise();
    [[nodiscard]] std::vector<TensorView> fixed_state() const;
    [[nodiscard]] std::vector<TensorView> pieces_to_save();
    void keep_restore_point();
    [[nodiscard]] DeviceTensor memory_for(const std::vector<TensorView>& pieces) const;
    void go_back(u32 length);  // to at most `length` tokens
    void check_header(const SavedHeader& header, const std::string& name) const;
    [[nodiscard]] u64 largest_state_bytes() const;
    void check_start(std::string_view start, u64 file_bytes, const std::string& name) const;
    void visit_visible(const ModelState::NamedVisit& visit) const;

    std::shared_ptr<const Engine> engine_;
    SessionOptions options_;
    Sampling sampling_;
    std::vector<i32> tokens_;
    SessionStats stats_;
    bool valid_ = true;
    driver::Stream stream_ = nullptr;

    std::unique_ptr<ModelState> state_;
    DeviceTensor hidden_;  // [max_rows + 1, row_shape]: the trunk's last rows, see pending_rows_
    DeviceTensor mtp_x_;   // [max_rows, row_shape]: the MTP block's
    DeviceTensor logits_, draft_logits_;  // fp32 [kMaxWindow, vocab], [1, vocab]
    DeviceTensor target_p_, draft_q_;     // fp32 [kMaxWindow, vocab]
    SamplingRows sampling_rows_;
    DeviceTensor exchange_;  // int32: record [4], window [kMaxWindow]; record[1] is the pending token
    DeviceTensor base_;      // int32 [1]: the position of the next token
    DeviceTensor tokens_in_, positions_, mtp_tokens_, mtp_positions_, targets_, undo_row_;

    // hidden_ rows 1 to pending_rows_ are those of the last pending_rows_ tokens: their MTP pass waits
    // for the token that follows the last one. With one pending row, row 0 is its copy, where feed_chunk()
    // wants it.
    u32 pending_rows_ = 0;
    const Trace* trace_ = nullptr;  // of feed_chunk(); usually none
    u32 logits_row_ = 0;            // of logits_: follows the last token
    // The token after the last one. `rest`: drawn from what a rejected draft left of p, which only that step
    // knew; others are functions of the logits and the sampling.
    enum class Pending : u8 { unknown, chosen, rest };
    Pending pending_is_ = Pending::unknown;
    i32 pending_ = -1;
    u32 step_base_ = 0,
        journal_rows_ = 0;  // the last step's first position, rows that undo_to_row() can go to
    std::vector<i32> forced_drafts_, last_drafts_;
    double second_draft_rate_ = 1;
    bool shortened_ = false;
    u32 steps_since_probe_ = 0;
    std::vector<RestorePoint> restore_points_;
    std::optional<Replay> replay_;  // by (pending rows, window rows); of the present sampling
};

}  // namespace deep_gemm::runtime
