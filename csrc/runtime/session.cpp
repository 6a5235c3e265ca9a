// Session: construction and the feeding of tokens.
#include "runtime/session.h"

#include "runtime/session_guard.h"

#include <algorithm>

namespace deep_gemm::runtime {

namespace {

constexpr u32 kUsualWindow = 3;

SessionOptions checked(SessionOptions options, const ModelFacts& facts) {
    DG_CHECK(options.window <= kMaxWindow, value,
             "session: got a window of {} rows, expected 1 (plain decoding) to {}; pass a smaller window",
             options.window, kMaxWindow);
    DG_CHECK(options.window <= 1 || facts.drafts, value,
             "session: got a window of {} rows, but this {} model has no MTP block that could draft tokens; "
             "expected 1 (plain decoding): pass it",
             options.window, facts.architecture);
    if (options.window == 0) options.window = facts.drafts ? kUsualWindow : 1;
    return options;
}

}  // namespace

Session::Session(std::shared_ptr<const Engine> engine, const SessionOptions& options)
    : engine_(std::move(engine)), options_(checked(options, engine_->facts())) {
    try {
        allocate();
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::driver) throw;
        fail(ErrorKind::driver,
             "session: no room for a context of {} tokens with max_rows {}: {}; load the engine "
             "with less of either",
             engine_->context(), engine_->max_rows(), error.what());
    }
    replay_.emplace(engine_->device());
    stream_ = replay_->stream();
    reset();
}

void Session::allocate() {
    const ModelFacts& facts = engine_->facts();
    Device& device = engine_->device();
    const i64 rows = engine_->max_rows(), vocab = facts.vocab, window = kMaxWindow;
    const auto ints = [&](i64 count) { return DeviceTensor(device, Format::int32, {count}); };
    const auto floats = [&](std::vector<i64> shape) {
        return DeviceTensor(device, Format::fp32, std::move(shape));
    };
    state_ = engine_->make_state({.sequences = 1,
                                  .context = engine_->context(),
                                  .max_rows = engine_->max_rows(),
                                  .drafts = speculative()});
    hidden_ = engine_->make_rows(rows + 1);
    logits_ = floats({window, vocab});
    if (speculative()) {
        mtp_x_ = engine_->make_rows(rows);
        draft_logits_ = floats({1, vocab});
        draft_q_ = floats({window, vocab});
    }
    target_p_ = floats({window, vocab});
    sampling_rows_ = SamplingRows(device, window);
    exchange_ = ints(4 + window), base_ = ints(1), targets_ = ints(window), undo_row_ = ints(1);
    tokens_in_ = ints(rows), positions_ = ints(rows), mtp_tokens_ = ints(rows), mtp_positions_ = ints(rows);
}

void Session::reset() {
    tokens_.clear();
    restore_points_.clear();
    pending_rows_ = 0, logits_row_ = 0, journal_rows_ = 0;
    pending_is_ = Pending::unknown;
    valid_ = true;
    // Row 0 is read, as an idle row, before the first token has a predecessor.
    engine_->device().fill_bytes(hidden_.address(), 0, hidden_.row_bytes(), stream_);
}

u32 Session::sync(std::span<const i32> tokens, bool restore_point) {
    engine_->check_tokens(tokens);
    if (!valid_) reset();
    // Before anything changes; the session needs no more than both its old and its new tokens.
    state_->pages().hold(0, static_cast<u32>(tokens.size()), stream_);
    return guarded([&] {
        const auto common = static_cast<u32>(
            std::mismatch(tokens_.begin(), tokens_.end(), tokens.begin(), tokens.end()).first -
            tokens_.begin());
        if (common < length()) go_back(common);
        const u32 kept = length();
        if (kept < tokens.size()) {
            feed(tokens.subspan(kept), engine_->max_rows(), nullptr);
            if (restore_point) keep_restore_point();
        }
        state_->pages().trim(0, length(), stream_);
        return kept;
    });
}

void Session::feed_anew(std::span<const i32> tokens, u32 chunk, std::vector<float>* all_logits) {
    engine_->check_tokens(tokens);
    DG_CHECK(chunk <= engine_->max_rows(), value,
             "session: got chunks of {} rows, expected at most the engine's max_rows {}; pass fewer, or open "
             "the engine with more max_rows",
             chunk, engine_->max_rows());
    state_->pages().hold(0, static_cast<u32>(tokens.size()), stream_);  // before anything changes
    reset();
    state_->pages().trim(0, static_cast<u32>(tokens.size()), stream_);
    guarded([&] { feed(tokens, chunk ? chunk : engine_->max_rows(), all_logits); });
}

std::vector<float> Session::logits_of(std::span<const i32> tokens, u32 chunk) {
    std::vector<float> all;
    feed_anew(tokens, chunk, &all);
    return all;
}

void Session::feed(std::span<const i32> tokens, u32 chunk, std::vector<float>* all_logits) {
    normalise();
    while (!tokens.empty()) {
        const size_t count = std::min<size_t>(tokens.size(), chunk);
        feed_chunk(tokens.first(count), count == tokens.size(), all_logits);
        tokens = tokens.subspan(count);
    }
}

void Session::feed_chunk(std::span<const i32> tokens, bool last, std::vector<float>* all_logits) {
    const i64 t = static_cast<i64>(tokens.size());
    const i32 first = static_cast<i32>(length());
    write_ints(tokens_in_.rows(0, t), tokens);
    write_ints(base_.view(), std::span(&first, 1));
    fill_positions(positions_.rows(0, t), 0);
    state_->forward(hidden_.rows(1, t), {.t = t,
                                         .tokens = tokens_in_.rows(0, t),
                                         .positions = positions_.rows(0, t),
                                         .observer = trace_ ? &trace_->observe : nullptr,
                                         .stream = stream_});
    if (speculative()) {  // row i: the row of the token before token i, and token i
        fill_positions(mtp_positions_.rows(0, t), -1);
        run_mtp(hidden_.rows(0, t), mtp_x_.rows(0, t), tokens_in_.rows(0, t), mtp_positions_.rows(0, t),
                trace_ && trace_->depth > 0 ? &trace_->observe : nullptr);
    }
    if (trace_) trace_chunk(static_cast<u32>(first), t);
    if (all_logits) {
        for (i64 row = 0; row < t; row += kMaxWindow) {
            const i64 count = std::min<i64>(kMaxWindow, t - row);
            state_->head(hidden_.rows(1 + row, count), logits_.rows(0, count), stream_);
            const size_t old = all_logits->size();
            all_logits->resize(old + static_cast<size_t>(count) * engine_->facts().vocab);
            engine_->device().copy_to_host(std::as_writable_bytes(std::span(*all_logits).subspan(old)),
                                           logits_.address(), stream_);
        }
    }
    if (last) state_->head(hidden_.rows(t, 1), logits_.rows(0, 1), stream_);
    copy(hidden_.rows(0, 1), hidden_.rows(t, 1));
    if (t > 1) copy(hidden_.rows(1, 1), hidden_.rows(t, 1));
    const i32 next = first + static_cast<i32>(t);
    write_ints(base_.view(), std::span(&next, 1));
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    pending_rows_ = 1, logits_row_ = 0, journal_rows_ = 0;
    pending_is_ = Pending::unknown;
}

void Session::force_drafts(std::vector<i32> drafts) {
    DG_CHECK(drafts.size() < kMaxWindow, value,
             "session: got {} drafts, expected at most {}; pass fewer, or a session with a larger window",
             drafts.size(), kMaxWindow - 1);
    for (const i32 token : drafts)
        DG_CHECK(token >= 0 && static_cast<u32>(token) < engine_->facts().vocab, value,
                 "session: got draft {}, expected a token of 0 to {}; pass tokens of the model's vocabulary",
                 token, engine_->facts().vocab - 1);
    forced_drafts_ = std::move(drafts);
}

std::vector<float> Session::read_logits(u32 first, u32 count) {
    require_valid();
    DG_CHECK(!tokens_.empty(), value, "session: no logits before the first token; sync() a prompt first");
    std::vector<float> values(u64{count} * engine_->facts().vocab);
    engine_->device().copy_to_host(std::as_writable_bytes(std::span(values)),
                                   logits_.address() + first * logits_.row_bytes(), stream_);
    return values;
}

std::vector<float> Session::logits() {
    return read_logits(logits_row_, 1);
}

std::vector<float> Session::last_logits() {
    return read_logits(0, logits_row_ + 1);
}

void Session::rewind(u32 length) {
    DG_CHECK(length <= tokens_.size(), value,
             "session: got a rewind to {} tokens, expected at most the {} there are; feed the others first",
             length, tokens_.size());
    const std::vector<i32> kept(tokens_.begin(), tokens_.begin() + length);
    sync(kept);
}

void Session::require_valid() const {
    DG_CHECK(valid_, value, "session: a failure interrupted its last call; sync() or load() starts it anew");
}

}  // namespace deep_gemm::runtime
