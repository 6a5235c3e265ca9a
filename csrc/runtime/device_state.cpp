// Session: moving its state about: small copies, restore points, files, and the digest that tests compare.
#include "base/hash.h"
#include "runtime/session.h"
#include "runtime/session_guard.h"

#include <algorithm>
#include <cstring>

namespace deep_gemm::runtime {

// What a file begins with; then the tokens, the pieces of the state, and a checksum of it all.
struct SavedHeader {
    char magic[8];
    u32 version, num_tokens;
    char fingerprint[32];
    u64 state_bytes;
    u32 drafts;   // whether the MTP block's ring is there
    i32 pending;  // the next token where it is drawn from the rest of p; else -1, the logits give it
    double second_draft_rate;
    u32 shortened, steps_since_probe;
};
static_assert(sizeof(SavedHeader) == 80, "no padding: the checksum covers it");

namespace {

constexpr char kMagic[8] = {'D', 'G', 'S', 'E', 'S', 'S', 'N', '\n'};
constexpr u64 kChecksumBytes = 32;
constexpr u32 kVersion = 3;  // 3: the pending token and how long drafts are

u64 address_of(const TensorView& view) {
    return reinterpret_cast<u64>(view.data);
}

u64 bytes_of(const TensorView& view) {
    u64 bits = bits_of(view.format);
    for (u32 i = 0; i < view.rank; ++i) bits *= static_cast<u64>(view.shape[i]);
    return bits / 8;
}

struct Piece {
    u64 address, bytes;
};

// Pieces of one allocation, on the host. Rows lie close together: a copy takes many, with what is between.
class HostCopy {
  public:
    HostCopy(Device& device, std::vector<Piece> pieces, driver::Stream stream) {
        constexpr u64 kGap = u64{1} << 14;  // bytes that cost less than another copy
        std::sort(pieces.begin(), pieces.end(),
                  [](const Piece& a, const Piece& b) { return a.address < b.address; });
        for (const Piece& piece : pieces) {
            if (runs_.empty() || piece.address > runs_.back().end + kGap)
                runs_.push_back({piece.address, piece.address, {}});
            runs_.back().end = std::max(runs_.back().end, piece.address + piece.bytes);
        }
        for (Run& run : runs_) {
            run.bytes.resize(run.end - run.begin);
            device.copy_to_host(run.bytes, run.begin, stream);
        }
    }
    [[nodiscard]] std::span<const std::byte> of(const Piece& piece) const {
        const auto after = std::upper_bound(runs_.begin(), runs_.end(), piece.address,
                                            [](u64 address, const Run& run) { return address < run.begin; });
        const Run& run = *std::prev(after);
        return std::span(run.bytes).subspan(piece.address - run.begin, piece.bytes);
    }

  private:
    struct Run {
        u64 begin, end;
        std::vector<std::byte> bytes;
    };
    std::vector<Run> runs_;
};

}  // namespace

void Session::copy(const TensorView& to, const TensorView& from) {
    engine_->device().copy_on_device(address_of(to), address_of(from), bytes_of(from), stream_);
}

void Session::write_ints(const TensorView& to, std::span<const i32> values) {
    engine_->device().copy_to_device(address_of(to), std::as_bytes(values), stream_);
}

std::vector<i32> Session::read_ints(const TensorView& from) {
    std::vector<i32> values(bytes_of(from) / sizeof(i32));
    engine_->device().copy_to_host(std::as_writable_bytes(std::span(values)), address_of(from), stream_);
    return values;
}

// One pending row, which is rows 0 and 1 of hidden_, and its logits in row 0: what feed_chunk() and files
// start from.
void Session::normalise() {
    if (tokens_.empty()) return;
    flush_mtp();
    if (pending_rows_ > 1) copy(hidden_.rows(1, 1), hidden_.rows(pending_rows_, 1));
    copy(hidden_.rows(0, 1), hidden_.rows(1, 1));
    if (logits_row_ != 0) copy(logits_.rows(0, 1), logits_.rows(logits_row_, 1));
    pending_rows_ = 1, logits_row_ = 0, journal_rows_ = 0;
}

// All of a normalised session but what only grows.
std::vector<TensorView> Session::fixed_state() const {
    std::vector<TensorView> pieces = state_->fixed_state();
    pieces.insert(pieces.begin(), {hidden_.rows(0, 2), logits_.rows(0, 1)});
    return pieces;
}

// The same bytes, of a session that stays as it is: it can still go back inside its last step.
std::vector<TensorView> Session::pieces_to_save() {
    flush_mtp();
    const TensorView last = hidden_.rows(pending_rows_, 1);
    std::vector<TensorView> pieces = state_->fixed_state();
    pieces.insert(pieces.begin(), {last, last, logits_.rows(logits_row_, 1)});
    return pieces;
}

// Absent where it does not fit: a restore point saves time, a session goes on without.
DeviceTensor Session::memory_for(const std::vector<TensorView>& pieces) const {
    u64 total = 0;
    for (const TensorView& piece : pieces) total += bytes_of(piece);
    try {
        return {engine_->device(), Format::int8, {static_cast<i64>(total)}};
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::driver) throw;
        return {};
    }
}

void Session::keep_restore_point() {
    if (options_.restore_points == 0 || tokens_.empty()) return;
    const std::vector<TensorView> pieces = fixed_state();
    RestorePoint point;
    if (restore_points_.size() < options_.restore_points) point.bytes = memory_for(pieces);
    if (!point.bytes.present()) {
        if (restore_points_.empty()) return;
        point = std::move(restore_points_.front());  // the oldest one's memory
        restore_points_.erase(restore_points_.begin());
    }
    point.length = length();
    u64 at = point.bytes.address();
    for (const TensorView& piece : pieces) {
        engine_->device().copy_on_device(at, address_of(piece), bytes_of(piece), stream_);
        at += bytes_of(piece);
    }
    restore_points_.push_back(std::move(point));
}

void Session::go_back(u32 target) {
    if (journal_rows_ > 0 && target > step_base_ && target <= step_base_ + journal_rows_)
        return undo_to_row(target - step_base_ - 1);
    std::erase_if(restore_points_, [&](const RestorePoint& point) { return point.length > target; });
    const auto best = std::max_element(restore_points_.begin(), restore_points_.end(),
                                       [](const auto& a, const auto& b) { return a.length < b.length; });
    const u32 kept = best == restore_points_.end() ? 0 : best->length;
    pending_rows_ = 1, logits_row_ = 0, journal_rows_ = 0;
    pending_is_ = Pending::unknown;
    // Caches that only grow hold what they held after each token: all but the last one need not be fed again.
    if (state_->only_grows() && target > kept + 1) return tokens_.resize(target - 1);
    if (kept == 0) return reset();
    u64 at = best->bytes.address();
    for (const TensorView& piece : fixed_state()) {
        engine_->device().copy_on_device(address_of(piece), at, bytes_of(piece), stream_);
        at += bytes_of(piece);
    }
    tokens_.resize(kept);
    const i32 next = static_cast<i32>(kept);
    write_ints(base_.view(), std::span(&next, 1));
}

void Session::save(const Path& path) {
    require_valid();
    std::string content(sizeof(SavedHeader), '\0');
    const std::string_view tokens(reinterpret_cast<const char*>(tokens_.data()),
                                  tokens_.size() * sizeof(i32));
    content += tokens;
    const auto append = [&](u64 address, u64 bytes) {
        const size_t old = content.size();
        content.resize(old + bytes);
        engine_->device().copy_to_host(std::as_writable_bytes(std::span(content).subspan(old)), address,
                                       stream_);
    };
    if (!tokens_.empty()) {
        for (const TensorView& piece : guarded([&] { return pieces_to_save(); }))
            append(address_of(piece), bytes_of(piece));
        state_->visit_grown(length(), append);
    }
    SavedHeader header = {};
    std::memcpy(header.magic, kMagic, sizeof(kMagic));
    header.version = kVersion, header.num_tokens = length(), header.drafts = speculative();
    header.pending = pending_is_ == Pending::rest ? pending_ : -1;
    header.second_draft_rate = second_draft_rate_;
    header.shortened = shortened_, header.steps_since_probe = steps_since_probe_;
    std::memcpy(header.fingerprint, engine_->fingerprint().data(), sizeof(header.fingerprint));
    header.state_bytes = content.size() - sizeof(header);
    std::memcpy(content.data(), &header, sizeof(header));
    content += hash_of(content).hex();
    replace_file(path, content);
}

// Whether the file is of such a session.
void Session::check_header(const SavedHeader& header, const std::string& name) const {
    DG_CHECK(std::string_view(header.fingerprint, sizeof(header.fingerprint)) == engine_->fingerprint(),
             value,
             "session: '{}' was saved with another model, context, max_rows or numerics; load it with an "
             "engine like that",
             name);
    DG_CHECK(header.drafts == (speculative() ? 1 : 0), value,
             "session: '{}' was saved by a session that {}; load it into one with a window of {}", name,
             header.drafts ? "drafts" : "decodes plainly", header.drafts ? "2 rows or more" : "1 row");
    DG_CHECK(
        header.num_tokens <= engine_->context() && u64{header.num_tokens} * sizeof(i32) <= header.state_bytes,
        io, "session: '{}' claims {} tokens; the file is damaged", name, header.num_tokens);
    DG_CHECK(header.pending >= -1 && header.pending < static_cast<i64>(engine_->facts().vocab), io,
             "session: '{}' goes on with token {}, expected one of 0 to {}; the file is damaged", name,
             header.pending, engine_->facts().vocab - 1);
}

// A full context's.
u64 Session::largest_state_bytes() const {
    u64 bytes = u64{engine_->context()} * sizeof(i32);
    for (const TensorView& piece : fixed_state()) bytes += bytes_of(piece);
    return bytes + u64{pages_for(engine_->context())} * state_->pages().pool().bytes_of_page();
}

// Before memory is taken for the rest: what the file begins with, and its size.
void Session::check_start(std::string_view start, u64 file_bytes, const std::string& name) const {
    SavedHeader header = {};
    DG_CHECK(start.size() == sizeof(header) && file_bytes >= sizeof(header) + kChecksumBytes &&
                 std::memcmp(start.data(), kMagic, sizeof(kMagic)) == 0,
             io,
             "session: '{}' is not a saved session, expected a file that save() wrote; pass one, or "
             "start anew",
             name);
    std::memcpy(&header, start.data(), sizeof(header));
    DG_CHECK(header.version == kVersion, io, "session: '{}' has version {}, expected {}; make it again", name,
             header.version, kVersion);
    const u64 state_bytes = file_bytes - sizeof(header) - kChecksumBytes;
    DG_CHECK(header.state_bytes == state_bytes, io,
             "session: '{}' has {} bytes of state, expected {}; the file is truncated or has been added "
             "to: start anew, or load another",
             name, state_bytes, header.state_bytes);
    const u64 largest = largest_state_bytes();
    if (state_bytes <= largest) return;
    check_header(header, name);
    fail(ErrorKind::io,
         "session: '{}' has {} bytes of state, expected at most {}; the file is damaged: start anew, or "
         "load another",
         name, state_bytes, largest);
}

void Session::load(const Path& path) {
    const std::string name = path.string();
    const std::string content = read_file(path, sizeof(SavedHeader), [&](std::string_view start, u64 bytes) {
        check_start(start, bytes, name);
    });
    const std::string_view body(content.data(), content.size() - kChecksumBytes);
    DG_CHECK(hash_of(body).hex() == std::string_view(content).substr(body.size()), io,
             "session: '{}' is damaged: its checksum does not match; start anew, or load another", name);
    SavedHeader header = {};
    std::memcpy(&header, body.data(), sizeof(header));
    check_header(header, name);
    const u64 token_bytes = u64{header.num_tokens} * sizeof(i32);
    std::vector<i32> tokens(header.num_tokens);
    std::memcpy(tokens.data(), body.data() + sizeof(header), token_bytes);
    engine_->check_tokens(tokens);
    std::span<const std::byte> rest = std::as_bytes(std::span(body)).subspan(sizeof(header) + token_bytes);
    state_->pages().hold(0, header.num_tokens, stream_);
    std::vector<Piece> pieces;
    u64 needed = 0;
    const auto add = [&](u64 address, u64 bytes) { pieces.push_back({address, bytes}), needed += bytes; };
    if (!tokens.empty()) {
        for (const TensorView& piece : fixed_state()) add(address_of(piece), bytes_of(piece));
        state_->visit_grown(header.num_tokens, add);
    }
    if (needed != rest.size()) state_->pages().trim(0, length(), stream_);
    DG_CHECK(needed == rest.size(), io,
             "session: '{}' holds {} bytes of caches, expected {}; load it with the engine that saved it, or "
             "start anew",
             name, rest.size(), needed);
    // Nothing has changed up to here.
    reset();
    state_->pages().trim(0, header.num_tokens, stream_);
    guarded([&] {
        tokens_ = std::move(tokens);
        for (const auto& [address, bytes] : pieces) {
            engine_->device().copy_to_device(address, rest.first(bytes), stream_);
            rest = rest.subspan(bytes);
        }
        const i32 next = static_cast<i32>(length());
        write_ints(base_.view(), std::span(&next, 1));
        pending_rows_ = tokens_.empty() ? 0 : 1;
        if (header.pending >= 0) {
            write_ints(exchange_.rows(1, 1), std::span(&header.pending, 1));
            pending_ = header.pending, pending_is_ = Pending::rest;
        }
        second_draft_rate_ = header.second_draft_rate;
        shortened_ = header.shortened != 0, steps_since_probe_ = header.steps_since_probe;
        engine_->device().synchronize(stream_);
    });
}

void Session::visit_visible(const ModelState::NamedVisit& visit) const {
    if (tokens_.empty()) return;
    state_->visit_visible(length(), visit);
    visit("hidden", address_of(hidden_.rows(pending_rows_, 1)), hidden_.row_bytes());
    visit("logits", address_of(logits_.rows(logits_row_, 1)), logits_.row_bytes());
}

std::vector<std::pair<std::string, std::string>> Session::state_parts() {
    require_valid();
    std::vector<std::pair<std::string, std::vector<Piece>>> tensors;
    visit_visible([&](std::string_view name, u64 address, u64 count) {
        if (tensors.empty() || tensors.back().first != name) tensors.emplace_back(name, std::vector<Piece>());
        tensors.back().second.push_back({address, count});
    });
    std::vector<std::pair<std::string, std::string>> parts;
    for (const auto& [name, pieces] : tensors) {
        const HostCopy copy(engine_->device(), pieces, stream_);
        Hash hash;
        for (const Piece& piece : pieces) hash.bytes(copy.of(piece));
        parts.emplace_back(name, hash.digest().hex());
    }
    return parts;
}

std::string Session::state_digest() {
    Hash hash;
    hash.field(length());
    for (const auto& [name, digest] : state_parts()) hash.field(name).field(digest);
    return hash.digest().hex();
}

void Session::damage(std::string_view part) {
    require_valid();
    bool found = false;
    visit_visible([&](std::string_view name, u64 address, u64) {
        if (found || name != part) return;
        found = true;
        std::byte first{};
        engine_->device().copy_to_host({&first, 1}, address, stream_);
        first ^= std::byte{1};
        engine_->device().copy_to_device(address, {&first, 1}, stream_);
        engine_->device().synchronize(stream_);
    });
    DG_CHECK(found, value, "session: the state has no part '{}'; state_parts() names them", part);
}

}  // namespace deep_gemm::runtime
