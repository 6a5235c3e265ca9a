// What the int32 numbers of a grouped layout must be. They lie in the device's memory: the emulated device
// looks at them right before the kernel (LaunchConfig::check_inputs), a GPU cannot without waiting; what it
// does with others is in docs/numerics.md.
#pragma once

#include <deep_gemm/spec/gemm.h>

#include "base/error.h"
#include "driver/device.h"

#include <cstring>

namespace deep_gemm::op {

struct GroupLayout {
    const i32* values = nullptr;
    u32 m = 0;  // rows of A; masked: of each of its groups
    u32 num_groups = 0;
};

// Throws a sentence that names the first number that is none.
void check_layout(GroupMode groups, const GroupLayout& layout);

template <GroupMode kGroups, typename Params>
void check_layout_in(std::span<const std::byte> bytes) {
    Params params;
    DG_CHECK(bytes.size() >= sizeof params, internal, "m_grouped_gemm: parameters of another kernel");
    std::memcpy(&params, bytes.data(), sizeof params);
    check_layout(kGroups, {params.group_layout, params.m, params.num_groups});
}

// The check for a kernel whose parameters begin with Params; null where callers pass no layout.
template <typename Params>
[[nodiscard]] driver::CheckInputs layout_check_of(GroupMode groups) {
    switch (groups) {
        case GroupMode::contiguous: return check_layout_in<GroupMode::contiguous, Params>;
        case GroupMode::psum: return check_layout_in<GroupMode::psum, Params>;
        case GroupMode::masked: return check_layout_in<GroupMode::masked, Params>;
        case GroupMode::dense:
        case GroupMode::gathered: return nullptr;  // a list is our own kernel's work
    }
    return nullptr;
}

}  // namespace deep_gemm::op
