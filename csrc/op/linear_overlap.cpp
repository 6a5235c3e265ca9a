// Rows of y are written while x, W and what stands beside them are still read: y shares no byte with them,
// nor one y with another. A residual may be its own y.
#include "base/error.h"
#include "op/linear_check.h"
#include "op/overlap.h"

namespace deep_gemm::op {

namespace {

Region region_of(const RowsView& rows, u32 element_bytes) {
    const u64 row_bytes = u64{rows.k} * element_bytes;
    const bool several = rows.m > 1;
    return {.address = rows.address,
            .bytes = range_of(rows, element_bytes, false).bytes,
            .row_bytes = several ? row_bytes : 0,
            .stride_bytes = several ? rows.stride_bytes : 0};
}

// What an output is held against, by the name that a message gives it.
class Inputs {
  public:
    Inputs(const LinearArguments& args, const LinearCall& call) : args_(args) {
        add("x", region_of(rows_of(args.x, "x"), bytes_of(args.x.format)));
        if (args.x_scale.present())
            add("x_scale", region_of(rows_of(args.x_scale, "x_scale"), sizeof(float)));
        for (size_t i = 0; i < args.w.size(); ++i) {
            const QuantMatrix& w = args.w[i];
            const GemvMatrix& m = call.params.w[i];
            const u64 row_bytes = row_bytes_of(w.quant, call.params.k);
            const QuantRow row = row_of(w.quant);
            const u64 scales =
                ceil_div(u64{m.n}, u64{row.block_rows}) * scale_columns_of(w.quant, call.params.k);
            add("w", {.address = reinterpret_cast<u64>(m.data),
                      .bytes = m.n ? (m.n - 1) * m.row_stride + row_bytes : 0,
                      .row_bytes = m.n > 1 ? row_bytes : 0,
                      .stride_bytes = m.n > 1 ? m.row_stride : 0});
            add("scales of w",
                {.address = reinterpret_cast<u64>(m.scales), .bytes = scales * bytes_of(row.scale)});
            add("zero points of w",
                {.address = reinterpret_cast<u64>(m.zeros), .bytes = row.has_zero ? scales : 0});
        }
        for (const TensorView& bias : args.bias)
            if (bias.present()) add("bias", region_of(rows_of(bias, "bias"), bytes_of(bias.format)));
    }

    void check(size_t index) const {
        const Region y = region(args_.y[index], "y");
        for (u32 i = 0; i < count_; ++i) require_apart(y, names_[i], regions_[i]);
        for (size_t i = 0; i < index; ++i) require_apart(y, "y of another matrix", region(args_.y[i], "y"));
        for (size_t i = 0; i < args_.residual.size(); ++i) {
            if (!args_.residual[i].present()) continue;
            const Region residual = region(args_.residual[i], "residual");
            const bool same =
                i == index && residual.address == y.address && residual.stride_bytes == y.stride_bytes;
            if (!same) require_apart(y, i == index ? "residual in part" : "residual of another", residual);
        }
    }

  private:
    static Region region(const TensorView& t, const char* name) {
        return region_of(rows_of(t, name), bytes_of(t.format));
    }
    static void require_apart(const Region& y, const char* name, const Region& other) {
        DG_CHECK(!overlap(y, other), value,
                 "linear: y is the {} bytes from {:#x}, which overlap {}, the {} bytes from {:#x}; expected "
                 "memory of its own: pass another tensor as out",
                 y.bytes, y.address, name, other.bytes, other.address);
    }
    void add(const char* name, const Region& region) {
        names_[count_] = name;
        regions_[count_++] = region;
    }

    static constexpr u32 kMost = 2 + kMaxGemvMatrices * 4;  // x and its scales; data, scales, zeros and bias
    const LinearArguments& args_;
    const char* names_[kMost] = {};
    Region regions_[kMost] = {};
    u32 count_ = 0;
};

}  // namespace

bool share_bytes(const RowsView& a, u32 a_bytes, const RowsView& b, u32 b_bytes) {
    return overlap(region_of(a, a_bytes), region_of(b, b_bytes));
}

void check_apart(const LinearArguments& args, const LinearCall& call) {
    const Inputs inputs(args, call);
    for (size_t i = 0; i < args.y.size(); ++i) inputs.check(i);
}

}  // namespace deep_gemm::op
