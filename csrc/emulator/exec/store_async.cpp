// st.async: a store into shared memory of the cluster that lands late, and then completes transactions on an
// mbarrier of the same CTA. From issue to landing the bytes are marked in the shadow.
#include "emulator/exec/copy.h"
#include "emulator/exec/events.h"
#include "emulator/exec/mbarrier_access.h"

#include <array>
#include <cstring>

namespace deep_gemm::emulator {
namespace {

struct StoreForm {
    Address to, barrier;
    std::vector<u32> values;  // slots
    u32 element_bytes = 4;
};

void store(Warp& w, const Op& op, u32 mask) {
    const StoreForm& form = *static_cast<const StoreForm*>(op.extra);
    const u32 bytes = static_cast<u32>(form.values.size()) * form.element_bytes;
    for_lanes(mask, [&](u32 lane) {
        const SharedPlace to = shared_place(w, lane, shared_value(w, form.to, lane), bytes, bytes, true);
        const SharedPlace barrier = mbarrier_place(w, lane, shared_value(w, form.barrier, lane), true);
        if (to.cta != barrier.cta)
            fault(w, static_cast<i32>(lane),
                  "the mbarrier (CTA rank {}) and the destination (CTA rank {}) must be in one CTA",
                  barrier.cta->rank, to.cta->rank);
        check_mbarrier_fenced(w, lane, barrier);
        check_landing(w, lane, to, bytes);
        std::array<std::byte, 32> data{};
        for (size_t i = 0; i < form.values.size(); ++i) {
            const std::byte* from = static_cast<const std::byte*>(slot(w, form.values[i]));
            std::memcpy(data.data() + i * form.element_bytes, from + u64{lane} * form.element_bytes,
                        form.element_bytes);
        }
        if (Races* races = w.cta->cluster->races.get())
            races->copy_in(w, lane, *to.cta, to.offset, bytes, *barrier.cta, barrier.offset);
        ++to.cta->async_writes;
        schedule(*w.cta->cluster, place_of(w, static_cast<i32>(lane)), [to, bytes, barrier, data] {
            check_alive(*to.cta);
            std::memcpy(to.data(), data.data(), bytes);
            to.cta->shadow.async_write(to.offset, bytes);
            --to.cta->async_writes;
            update_mbarrier(*barrier.cta, barrier.offset,
                            [&](u64& word) { mbarrier::complete_tx(word, bytes); });
        });
    });
}

}  // namespace

void decode_store_async(Decoder& x) {
    if (!x.has("shared::cluster") || !x.has("mbarrier::complete_tx::bytes")) x.unsupported();
    StoreForm form;
    form.element_bytes = type_bytes(x.type());
    form.to = x.address(x.operand(0));
    const ptx::Operand& values = x.operand(1);
    if (values.kind == ptx::OperandKind::vector)
        for (const auto& item : values.items) form.values.push_back(x.source(item, form.element_bytes));
    else
        form.values.push_back(x.source(values, form.element_bytes));
    if (form.values.size() != (x.has("v4") ? 4U : x.has("v2") ? 2U : 1U))
        x.unsupported("the number of elements");
    form.barrier = x.address(x.operand(2));
    x.program.communicates = true;
    x.make_extra(std::move(form));
    x.op.run = store;
}

}  // namespace deep_gemm::emulator
