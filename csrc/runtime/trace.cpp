// Session: what a text leaves behind, for comparisons with other implementations.
#include "runtime/session.h"

#include <algorithm>

namespace deep_gemm::runtime {

std::vector<Traced> Session::trace_of(std::span<const i32> tokens, u32 chunk, u32 depth) {
    DG_CHECK(depth == 0 || speculative(), value,
             "session: got a trace of {} drafts, but this session has a window of 1 row; expected 0, or a "
             "session with a larger window: open it with one",
             depth);
    DG_CHECK(depth <= 1 || chunk == 1, value,
             "session: got a trace of {} drafts in chunks of {} rows, expected chunks of 1 for more than "
             "one draft: the next token replaces the rows that they leave",
             depth, chunk);
    std::vector<Traced> all;
    const Trace trace = {
        .observe =
            [&](const std::string& name, const TensorView& rows) {
                auto found =
                    std::find_if(all.begin(), all.end(), [&](const Traced& t) { return t.name == name; });
                if (found == all.end())
                    found = all.insert(
                        all.end(), {name, rows.format == Format::fp32, static_cast<u32>(rows.shape[1]), {}});
                const std::vector<i32> values = read_ints(rows);
                found->values.insert(found->values.end(), values.begin(), values.end());
            },
        .depth = depth,
        .text = tokens};
    trace_ = &trace;
    try {
        feed_anew(tokens, chunk, nullptr);
    } catch (...) {
        trace_ = nullptr;
        throw;
    }
    trace_ = nullptr;
    return all;
}

// After the rows of a chunk went through the layers and, where it drafts, the MTP block.
void Session::trace_chunk(u32 first, i64 t) {
    trace_logits("logits", false, hidden_, 1, t);
    const std::span<const i32> text = trace_->text;
    for (u32 depth = 1; depth <= trace_->depth && first + depth <= text.size(); ++depth) {
        if (depth > 1) {  // one row: over the true token that follows, from the block's own streams
            const TensorView x = mtp_x_.rows(0, 1), token = mtp_tokens_.rows(0, 1),
                             position = mtp_positions_.rows(0, 1);
            write_ints(token, text.subspan(first + depth - 1, 1));
            fill_positions(position, static_cast<i32>(depth) - 2);
            run_mtp(x, x, token, position);
        }
        trace_logits(fmt::format("mtp.0.logits.{}", depth), true, mtp_x_, 0, t);
    }
}

void Session::trace_logits(const std::string& name, bool drafts, const DeviceTensor& x, i64 first, i64 t) {
    for (i64 row = 0; row < t; row += kMaxWindow) {
        const i64 count = std::min<i64>(kMaxWindow, t - row);
        const TensorView part = x.rows(first + row, count), logits = logits_.rows(0, count);
        if (drafts)
            state_->draft_head(part, logits, stream_);
        else
            state_->head(part, logits, stream_);
        trace_->observe(name, logits);
    }
}

}  // namespace deep_gemm::runtime
