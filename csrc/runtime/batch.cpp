#include "runtime/batch.h"

#include "op/model_ops.h"

#include <algorithm>

namespace deep_gemm::runtime {

Batch::Batch(std::shared_ptr<const Engine> engine, u32 slots)
    : engine_(std::move(engine)), replay_(engine_->device()) {
    DG_CHECK(slots >= 1 && slots <= engine_->max_rows(), value,
             "batch: got {} slots, expected 1 to the engine's max_rows {}; ask for fewer, or open the engine "
             "with more max_rows",
             slots, engine_->max_rows());
    Device& device = engine_->device();
    const i64 rows = engine_->max_rows(), vocab = engine_->facts().vocab, count = slots;
    const auto ints = [&] { return DeviceTensor(device, Format::int32, {rows}); };
    state_ = engine_->make_state(
        {.sequences = slots, .context = engine_->context(), .max_rows = engine_->max_rows()});
    hidden_ = engine_->make_rows(rows);
    logits_ = {device, Format::fp32, {count, vocab}};
    pass_logits_ = {device, Format::fp32, {count, vocab}};
    probabilities_ = {device, Format::fp32, {1, vocab}};
    tokens_ = ints(), positions_ = ints(), sequences_ = ints(), next_ = ints();
    slots_.resize(slots);
    for (Slot& slot : slots_) slot.parameters = SamplingRows(device, 1);
}

const Batch::Slot& Batch::at(u32 slot) const {
    DG_CHECK(slot < slots_.size(), value, "batch: got slot {}, expected 0 to {}; pass one of the batch's",
             slot, slots_.size() - 1);
    return slots_[slot];
}

void Batch::put(const DeviceTensor& target, std::span<const i32> values) {
    engine_->device().copy_to_device(target.address(), std::as_bytes(values), stream_);
}

Pass Batch::pass(i64 t) const {
    return {.t = t,
            .tokens = tokens_.rows(0, t),
            .positions = positions_.rows(0, t),
            .sequences = sequences_.rows(0, t),
            .stream = stream_};
}

void Batch::start(u32 index, std::span<const i32> tokens, const Sampling& sampling) {
    Slot& slot = at(index);
    check_sampling(sampling);
    DG_CHECK(!tokens.empty(), value,
             "batch: got no tokens for slot {}, expected a prompt; pass at least one token", index);
    engine_->check_tokens(tokens);
    PageTable& pages = state_->pages();
    pages.hold(index, static_cast<u32>(tokens.size()), stream_);
    pages.trim(index, static_cast<u32>(tokens.size()), stream_);
    slot.active = false;
    slot.tokens.clear();
    const i32 id = static_cast<i32>(index);
    guarded(std::span(&id, 1), [&] {
        slot.sampling = sampling;
        slot.parameters.set(sampling, stream_);
        feed(index, tokens);
        slot.tokens.reserve(engine_->context());
        slot.tokens.assign(tokens.begin(), tokens.end());
    });
    slot.active = true;
}

void Batch::feed(u32 index, std::span<const i32> tokens) {
    for (size_t first = 0, count = 0; first < tokens.size(); first += count) {
        count = std::min<size_t>(tokens.size() - first, engine_->max_rows());
        std::vector<i32> positions(count);
        for (size_t i = 0; i < count; ++i) positions[i] = static_cast<i32>(first + i);
        put(tokens_, tokens.subspan(first, count));
        put(positions_, positions);
        put(sequences_, std::vector(count, static_cast<i32>(index)));
        const i64 t = static_cast<i64>(count);
        state_->forward(hidden_.rows(0, t), pass(t));
        if (first + count == tokens.size())
            state_->head(hidden_.rows(t - 1, 1), logits_.rows(index, 1), stream_);
    }
    engine_->device().synchronize(stream_);
}

void Batch::stop(u32 index) {
    at(index).active = false;
    state_->pages().trim(index, 0, stream_);
}

template <typename Work>
void Batch::guarded(std::span<const i32> slots, Work&& work) {
    try {
        work();
    } catch (const std::exception& error) {
        std::string names;
        for (const i32 slot : slots) {
            slots_[static_cast<u32>(slot)].active = false;
            names += fmt::format("{}{}", names.empty() ? "" : ", ", slot);
        }
        const std::string what = error.what();
        const auto* known = dynamic_cast<const Error*>(&error);
        const ErrorKind kind = known ? known->kind() : ErrorKind::driver;
        try {
            for (const i32 slot : slots) stop(static_cast<u32>(slot));
        } catch (const Error&) {
            // The device is broken for good: the pages go back with the batch.
        }
        fail(kind,
             "batch: a failure interrupted the pass of slots {}, which are stopped; start() them anew: {}",
             names, what);
    }
}

// The next token of each of these slots, drawn as a Session draws it.
std::vector<i32> Batch::choose(std::span<const i32> slots) {
    for (size_t i = 0; i < slots.size(); ++i) {
        const Slot& slot = slots_[static_cast<u32>(slots[i])];
        const TensorView logits = logits_.rows(slots[i], 1), token = next_.rows(static_cast<i64>(i), 1);
        if (slot.sampling.greedy()) {
            op::argmax({.logits = logits, .tokens = token, .stream = stream_});
            continue;
        }
        const TensorView p = probabilities_.view();
        const i32 position = static_cast<i32>(slot.tokens.size()) - 1;  // of the row whose distribution it is
        put(positions_, std::span(&position, 1));
        slot.parameters.distribution(logits, p, stream_);
        slot.parameters.draw(p, positions_.rows(0, 1), token, 0, stream_);
    }
    std::vector<i32> tokens(slots.size());
    engine_->device().copy_to_host(std::as_writable_bytes(std::span(tokens)), next_.address(), stream_);
    return tokens;
}

std::vector<i32> Batch::step() {
    std::vector<i32> active, positions, result(slots_.size(), -1);
    for (u32 i = 0; i < num_slots(); ++i)
        if (slots_[i].active && room(i) > 0) active.push_back(static_cast<i32>(i));
    if (active.empty()) return result;
    for (const i32 slot : active) {
        const u32 index = static_cast<u32>(slot);
        state_->pages().hold(index, static_cast<u32>(slots_[index].tokens.size()) + 1, stream_);
    }
    const std::vector<i32> tokens = choose(active);
    for (size_t i = 0; i < active.size(); ++i) {
        Slot& slot = slots_[static_cast<u32>(active[i])];
        if (tokens[i] < 0) stop(static_cast<u32>(active[i]));
        DG_CHECK(tokens[i] >= 0, value,
                 "batch: the logits of slot {} after {} tokens hold NaN; it is stopped, nothing was added",
                 active[i], slot.tokens.size());
        positions.push_back(static_cast<i32>(slot.tokens.size()));
    }
    guarded(active, [&] {
        put(tokens_, tokens);
        put(positions_, positions);
        put(sequences_, active);
        run(active);
    });
    for (size_t i = 0; i < active.size(); ++i) {
        const u32 index = static_cast<u32>(active[i]);
        slots_[index].tokens.push_back(tokens[i]);  // start() reserved a whole context
        result[index] = tokens[i];
    }
    return result;
}

void Batch::run(std::span<const i32> slots) {
    const u32 rows = static_cast<u32>(slots.size());
    replay_.run({rows, 0}, [&] { issue(rows); });
    for (size_t i = 0; i < slots.size(); ++i)
        engine_->device().copy_on_device(logits_.address() + static_cast<u32>(slots[i]) * logits_.row_bytes(),
                                         pass_logits_.address() + i * pass_logits_.row_bytes(),
                                         logits_.row_bytes(), stream_);
}

void Batch::issue(u32 rows) {
    const TensorView x = hidden_.rows(0, rows);
    state_->forward(x, pass(rows));
    state_->head(x, pass_logits_.rows(0, rows), stream_);
}

std::vector<float> Batch::logits(u32 slot) const {
    DG_CHECK(!tokens(slot).empty(), value, "batch: no logits before slot {} was started; start() it first",
             slot);
    std::vector<float> values(engine_->facts().vocab);
    engine_->device().copy_to_host(std::as_writable_bytes(std::span(values)),
                                   logits_.address() + slot * logits_.row_bytes(), stream_);
    return values;
}

}  // namespace deep_gemm::runtime
