// Which compressed rows a query sees.
#pragma once

#include <deep_gemm/ptx/base.h>

namespace deep_gemm::tile {

/// Rows of `ratio` positions each that end at or before `position`, at most `limit`; none below 0.
DG_DEVICE u32 visible_rows(i32 position, u32 ratio, u32 limit) {
    if (position < 0) return 0;
    const u32 rows = (static_cast<u32>(position) + 1) / ratio;
    return rows < limit ? rows : limit;
}

}  // namespace deep_gemm::tile
