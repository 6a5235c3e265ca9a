// The two halves of the cp family.
#pragma once

#include "emulator/exec/families.h"

namespace deep_gemm::emulator {

void decode_copy_async(Decoder& x);  // cp.async: per-lane copies
void decode_bulk(Decoder& x);        // cp.async.bulk, cp.async.bulk.tensor, cp.reduce.async.bulk

}  // namespace deep_gemm::emulator
