#include "runtime/speed.h"

#include "op/model_ops.h"
#include "runtime/synthetic.h"

#include <algorithm>
#include <numeric>

namespace deep_gemm::runtime {

namespace {

constexpr i64 kHeadRows = 64;  // rows of logits that a pass asks for at most

// Values of a linear congruential generator, with some bits cleared so that no float among them is large.
std::vector<std::byte> random_bytes(u64 count, u8 mask) {
    std::vector<std::byte> bytes(count);
    u64 state = 12345;
    for (std::byte& byte : bytes) {
        state = state * 6364136223846793005 + 1442695040888963407;
        byte = static_cast<std::byte>((state >> 56) & mask);
    }
    return bytes;
}

}  // namespace

ModelSpeed::ModelSpeed(driver::Device& device, const SpeedOptions& options)
    : device_(probe_of(device)), options_(options), replay_(device_) {
    {
        const Checkpoint checkpoint = synthetic_checkpoint(options.config);
        for (const Tensor& tensor : checkpoint.tensors())
            tensors_.emplace_back(tensor.name, tensor.bytes.size());
        engine_ = std::make_unique<const Engine>(
            device_, checkpoint,
            EngineOptions{.numerics = options.numerics,
                          .context = options.context,
                          .max_rows = options.max_rows,
                          .cache_tokens = u64{pages_for(options.context)} * kPageTokens * options.sequences});
    }
    DG_CHECK(options.sequences >= 1 && options.sequences <= options.max_rows, value,
             "speed: got {} sequences, expected 1 to max_rows, {}; ask for fewer", options.sequences,
             options.max_rows);
    DG_CHECK(options.context > kMaxWindow, value,
             "speed: got a context of {}, expected more than {}; pass a longer one", options.context,
             kMaxWindow);
    const ModelFacts& facts = engine_->facts();
    const i64 rows = options.max_rows, vocab = facts.vocab;
    state_ = engine_->make_state({.sequences = options.sequences,
                                  .context = options.context,
                                  .max_rows = options.max_rows,
                                  .drafts = facts.drafts});
    for (u32 i = 0; i < options.sequences; ++i) state_->pages().hold(i, options.context, stream_);
    hidden_ = engine_->make_rows(rows);
    logits_ = {device_, Format::fp32, {std::min(rows, kHeadRows), vocab}};
    if (facts.drafts) {
        draft_x_ = engine_->make_rows(kMaxWindow);
        draft_logits_ = {device_, Format::fp32, {1, vocab}};
        device_.fill_bytes(draft_x_.address(), 0, draft_x_.bytes(), stream_);
    }
    const auto ints = [&](std::vector<i32> values) {
        DeviceTensor tensor(device_, Format::int32, {static_cast<i64>(values.size())});
        device_.copy_to_device(tensor.address(), std::as_bytes(std::span(values)), stream_);
        device_.synchronize(stream_);
        return tensor;
    };
    std::vector<i32> tokens(static_cast<size_t>(rows)), each(tokens.size()), first(tokens.size());
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<i32>(i * 7919 % facts.vocab);
    std::iota(each.begin(), each.end(), 0);
    tokens_ = ints(tokens);
    decode_sequences_ = ints(each);
    prefill_positions_ = ints(each);
    const i32 last = static_cast<i32>(options.context - kMaxWindow);
    decode_positions_ = ints(std::vector<i32>(tokens.size(), last));
    std::iota(first.begin(), first.end(), last);
    verify_positions_ = ints(first);
    targets_ = ints(std::vector<i32>(tokens.size(), 0));
    record_ = ints(std::vector<i32>(4, 0));
    fill_caches();
}

ModelSpeed::~ModelSpeed() {
    try {
        device_.synchronize(stream_);
    } catch (const Error&) {
        // A broken device reports itself again at the next call.
    }
}

void ModelSpeed::fill_caches() {
    constexpr u64 kPiece = u64{1} << 20;
    // FP8 pages: codes and bf16 below 2, scales that make them tiny. Others: below 2.
    const std::vector<std::byte> pages = random_bytes(kPiece, 0x3f), reals = random_bytes(kPiece, 0xbf);
    for (const TensorView& cache : state_->caches()) {
        const std::vector<std::byte>& values = cache.format == Format::int8 ? pages : reals;
        u64 bytes = bytes_of(cache.format);
        for (u32 i = 0; i < cache.rank; ++i) bytes *= static_cast<u64>(cache.shape[i]);
        for (u64 at = 0; at < bytes; at += kPiece)
            device_.copy_to_device(reinterpret_cast<u64>(cache.data) + at,
                                   std::span(values).first(std::min(kPiece, bytes - at)), stream_);
    }
    device_.synchronize(stream_);
}

// The MTP block catches up with `pending` tokens; the last of them, then each draft, gives the next draft.
void ModelSpeed::issue_drafts(u32 pending, u32 drafts) {
    const auto run = [&](const TensorView& hidden, i64 first, i64 t, i64 position) {
        state_->draft(hidden, draft_x_.rows(first, t),
                      {.t = t,
                       .tokens = tokens_.rows(0, t),
                       .positions = verify_positions_.rows(position, t),
                       .stream = stream_});
    };
    run(hidden_.rows(0, pending), 0, pending, 0);
    const TensorView x = draft_x_.rows(pending - 1, 1), logits = draft_logits_.view();
    for (u32 i = 0; i < drafts; ++i) {
        if (i > 0) run(x, pending - 1, 1, pending - 1 + i);
        state_->draft_head(x, logits, stream_);
        op::argmax({.logits = logits, .tokens = targets_.rows(0, 1), .stream = stream_});
    }
}

void ModelSpeed::issue(PassKind kind, u32 rows, u32 pending) {
    const i64 n = rows;
    Pass pass{.t = n, .tokens = tokens_.rows(0, n), .positions = {}, .stream = stream_};
    const auto head = [&](i64 first, i64 count) {
        const TensorView logits = logits_.rows(0, count), targets = targets_.rows(0, count);
        state_->head(hidden_.rows(first, count), logits, stream_);
        op::argmax({.logits = logits, .tokens = targets, .stream = stream_});
    };
    switch (kind) {
        case PassKind::decode:
            DG_CHECK(rows >= 1 && rows <= options_.sequences && n <= kHeadRows, value,
                     "speed: got {} rows of decoding, expected 1 to {}; ask for fewer", rows,
                     std::min<i64>(options_.sequences, kHeadRows));
            pass.positions = decode_positions_.rows(0, n);
            if (options_.sequences > 1) pass.sequences = decode_sequences_.rows(0, n);
            state_->forward(hidden_.rows(0, n), pass);
            return head(0, n);
        case PassKind::verify:
            DG_CHECK(rows >= 1 && rows <= kMaxWindow, value,
                     "speed: got a window of {} rows, expected 1 to {}; ask for fewer", rows, kMaxWindow);
            pass.positions = verify_positions_.rows(0, n);
            pass.journal = rows > 1;
            state_->forward(hidden_.rows(0, n), pass);
            head(0, n);
            op::accept_drafts({.tokens = pass.tokens,
                               .targets = targets_.rows(0, n),
                               .p = {},
                               .q = {},
                               .seed = {},
                               .positions = pass.positions,
                               .record = record_.view(),
                               .stream = stream_});
            if (rows > 1) state_->restore(record_.rows(0, 1), stream_);
            return;
        case PassKind::draft:
            DG_CHECK(draft_x_.present() && rows == 1, value,
                     "speed: got {} rows of drafting, expected 1 of a model with an MTP block; pass 1, or "
                     "another pass",
                     rows);
            return issue_drafts(1, 1);
        case PassKind::iterate:
            DG_CHECK(draft_x_.present() && rows >= 2 && rows <= kMaxWindow && pending >= 1 && pending <= rows,
                     value,
                     "speed: got a step of {} rows after {} tokens, expected 2 to {} rows after 1 to as "
                     "many tokens, of a model with an MTP block; pass such, or another pass",
                     rows, pending, kMaxWindow);
            issue_drafts(pending, rows - 1);
            return issue(PassKind::verify, rows);
        case PassKind::prefill:
            DG_CHECK(rows >= 1 && rows <= options_.max_rows && rows <= options_.context, value,
                     "speed: got a chunk of {} rows, expected 1 to {}; ask for fewer", rows,
                     std::min(options_.max_rows, options_.context));
            pass.positions = prefill_positions_.rows(0, n);
            state_->forward(hidden_.rows(0, n), pass);
            return head(n - 1, 1);
        case PassKind::head:
            DG_CHECK(rows >= 1 && rows <= options_.max_rows && n <= kHeadRows, value,
                     "speed: got a head of {} rows, expected 1 to {}; ask for fewer", rows,
                     std::min<i64>(options_.max_rows, kHeadRows));
            return head(0, n);
    }
}

float ModelSpeed::replay_us(const std::function<void()>& capture, u32 repeats) {
    device_.begin_capture(stream_);
    capture();
    const driver::Graph graph = device_.end_capture(stream_);
    const driver::Event start = device_.create_event(), stop = device_.create_event();
    std::vector<float> us;
    for (u32 i = 0; i <= repeats; ++i) {  // the first one warms up
        device_.record(start, stream_);
        device_.launch_graph(graph, stream_);
        device_.record(stop, stream_);
        const float once = device_.elapsed_ms(start, stop) * 1e3f;
        if (i > 0) us.push_back(once);
    }
    device_.destroy_event(start);
    device_.destroy_event(stop);
    device_.destroy_graph(graph);
    std::nth_element(us.begin(), us.begin() + static_cast<i64>(us.size() / 2), us.end());
    return us[us.size() / 2];
}

std::vector<std::string> ModelSpeed::kernels(PassKind kind, u32 rows) {
    device_.start_recording();
    issue(kind, rows);
    std::vector<std::string> names;
    for (const SeenLaunch& seen : device_.stop_recording()) names.push_back(short_name_of(*seen.kernel));
    device_.synchronize(stream_);
    return names;
}

float ModelSpeed::pass_us(PassKind kind, u32 rows, u32 repeats, u32 pending) {
    issue(kind, rows, pending);  // compiles
    device_.synchronize(stream_);
    return replay_us([&] { issue(kind, rows, pending); }, repeats);
}

std::vector<LaunchTime> ModelSpeed::launch_times(PassKind kind, u32 rows, u32 repeats) {
    device_.start_recording();
    issue(kind, rows);
    const std::vector<SeenLaunch> seen = device_.stop_recording();
    device_.synchronize(stream_);
    const DeviceTensor flush(device_, Format::int8,
                             {static_cast<i64>(3 * device_.properties().l2_bytes + 16)});
    const auto prefix_us = [&](size_t count) {
        return replay_us(
            [&] {
                device_.fill_bytes(flush.address(), 0, flush.bytes(), stream_);
                for (size_t i = 0; i < count; ++i)
                    device_.launch(*seen[i].kernel, seen[i].config, seen[i].params, seen[i].memory);
            },
            repeats);
    };
    std::vector<LaunchTime> times;
    float before = prefix_us(0);
    for (size_t i = 0; i < seen.size(); ++i) {
        const driver::Dim3 grid = seen[i].config.grid;
        const float through = prefix_us(i + 1);
        times.push_back({short_name_of(*seen[i].kernel), grid.x * grid.y * grid.z, seen[i].config.block.x,
                         through - before});
        before = through;
    }
    return times;
}

}  // namespace deep_gemm::runtime
