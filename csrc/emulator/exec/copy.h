// The two halves of the cp family, st.async, and what they share.
#pragma once

#include "emulator/exec/families.h"
#include "emulator/exec/memory.h"

namespace deep_gemm::emulator {

void decode_copy_async(Decoder& x);   // cp.async: per-lane copies
void decode_bulk(Decoder& x);         // cp.async.bulk, cp.async.bulk.tensor, cp.reduce.async.bulk
void decode_store_async(Decoder& x);  // st.async

// A lane's shared memory address, as shared_place() takes it.
[[nodiscard]] u32 shared_value(Warp& w, const Address& address, u32 lane);
// That something may land there; marks it as landing.
void check_landing(Warp& w, u32 lane, const SharedPlace& place, u32 bytes);
// When it lands: the CTA is still there.
void check_alive(const Cta& cta);

}  // namespace deep_gemm::emulator
