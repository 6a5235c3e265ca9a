// wgmma: deferred and collective. The four warps of a warpgroup issue an operation each in their own time; it
// exists when the fourth has issued it and executes some time later, reading shared memory as it is then.
// Accumulators in flight live in the chain; the registers hold a poison NaN until wgmma.wait_group writes the
// results back.
#include "emulator/exec/collective.h"
#include "emulator/exec/events.h"
#include "emulator/exec/families.h"
#include "emulator/exec/memory.h"
#include "emulator/exec/tensor_registers.h"
#include "emulator/formats/formats.h"
#include "emulator/formats/swizzle.h"
#include "emulator/tensor/wgmma.h"

namespace deep_gemm::emulator {
namespace {

constexpr u32 kPoison = 0x7fffdead;
constexpr u32 kWarpsPerGroup = 4;

struct WgmmaForm {
    WgmmaShape shape;
    std::string_view k;  // of the instruction's shape
    bool integer = false, saturate = false;
    std::vector<u32> a_registers;  // slots; RS
};

Warpgroup& group_of(Warp& w) {
    return w.cta->warpgroups[w.id / kWarpsPerGroup];
}

// Moves a warp's accumulator fragments between its registers and the chain's [64][n] matrix.
template <typename F>
void each_fragment(Warp& w, const Op& op, const WgmmaForm& form, F move) {
    const u32 warp = w.id % kWarpsPerGroup, n = form.shape.n;
    const bool half = form.shape.accumulator == AccumulatorType::f16;
    for (u32 r = 0; r < op.list.size(); ++r) {
        u32* reg = static_cast<u32*>(slot(w, op.list[r]));
        for (u32 lane = 0; lane < kLanes; ++lane) {
            const u32 i = half ? 2 * r : r;
            move(reg[lane], fragment_row(warp, lane, i) * n + fragment_col(lane, i));
        }
    }
}

void gather(Warp& w, const Op& op, const WgmmaForm& form, AccumulatorChain& chain) {
    each_fragment(w, op, form, [&](u32& reg, u32 at) {
        if (form.integer) {
            chain.integers[at] = static_cast<i32>(reg);
        } else if (form.shape.accumulator == AccumulatorType::f16) {
            chain.values[at] = formats::f16_to_f32(static_cast<u16>(reg));
            chain.values[at + 1] = formats::f16_to_f32(static_cast<u16>(reg >> 16));
        } else {
            chain.values[at] = std::bit_cast<float>(reg);
        }
        reg = kPoison;
    });
}

void scatter(Warp& w, const AccumulatorChain& chain) {
    const WgmmaForm& form = *static_cast<const WgmmaForm*>(chain.op->extra);
    each_fragment(w, *chain.op, form, [&](u32& reg, u32 at) {
        if (form.integer) {
            reg = static_cast<u32>(chain.integers[at]);
        } else if (form.shape.accumulator == AccumulatorType::f16) {
            reg = static_cast<u32>(formats::f32_to_f16_rn(chain.values[at])) |
                  static_cast<u32>(formats::f32_to_f16_rn(chain.values[at + 1])) << 16;
        } else {
            reg = std::bit_cast<u32>(chain.values[at]);
        }
    });
}

void find_chunks(const Warp& w, TensorOp& t, const WgmmaForm& form) {
    std::vector<u32> more;
    if (t.a_registers.empty())
        operand_chunks(decode_descriptor(t.a), kWgmmaRows, kWgmmaKBytes, form.shape.a_major, t.chunks);
    operand_chunks(decode_descriptor(t.b), form.shape.n, kWgmmaKBytes, form.shape.b_major, more);
    t.chunks.insert(t.chunks.end(), more.begin(), more.end());
    for (u32 offset : t.chunks)
        t.low = std::min(t.low, offset), t.high = std::max(t.high, offset + kChunkBytes);
    const size_t end = w.cta->smem.size();
    if (t.low < kReservedSmemBytes || t.high > end)
        fault(w, -1, "wgmma reads shared memory [{}, {}), the CTA's is [{}, {})", t.low, t.high,
              kReservedSmemBytes, end);
}

void check_chunks(const Cta& cta, const TensorOp& t) {
    const Cluster& c = *cta.cluster;
    const u32 issuer_fence = cta.warps[t.place.warp].async_fence;
    for (u32 offset : t.chunks) {
        DG_CHECK(cta.shadow.readable(offset, kChunkBytes), emulator, "wgmma reads shared offset {}, which {}",
                 offset,
                 cta.shadow.any(kLanding, offset, kChunkBytes)
                     ? "an asynchronous copy in flight writes; wait for its mbarrier"
                 : cta.shadow.any(kBarrier, offset, kChunkBytes) ? "holds an mbarrier"
                                                                 : "nothing has written");
        const u32 writer = cta.shadow.unfenced_writer(offset, kChunkBytes, issuer_fence, [&](u32 id) {
            return c.ctas[id >> 6]->warps[id & 63].async_fence;
        });
        DG_CHECK(writer == SharedShadow::kNoWriter, emulator,
                 "wgmma reads shared offset {}: warp {} wrote there through the generic proxy and no "
                 "fence.proxy.async followed",
                 offset, writer & 63);
    }
}

void execute(Cta& cta, Warpgroup& group) {
    TensorOp& t = group.operations.front();
    const WgmmaForm& form = *static_cast<const WgmmaForm*>(t.op->extra);
    check_chunks(cta, t);
    const WgmmaOperands operands{cta.smem, t.a, t.a_registers, t.b, t.scale_d};
    if (form.integer) {
        wgmma_integer(form.shape, operands, t.chain->integers.data(), form.saturate);
    } else {
        const bool exact = cta.cluster->launch->options.accumulator == Accumulator::fp32;
        wgmma(form.shape, operands, t.chain->values.data(),
              exact ? AccumulatorMode::exact : AccumulatorMode::hopper);
    }
    group.operations.pop_front();
    --cta.tensor_ops_in_flight;
    ++group.executed;
    cta.cluster->wake();
}

bool same_accumulators(const Op& x, const Op& y) {
    const WgmmaForm &fx = *static_cast<const WgmmaForm*>(x.extra),
                    &fy = *static_cast<const WgmmaForm*>(y.extra);
    return &x == &y || (std::ranges::equal(x.list, y.list) && fx.shape.n == fy.shape.n && fx.k == fy.k &&
                        fx.integer == fy.integer);
}

// Only wgmma of one shape may follow each other on the same registers without a wait between.
std::shared_ptr<AccumulatorChain> chain_for(Warp& w, const Op& op, const WgmmaForm& form) {
    Warpgroup& group = group_of(w);
    const u32 bit = 1u << (w.id % kWarpsPerGroup);
    for (auto& chain : group.chains) {
        if ((chain->returned & bit) == 0 && same_accumulators(*chain->op, op)) return chain;
    }
    if (tensor_results_in_flight(w, op.list)) {
        fault(w, -1,
              "wgmma.mma_async accumulates in registers of a wgmma of another shape, or in some of them, "
              "while that is in flight; wgmma.wait_group first");
    }
    auto chain = std::make_shared<AccumulatorChain>();
    chain->op = &op;
    const size_t size = static_cast<size_t>(kWgmmaRows) * form.shape.n;
    form.integer ? chain->integers.resize(size) : chain->values.resize(size);
    group.chains.push_back(chain);
    return chain;
}

// RS: the warp's 16 rows of A, from its registers.
void gather_a(Warp& w, const WgmmaForm& form, TensorOp& t) {
    if (form.a_registers.empty()) return;
    t.a_registers.resize(kWgmmaRows * kWgmmaKBytes);
    for (u32 r = 0; r < form.a_registers.size(); ++r) {
        u32* reg = static_cast<u32*>(slot(w, form.a_registers[r]));
        for (u32 lane = 0; lane < kLanes; ++lane) {
            const u32 at =
                a_fragment_row(w.id % kWarpsPerGroup, lane, r) * kWgmmaKBytes + a_fragment_k_byte(lane, r);
            std::memcpy(&t.a_registers[at], &reg[lane], 4);
        }
    }
}

u64 uniform_descriptor(Warp& w, u32 offset, const char* which) {
    const u64* lanes = static_cast<u64*>(slot(w, offset));
    for (u32 lane = 1; lane < kLanes; ++lane) {
        if (lanes[lane] != lanes[0])
            fault(w, static_cast<i32>(lane), "the {} descriptor differs between lanes", which);
    }
    return lanes[0];
}

void issue(Warp& w, const Op& op, u32 mask) {
    if (!whole_warp_present(w, mask)) return;
    if (mask != kFullMask) fault(w, -1, "wgmma needs all 32 lanes of the warp");
    const WgmmaForm& form = *static_cast<const WgmmaForm*>(op.extra);
    check_tensor_registers(w, op.list, form.a_registers);
    Warpgroup& group = group_of(w);
    const u64 a = op.a == kNoSlot ? 0 : uniform_descriptor(w, op.a, "A"),
              b = uniform_descriptor(w, op.b, "B");
    const bool scale_d = (predicate(w, op.c) & 1) != 0;
    const u32 index = w.tensor_issued - group.executed;
    const u32 bit = 1u << (w.id % kWarpsPerGroup);
    if (index == group.operations.size()) {
        group.operations.push_back(
            {&op, a, b, scale_d, 0, chain_for(w, op, form), {}, {}, ~0u, 0, place_of(w)});
    }
    TensorOp& t = group.operations[index];
    if (t.op != &op || t.a != a || t.b != b || t.scale_d != scale_d) {
        fault(w, -1, "the warps of a warpgroup issue different wgmma operations (the other: {})",
              describe(t.place));
    }
    if ((t.chain->gathered & bit) == 0) {
        gather(w, op, form, *t.chain);
        t.chain->gathered |= bit;
    }
    gather_a(w, form, t);
    take_tensor_registers(w, op.list, form.a_registers);
    t.chain->last = std::max(t.chain->last, w.tensor_issued++);  // warps run ahead of each other
    t.issued |= bit;
    if (t.issued == (1u << kWarpsPerGroup) - 1) {
        Cluster& c = *w.cta->cluster;
        group.last_due = std::max(group.last_due, c.now + random_delay(c));
        Cta* cta = w.cta;
        find_chunks(w, t, form);
        if (c.races) c.races->wgmma(w, t, group.executed + index);
        ++cta->tensor_ops_in_flight;
        schedule_at(c, group.last_due, t.place, [cta, &group] { execute(*cta, group); });
    }
}

void fence(Warp& w, const Op&, u32 mask) {
    if (whole_warp_present(w, mask)) fence_tensor_registers(w);
}

void commit(Warp& w, const Op&, u32 mask) {
    if (whole_warp_present(w, mask)) w.tensor_commits.push_back(w.tensor_issued);
}

void wait_group(Warp& w, const Op& op, u32 mask) {
    if (!whole_warp_present(w, mask)) return;
    const size_t pending = static_cast<size_t>(op.immediate);
    if (w.tensor_commits.size() <= pending) return;
    const u32 needed = w.tensor_commits[w.tensor_commits.size() - 1 - pending];
    Warpgroup& group = group_of(w);
    if (group.executed < needed) {
        w.block(w.pc - 1, {WaitKind::wgmma, w.pc - 1, mask, 0, static_cast<u32>(pending)});
        return;
    }
    if (Races* races = w.cta->cluster->races.get()) races->wgmma_pass(w, needed);
    w.tensor_waited = needed;
    w.tensor_commits.erase(w.tensor_commits.begin(),
                           w.tensor_commits.end() - static_cast<std::ptrdiff_t>(pending));
    const u32 bit = 1u << (w.id % kWarpsPerGroup);
    for (auto& chain : group.chains) {
        if ((chain->gathered & bit) == 0 || (chain->returned & bit) != 0 || chain->last >= needed) continue;
        scatter(w, *chain);
        chain->returned |= bit;
    }
    std::erase_if(group.chains,
                  [](const auto& chain) { return chain->returned == (1u << kWarpsPerGroup) - 1; });
}

ElementType element_type(Decoder& x, Type type) {
    switch (type) {
        case Type::f16: return ElementType::f16;
        case Type::bf16: return ElementType::bf16;
        case Type::tf32: return ElementType::tf32;
        case Type::e4m3: return ElementType::e4m3;
        case Type::e5m2: return ElementType::e5m2;
        case Type::s8: return ElementType::s8;
        case Type::u8: return ElementType::u8;
        default: x.unsupported("the element type of wgmma");
    }
}

// mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 d, a, b, scale-d, imm-scale-a, imm-scale-b[, imm-trans-a,
// imm-trans-b]
void decode_mma(Decoder& x) {
    WgmmaForm form;
    const std::string_view shape = x.modifier(3);
    const size_t n_at = shape.find('n'), k_at = shape.find('k');
    if (!shape.starts_with("m64n") || k_at == std::string_view::npos) x.unsupported("the shape of wgmma");
    form.k = shape.substr(k_at);
    form.shape.n = static_cast<u32>(std::atoi(std::string(shape.substr(n_at + 1, k_at - n_at - 1)).c_str()));
    const Type d_type = x.type_from_end(2);
    form.shape.a = element_type(x, x.type_from_end(1));
    form.shape.b = element_type(x, x.type_from_end(0));
    form.integer = d_type == Type::s32;
    form.saturate = x.has("satfinite");
    form.shape.accumulator = d_type == Type::f16 ? AccumulatorType::f16 : AccumulatorType::f32;
    std::vector<u32> d;
    for (const auto& item : x.operand(0).items) d.push_back(x.reg(item, 4));
    if (d.size() != form.shape.n / (d_type == Type::f16 ? 4 : 2))
        x.unsupported("the number of accumulator registers");
    x.set_list(std::move(d));
    const bool from_registers = x.operand(1).kind == ptx::OperandKind::vector;
    if (from_registers) {
        for (const auto& item : x.operand(1).items) form.a_registers.push_back(x.reg(item, 4));
        if (form.a_registers.size() != 4) x.unsupported("A has four registers");
    } else {
        x.op.a = x.source(x.operand(1), 8);
    }
    x.op.b = x.source(x.operand(2), 8);
    x.op.c = x.predicate(x.operand(3));
    auto immediate = [&](size_t i) {
        return i < x.num_operands() ? static_cast<i64>(x.immediate(x.operand(i))) : 0;
    };
    form.shape.negate_a = immediate(4) == -1;
    form.shape.negate_b = immediate(5) == -1;
    if (from_registers) {
        form.shape.b_major = immediate(6) == 1 ? Major::mn : Major::k;
    } else {
        form.shape.a_major = immediate(6) == 1 ? Major::mn : Major::k;
        form.shape.b_major = immediate(7) == 1 ? Major::mn : Major::k;
    }
    check_wgmma(form.shape);
    x.make_extra(std::move(form));
    x.op.run = issue;
}

}  // namespace

void check_tensor_reads(const Warp& w, u32 lane, const SharedPlace& place, u32 bytes, const char* access) {
    for (const Warpgroup& group : place.cta->warpgroups) {
        for (const TensorOp& t : group.operations) {
            if (t.high <= place.offset || place.offset + bytes <= t.low) continue;
            for (u32 chunk : t.chunks) {
                if (chunk + kChunkBytes <= place.offset || place.offset + bytes <= chunk) continue;
                fault(w, static_cast<i32>(lane),
                      "{} of {} bytes at shared offset {}, which a wgmma in flight still reads ({})", access,
                      bytes, place.offset, describe(t.place));
            }
        }
    }
}

void decode_wgmma(Decoder& x) {
    const std::string_view kind = x.modifier(0);
    if (kind == "mma_async") {
        if (x.has("sp")) x.unsupported("sparse wgmma");
        decode_mma(x);
    } else if (kind == "fence") {
        x.op.run = fence;
    } else if (kind == "commit_group") {
        x.op.run = commit;
    } else if (kind == "wait_group") {
        x.op.immediate = static_cast<i64>(x.immediate(x.operand(0)));
        x.op.run = wait_group;
    }
}

}  // namespace deep_gemm::emulator
