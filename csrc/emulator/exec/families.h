// The families of instructions. Each decode function fills Decoder::op, or calls unsupported(); the table of
// root opcodes is in families.cpp. An opcode without a row there is a hard error at load.
#pragma once

#include "emulator/ir/decoder.h"

namespace deep_gemm::emulator {

struct Family {
    void (*decode)(Decoder&) = nullptr;
    u8 min_operands = 0, max_operands = 0;  // what its forms have; decode functions know each form
};

void decode_move(Decoder&);     // mov, cvta
void decode_integer(Decoder&);  // add, sub, mul, mad, div, rem, min, max, abs, neg, sad, carry chains
void decode_bits(Decoder&);   // and, or, xor, not, cnot, shl, shr, shf, bfe, bfi, prmt, lop3, popc, clz, ...
void decode_float(Decoder&);  // arithmetic on f32, f64
void decode_float_unary(Decoder&);  // rcp, sqrt, rsqrt, ex2, lg2, sin, cos, tanh
void decode_half(Decoder&);         // arithmetic on f16, f16x2, bf16, bf16x2
void decode_arithmetic(Decoder&);   // picks integer, float or half by type
void decode_compare(Decoder&);      // setp, set, selp, slct, testp
void decode_convert(Decoder&);      // cvt
void decode_load(Decoder&);         // ld, ldu
void decode_store(Decoder&);        // st
void decode_atomic(Decoder&);       // atom, red
void decode_warp(Decoder&);         // shfl, vote, match, redux, activemask, elect
void decode_control(Decoder&);      // bra, ret, exit, trap, call
void decode_barrier(Decoder&);      // bar, barrier (also barrier.cluster)
void decode_mbarrier(Decoder&);     // mbarrier
void decode_copy(Decoder&);         // cp.async, cp.async.bulk, cp.async.bulk.tensor, cp.reduce
void decode_fence(Decoder&);   // fence, membar, griddepcontrol, setmaxnreg, prefetch, createpolicy, nanosleep
void decode_matrix(Decoder&);  // ldmatrix, stmatrix, movmatrix, mma
void decode_wgmma(Decoder&);   // wgmma
void decode_cluster(Decoder&);  // mapa, getctarank, isspacep

// Null when the opcode is unknown.
[[nodiscard]] const Family* find_family(std::string_view root);

}  // namespace deep_gemm::emulator
