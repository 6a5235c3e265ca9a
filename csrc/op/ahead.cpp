#include "op/ahead.h"

#include <algorithm>
#include "driver/device.h"
#include "op/tensor_check.h"

namespace deep_gemm::op {

Ahead ahead_of(const driver::Device& device, AheadViews views, u32 cluster) {
    constexpr u64 kUnit = 16;
    constexpr u64 kBlockBytes = u64{16} * kAheadPieceBytes;  // a block for less is not worth it
    Ahead ahead{};
    u64 bytes = 0;
    for (const TensorView& view : views) {
        if (!view.present() || ahead.count == kAheadRanges) continue;
        const u64 begin = align_up(address_of(view), kUnit),
                  end = (address_of(view) + bytes_spanned(view)) / kUnit * kUnit;
        if (begin >= end) continue;
        ahead.ranges[ahead.count++] = {reinterpret_cast<const u8*>(begin), end - begin};
        bytes += end - begin;
    }
    const u64 sms = device.properties().num_sms;
    ahead.blocks = static_cast<u32>(
        std::min(align_up(ceil_div(bytes, kBlockBytes), u64{cluster}), sms / cluster * cluster));
    return ahead;
}

}  // namespace deep_gemm::op
