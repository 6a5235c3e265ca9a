// ldmatrix and stmatrix (.m8n8, .b16, plain and .trans), movmatrix, and mma.sync m16n8 for 16-bit and FP8
// types.
#include "emulator/exec/collective.h"
#include "emulator/exec/families.h"
#include "emulator/exec/memory.h"
#include "emulator/tensor/matrix.h"
#include "emulator/tensor/mma.h"

namespace deep_gemm::emulator {
namespace {

SharedPlace row_place(Warp& w, const Op& op, u32 matrix, u32 row) {
    const u32 lane = matrix_address_lane(matrix, row);
    u64 address = lane_address(w, op, op.a, lane);
    if ((address & kWindowMask) == kSharedWindow) address &= ~kWindowMask;
    return shared_place(w, lane, address, kMatrixRowBytes, kMatrixRowBytes, false);
}

template <bool transposed>
void load_matrix(Warp& w, const Op& op, u32 mask) {
    if (!whole_warp_present(w, mask)) return;
    for (u32 m = 0; m < op.list.size(); ++m) {
        u16 elements[kMatrixRows][kMatrixRows];
        for (u32 row = 0; row < kMatrixRows; ++row) {
            const SharedPlace place = row_place(w, op, m, row);
            check_shared_read(w, 1u << matrix_address_lane(m, row), place, kMatrixRowBytes);
            std::memcpy(elements[row], place.data(), kMatrixRowBytes);
        }
        u32* d = static_cast<u32*>(slot(w, op.list[m]));
        for (u32 lane = 0; lane < kLanes; ++lane) {
            const MatrixElement low = matrix_element(lane, 0, transposed),
                                high = matrix_element(lane, 1, transposed);
            d[lane] = elements[low.row][low.column] | static_cast<u32>(elements[high.row][high.column]) << 16;
        }
    }
}

template <bool transposed>
void store_matrix(Warp& w, const Op& op, u32 mask) {
    if (!whole_warp_present(w, mask)) return;
    for (u32 m = 0; m < op.list.size(); ++m) {
        u16 elements[kMatrixRows][kMatrixRows];
        const u32* d = static_cast<u32*>(slot(w, op.list[m]));
        for (u32 lane = 0; lane < kLanes; ++lane) {
            for (u32 half = 0; half < 2; ++half) {
                const MatrixElement at = matrix_element(lane, half, transposed);
                elements[at.row][at.column] = static_cast<u16>(d[lane] >> (16 * half));
            }
        }
        for (u32 row = 0; row < kMatrixRows; ++row) {
            const SharedPlace place = row_place(w, op, m, row);
            note_shared_write(w, matrix_address_lane(m, row), place, kMatrixRowBytes);
            std::memcpy(place.data(), elements[row], kMatrixRowBytes);
        }
    }
    ++w.cta->cluster->progress;
}

void transpose_matrix(Warp& w, const Op& op, u32 mask) {
    if (!whole_warp_present(w, mask)) return;
    const u32* a = static_cast<u32*>(slot(w, op.a));
    u32 result[kLanes];
    for (u32 lane = 0; lane < kLanes; ++lane) {
        const RegisterHalf low = movmatrix_source(lane, 0), high = movmatrix_source(lane, 1);
        result[lane] = (a[low.lane] >> (16 * low.half) & 0xffff) | (a[high.lane] >> (16 * high.half) & 0xffff)
                                                                       << 16;
    }
    std::memcpy(slot(w, op.d), result, sizeof result);
}

struct MmaForm {
    MmaShape shape;
    bool integer = false, saturate = false;
    std::vector<u32> d, a, b, c;
};

template <typename T>
void multiply(Warp& w, const Op& op, u32 mask) {
    if (!whole_warp_present(w, mask)) return;
    const MmaForm& form = *static_cast<const MmaForm*>(op.extra);
    const u32 k_bytes = form.shape.k_bytes;
    std::vector<std::byte> a(kMmaRows * k_bytes), b(kMmaColumns * k_bytes);
    T d[kMmaRows * kMmaColumns];
    for (u32 lane = 0; lane < kLanes; ++lane) {
        for (u32 r = 0; r < form.a.size(); ++r) {
            std::memcpy(&a[a_fragment_row(0, lane, r) * k_bytes + a_fragment_k_byte(lane, r)],
                        static_cast<u32*>(slot(w, form.a[r])) + lane, 4);
        }
        for (u32 r = 0; r < form.b.size(); ++r) {
            std::memcpy(&b[b_fragment_col(lane) * k_bytes + b_fragment_k_byte(lane, r)],
                        static_cast<u32*>(slot(w, form.b[r])) + lane, 4);
        }
        for (u32 i = 0; i < form.c.size(); ++i) {
            d[fragment_row(0, lane, i) * kMmaColumns + fragment_col(lane, i)] =
                static_cast<T*>(slot(w, form.c[i]))[lane];
        }
    }
    if constexpr (std::is_same_v<T, float>) {
        const bool exact = w.cta->cluster->launch->options.accumulator == Accumulator::fp32;
        mma(form.shape, a, b, d, exact ? AccumulatorMode::exact : AccumulatorMode::hopper);
    } else {
        mma_integer(form.shape, a, b, d, form.saturate);
    }
    for (u32 lane = 0; lane < kLanes; ++lane) {
        for (u32 i = 0; i < form.d.size(); ++i) {
            static_cast<T*>(slot(w, form.d[i]))[lane] =
                d[fragment_row(0, lane, i) * kMmaColumns + fragment_col(lane, i)];
        }
    }
}

ElementType element_type(Decoder& x, Type type) {
    switch (type) {
        case Type::f16: return ElementType::f16;
        case Type::bf16: return ElementType::bf16;
        case Type::e4m3: return ElementType::e4m3;
        case Type::e5m2: return ElementType::e5m2;
        case Type::s8: return ElementType::s8;
        case Type::u8: return ElementType::u8;
        default: x.unsupported("the element type of mma");
    }
}

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 d, a, b, c
void decode_mma(Decoder& x) {
    if (x.has("sp") || x.has_prefix("kind::") || x.has("block_scale"))
        x.unsupported("sparse and block-scaled mma");
    MmaForm form;
    auto registers = [&](size_t i, bool destination) {
        std::vector<u32> out;
        for (const auto& item : x.operand(i).items)
            out.push_back(destination ? x.reg(item, 4) : x.source(item, 4));
        return out;
    };
    form.d = registers(0, true);
    form.a = registers(1, false);
    form.b = registers(2, false);
    form.c = registers(3, false);
    if (!x.has_prefix("m16n8k") || form.d.size() != 4 || form.c.size() != 4 || form.b.empty() ||
        form.b.size() > 2 || form.a.size() != 2 * form.b.size())
        x.unsupported("the shape of mma");
    form.shape.k_bytes = 16 * static_cast<u32>(form.b.size());
    form.integer = x.type_from_end(0) == Type::s32;
    form.saturate = x.has("satfinite");
    if (!form.integer && x.type_from_end(0) != Type::f32)
        x.unsupported("an mma accumulator that is not f32 or s32");
    form.shape.a = element_type(x, x.type_from_end(2));
    form.shape.b = element_type(x, x.type_from_end(1));
    x.op.run = form.integer ? multiply<i32> : multiply<float>;
    x.make_extra(std::move(form));
}

}  // namespace

void decode_matrix(Decoder& x) {
    const std::string_view root = x.in->root;
    if (root == "mma") return decode_mma(x);
    if (!x.has("m8n8") || !x.has("b16")) x.unsupported("matrix shapes other than m8n8.b16");
    if (root == "movmatrix") {
        x.destination_and_sources(4);
        x.op.run = transpose_matrix;
        return;
    }
    const bool loads = root == "ldmatrix", transposed = x.has("trans");
    const ptx::Operand& values = x.operand(loads ? 0 : 1);
    std::vector<u32> list;
    auto one = [&](const ptx::Operand& item) { list.push_back(loads ? x.reg(item, 4) : x.source(item, 4)); };
    if (values.kind == ptx::OperandKind::vector) {
        for (const auto& item : values.items) one(item);
    } else {
        one(values);
    }
    if (list.size() != (x.has("x4") ? 4u : x.has("x2") ? 2u : 1u)) x.unsupported("the number of registers");
    x.set_list(std::move(list));
    x.set_address(x.operand(loads ? 1 : 0));
    if (loads) x.op.run = transposed ? load_matrix<true> : load_matrix<false>;
    if (!loads) x.op.run = transposed ? store_matrix<true> : store_matrix<false>;
}

}  // namespace deep_gemm::emulator
