#include "emulator/async/reduce.h"

#include "base/error.h"
#include "emulator/formats/formats.h"

#include <cmath>
#include <cstring>

namespace deep_gemm::emulator {

namespace {

float combine(ReduceOp op, float target, float source) {
    switch (op) {
        case ReduceOp::add: return target + source;
        case ReduceOp::min: return std::fmin(target, source);
        case ReduceOp::max: return std::fmax(target, source);
        default: break;
    }
    fail(ErrorKind::emulator,
         "TMA reduction: bitwise operation {} on a floating-point tensor; use add, min or max",
         static_cast<u32>(op));
}

i32 combine(ReduceOp op, i32 target, i32 source) {
    switch (op) {
        case ReduceOp::add: return static_cast<i32>(static_cast<u32>(target) + static_cast<u32>(source));
        case ReduceOp::min: return target < source ? target : source;
        case ReduceOp::max: return target > source ? target : source;
        case ReduceOp::bit_and: return target & source;
        case ReduceOp::bit_or: return target | source;
        case ReduceOp::bit_xor: return target ^ source;
    }
    fail(ErrorKind::emulator, "TMA reduction: operation {}", static_cast<u32>(op));
}

template <typename Element, typename Combine>
void for_elements(std::byte* target, const std::byte* source, u32 bytes, Combine&& combine_elements) {
    for (u32 at = 0; at < bytes; at += sizeof(Element)) {
        Element a, b;
        std::memcpy(&a, target + at, sizeof(Element));
        std::memcpy(&b, source + at, sizeof(Element));
        a = combine_elements(a, b);
        std::memcpy(target + at, &a, sizeof(Element));
    }
}

}  // namespace

void reduce_elements(ReduceOp op, Format format, std::byte* target, const std::byte* source, u32 bytes) {
    // An fp32 sum of two 16-bit floats is precise enough that rounding it again is the single rounding of the
    // sum.
    switch (format) {
        case Format::fp32:
            return for_elements<float>(target, source, bytes,
                                       [op](float a, float b) { return combine(op, a, b); });
        case Format::int32:
            return for_elements<i32>(target, source, bytes, [op](i32 a, i32 b) { return combine(op, a, b); });
        case Format::fp16:
            return for_elements<u16>(target, source, bytes, [op](u16 a, u16 b) {
                return formats::f32_to_f16_rn(combine(op, formats::f16_to_f32(a), formats::f16_to_f32(b)));
            });
        case Format::bf16:
            return for_elements<u16>(target, source, bytes, [op](u16 a, u16 b) {
                return formats::f32_to_bf16_rn(combine(op, formats::bf16_to_f32(a), formats::bf16_to_f32(b)));
            });
        default: break;
    }
    fail(ErrorKind::emulator,
         "TMA reduction: format {}, expected fp32, fp16, bf16 or int32; convert before reducing",
         name_of(format));
}

}  // namespace deep_gemm::emulator
