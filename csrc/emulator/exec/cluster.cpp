// Addresses across a cluster: mapa, getctarank; isspacep.
#include "emulator/exec/families.h"
#include "emulator/exec/fault.h"
#include "emulator/exec/lanes.h"

namespace deep_gemm::emulator {
namespace {

constexpr u32 kGenericResult = 1;

template <typename T>
void map_address(Warp& w, const Op& op, u32 mask) {
    const T* a = static_cast<T*>(slot(w, op.a));
    const u32* b = static_cast<u32*>(slot(w, op.b));
    const u32 size = static_cast<u32>(w.cta->cluster->ctas.size());
    for_lanes(mask, [&](u32 lane) {
        if (b[lane] >= size)
            fault(w, static_cast<i32>(lane), "mapa to CTA rank {} in a cluster of {}", b[lane], size);
        const T window = op.flags & kGenericResult ? static_cast<T>(kSharedWindow) : T{0};
        static_cast<T*>(slot(w, op.d))[lane] =
            window | static_cast<T>(b[lane]) << kRankShift | (a[lane] & static_cast<T>(kOffsetMask));
    });
}

template <typename T>
void rank_of_address(Warp& w, const Op& op, u32 mask) {
    const T* a = static_cast<T*>(slot(w, op.a));
    for_lanes(mask, [&](u32 lane) {
        static_cast<u32*>(slot(w, op.d))[lane] = static_cast<u32>(a[lane] >> kRankShift) & 0xff;
    });
}

// op.immediate: the window of the space; 0 is global.
void is_space(Warp& w, const Op& op, u32 mask) {
    const u64* a = static_cast<u64*>(slot(w, op.a));
    u32 yes = 0;
    for_lanes(mask, [&](u32 lane) {
        const u64 window = a[lane] & kWindowMask;
        const bool own = op.flags == 0 || (a[lane] >> kRankShift & 0xff) == w.cta->rank;
        const bool special = window == kSharedWindow || window == kLocalWindow;
        yes |=
            static_cast<u32>(op.immediate == 0 ? !special : window == static_cast<u64>(op.immediate) && own)
            << lane;
    });
    set_predicate(w, op.d, mask, yes);
}

}  // namespace

void decode_cluster(Decoder& x) {
    if (x.in->root == "isspacep") {
        x.op.d = x.predicate(x.operand(0));
        x.op.a = x.source(x.operand(1), 8);
        const bool shared = x.has("shared") || x.has("shared::cta") || x.has("shared::cluster");
        if (!shared && !x.has("local") && !x.has("global")) x.unsupported();
        x.op.immediate = static_cast<i64>(shared ? kSharedWindow : x.has("local") ? kLocalWindow : 0);
        x.op.flags = shared && !x.has("shared::cluster") ? 1 : 0;
        x.op.run = is_space;
        return;
    }
    const u32 bytes = type_bytes(x.type());
    x.destination_and_sources(x.in->root == "mapa" ? bytes : 4, bytes, 4, 4);
    if (!x.has("shared::cluster")) x.op.flags = kGenericResult;
    if (x.in->root == "mapa") {
        x.op.run = bytes == 8 ? map_address<u64> : map_address<u32>;
    } else {
        x.op.run = bytes == 8 ? rank_of_address<u64> : rank_of_address<u32>;
    }
}

}  // namespace deep_gemm::emulator
