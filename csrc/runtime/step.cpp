// Session: one decoding step, plain or speculative, as a fixed list of operations that can be replayed as a
// graph.
//
// A step of n rows at length L, with k pending rows: the MTP block runs over the k tokens whose successor is
// known by now (the last of them is followed by the pending token), which also drafts token L + 1; its own
// streams draft further tokens; the trunk verifies the pending token and the drafts in one pass; the device
// compares and takes the caches back to the last accepted row. Window rows need no undo: rings are long
// enough for rejected rows to fall on rows that nobody sees any more, and compressed rows beyond the length
// are invisible until they are written again.
#include "op/model_ops.h"
#include "runtime/session.h"
#include "runtime/session_guard.h"

#include <algorithm>

namespace deep_gemm::runtime {

namespace {

constexpr u32 kPlainPurpose = 0, kDraftPurpose = 3;  // of random numbers; 0 to 2 are those of accept_drafts
// Adaptive depth: an average of how often a second draft follows an accepted first one, with hysteresis.
constexpr double kRateWeight = 0.25, kShorten = 0.30, kLengthen = 0.35;
constexpr u32 kProbeEvery = 16;

}  // namespace

u32 Session::choose_window(u32 budget) const {
    u32 rows = speculative() ? options_.window : 1;
    if (options_.adaptive && shortened_ && steps_since_probe_ < kProbeEvery) rows = std::min(rows, 2u);
    if (!forced_drafts_.empty()) rows = static_cast<u32>(forced_drafts_.size()) + 1;
    return std::min({rows, budget, room()});
}

// The cache's pages for the step: of fewer rows where they are short, which changes nothing but the speed.
u32 Session::reserve(u32 rows) {
    PageTable& pages = state_->pages();
    if (pages.try_hold(0, length() + rows, stream_)) return rows;
    if (pages.capacity(0) == length()) pages.hold(0, length() + 1, stream_);
    return std::min(rows, pages.capacity(0) - length());
}

Step Session::step(u32 budget, i32 eos) {
    require_valid();
    DG_CHECK(!tokens_.empty(), value, "session: nothing to continue; sync() a prompt first");
    DG_CHECK(budget >= 1, value, "session: got a budget of 0 tokens, expected at least 1; ask for one more");
    DG_CHECK(room() >= 1, value,
             "session: the context of {} tokens is full; rewind or load with a larger context",
             engine_->context());
    DG_CHECK(forced_drafts_.empty() || !sampled(), value,
             "session: got drafts for a step at temperature {}, expected 0; set_sampling() first",
             sampling_.temperature);
    ensure_pending();
    const bool ends = eos >= 0 && pending_ == eos;  // its successors will not be asked for
    const u32 rows = reserve(ends ? 1 : choose_window(budget));
    return guarded([&] {
        run_step(rows);
        Step result = finish_step(rows, eos);
        forced_drafts_.clear();
        return result;
    });
}

void Session::ensure_pending() {
    if (pending_is_ == Pending::unknown) guarded([&] { choose_pending(); });
    DG_CHECK(pending_ >= 0, value,
             "session: the logits after {} tokens hold NaN; the weights or the cache are damaged. Nothing "
             "was added",
             tokens_.size());
}

void Session::choose_pending() {
    const TensorView logits = logits_.rows(logits_row_, 1), token = exchange_.rows(1, 1);
    if (sampled()) {
        const TensorView p = target_p_.rows(0, 1), position = mtp_positions_.rows(0, 1);
        sampling_rows_.distribution(logits, p, stream_);
        fill_positions(position, -1);  // as accept_drafts does: of the row whose distribution it is
        sampling_rows_.draw(p, position, token, kPlainPurpose, stream_);
    } else {
        op::argmax({.logits = logits, .tokens = token, .stream = stream_});
    }
    pending_ = read_ints(token)[0];
    pending_is_ = Pending::chosen;
}

void Session::run_step(u32 rows) {
    if (!options_.graphs || !forced_drafts_.empty()) return issue_step(rows);
    if (replay_->run({pending_rows_, rows}, [&] { issue_step(rows); })) ++stats_.graph_replays;
}

void Session::issue_step(u32 rows) {
    const TensorView next = exchange_.rows(1, 1);
    if (speculative()) {
        const i64 known = pending_rows_ - 1;  // accepted drafts of the step before
        if (known > 0) copy(mtp_tokens_.rows(0, known), exchange_.rows(5, known));
        copy(mtp_tokens_.rows(known, 1), next);
    }
    copy(exchange_.rows(4, 1), next);
    if (speculative()) draft(rows);
    if (!forced_drafts_.empty() && rows > 1)
        write_ints(exchange_.rows(5, rows - 1), std::span(forced_drafts_).first(rows - 1));
    verify(rows);
}

void Session::draft(u32 rows) {
    const i64 k = pending_rows_;
    catch_up(k);
    // Each further draft continues from the streams and the token of the one before.
    const TensorView x = mtp_x_.rows(k - 1, 1), position = mtp_positions_.rows(k - 1, 1);
    for (u32 i = 1; i < rows; ++i) {
        if (i > 1) {
            fill_positions(position, static_cast<i32>(i) - 2);
            run_mtp(x, x, exchange_.rows(4 + i - 1, 1), position);
        }
        draw_draft(i, x, position);
    }
}

// The MTP block over the first of the pending rows, whose next tokens lie in mtp_tokens_.
void Session::catch_up(i64 rows) {
    fill_positions(mtp_positions_.rows(0, rows), -static_cast<i32>(pending_rows_));
    const i64 at_once = options_.strict ? 1 : rows;
    for (i64 i = 0; i < rows; i += at_once)
        run_mtp(hidden_.rows(1 + i, at_once), mtp_x_.rows(i, at_once), mtp_tokens_.rows(i, at_once),
                mtp_positions_.rows(i, at_once));
}

void Session::draw_draft(u32 index, const TensorView& x, const TensorView& position) {
    const TensorView token = exchange_.rows(4 + index, 1), logits = draft_logits_.view();
    state_->draft_head(x, logits, stream_);
    if (!sampled()) return op::argmax({.logits = logits, .tokens = token, .stream = stream_});
    const TensorView q = draft_q_.rows(index - 1, 1);
    sampling_rows_.distribution(logits, q, stream_);
    sampling_rows_.draw(q, position, token, kDraftPurpose, stream_);
}

void Session::run_mtp(const TensorView& hidden, const TensorView& x, const TensorView& tokens,
                      const TensorView& positions, const Observer* observer) {
    state_->draft(
        hidden, x,
        {.t = x.shape[0], .tokens = tokens, .positions = positions, .observer = observer, .stream = stream_});
}

void Session::verify(u32 rows) {
    const i64 n = rows;
    const TensorView window = exchange_.rows(4, n), record = exchange_.rows(0, 4),
                     positions = positions_.rows(0, n);
    const TensorView x = hidden_.rows(1, n), logits = logits_.rows(0, n), targets = targets_.rows(0, n);
    fill_positions(positions, 0);
    run_trunk(x, window, positions, logits, rows);
    op::AcceptArguments accept;
    accept.tokens = window, accept.positions = positions, accept.record = record, accept.stream = stream_;
    if (sampled()) {
        sampling_rows_.distribution(logits, target_p_.rows(0, n), stream_);
        accept.p = target_p_.rows(0, n);
        if (n > 1) accept.q = draft_q_.rows(0, n - 1);
        accept.seed = sampling_rows_.seed();
    } else {
        op::argmax({.logits = logits, .tokens = targets, .stream = stream_});
        accept.targets = targets;
    }
    op::accept_drafts(accept);
    if (n > 1) state_->restore(exchange_.rows(0, 1), stream_);
    copy(base_.view(), exchange_.rows(2, 1));
}

void Session::run_trunk(const TensorView& x, const TensorView& tokens, const TensorView& positions,
                        const TensorView& logits, u32 rows) {
    const i64 n = rows, at_once = options_.strict ? 1 : n;
    for (i64 i = 0; i < n; i += at_once) {
        state_->forward(rows_of(x, i, at_once), {.t = at_once,
                                                 .tokens = rows_of(tokens, i, at_once),
                                                 .positions = rows_of(positions, i, at_once),
                                                 .journal = n > 1,
                                                 .journal_row = i,
                                                 .stream = stream_});
        state_->head(rows_of(x, i, at_once), rows_of(logits, i, at_once), stream_);
    }
}

Step Session::finish_step(u32 rows, i32 eos) {
    const std::vector<i32> seen = read_ints(exchange_.view());
    const u32 accepted = static_cast<u32>(seen[0]);
    DG_CHECK(accepted < rows && static_cast<u32>(seen[2]) == length() + accepted + 1, internal,
             "session: {} of {} drafts accepted at position {}, next position {}", accepted, rows - 1,
             length(), seen[2]);
    step_base_ = length();
    last_drafts_.assign(seen.begin() + 5, seen.begin() + 4 + rows);
    Step step{
        .tokens = {seen.begin() + 4, seen.begin() + 5 + accepted}, .drafted = rows - 1, .accepted = accepted};
    tokens_.insert(tokens_.end(), step.tokens.begin(), step.tokens.end());
    pending_rows_ = accepted + 1, logits_row_ = accepted;
    journal_rows_ = rows > 1 ? accepted + 1 : 0;
    const bool rejected = accepted + 1 < rows;
    pending_ = seen[1], pending_is_ = rejected && sampled() ? Pending::rest : Pending::chosen;
    if (rejected) ++stats_.rollbacks;
    adapt(rows, accepted);
    if (const auto end = std::find(step.tokens.begin(), step.tokens.end(), eos);
        eos >= 0 && end != step.tokens.end()) {
        const u32 row = static_cast<u32>(end - step.tokens.begin());
        if (row < accepted) undo_to_row(row);  // drafts beyond the end
        step.tokens.resize(row + 1);
        step.accepted = row;
    }
    ++stats_.steps;
    stats_.tokens += step.tokens.size(), stats_.drafted += step.drafted, stats_.accepted += step.accepted;
    return step;
}

void Session::undo_to_row(u32 row) {
    const i32 index = static_cast<i32>(row), next = static_cast<i32>(step_base_ + row + 1);
    write_ints(undo_row_.view(), std::span(&index, 1));
    write_ints(base_.view(), std::span(&next, 1));
    state_->restore(undo_row_.view(), stream_);
    tokens_.resize(step_base_ + row + 1);
    pending_rows_ = row + 1, logits_row_ = row, journal_rows_ = row + 1;
    pending_is_ = Pending::unknown;
    std::erase_if(restore_points_, [&](const RestorePoint& point) { return point.length > length(); });
}

void Session::adapt(u32 rows, u32 accepted) {
    steps_since_probe_ = rows >= 3 ? 0 : steps_since_probe_ + 1;
    if (rows < 3 || accepted < 1) return;
    second_draft_rate_ += kRateWeight * ((accepted >= 2 ? 1.0 : 0.0) - second_draft_rate_);
    if (second_draft_rate_ < kShorten) shortened_ = true;
    if (second_draft_rate_ > kLengthen) shortened_ = false;
}

void Session::fill_positions(const TensorView& positions, i32 offset) {
    op::fill_positions(
        {.base = base_.view(), .count = {}, .positions = positions, .offset = offset, .stream = stream_});
}

// Runs the MTP block over all pending rows whose next token is known, so that one is left. The next step may
// run it over them once more: they leave the same.
void Session::flush_mtp() {
    const i64 known = static_cast<i64>(pending_rows_) - 1;
    if (known <= 0 || !speculative()) return;
    write_ints(mtp_tokens_.rows(0, known), std::span(tokens_).last(static_cast<size_t>(known)));
    catch_up(known);
}

void Session::set_sampling(const Sampling& sampling) {
    check_sampling(sampling);
    if (sampling == sampling_) return;
    sampling_rows_.set(sampling, stream_);
    if (sampling.greedy() != sampling_.greedy()) replay_->forget();  // other operations
    sampling_ = sampling;
    if (pending_is_ != Pending::rest) pending_is_ = Pending::unknown;
}

}  // namespace deep_gemm::runtime
