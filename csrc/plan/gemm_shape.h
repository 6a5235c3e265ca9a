// How a problem falls into blocks, clusters and rounds under a spec: the counting that grid size and cost
// share.
#pragma once

#include "plan/gemm.h"

namespace deep_gemm::plan {

struct GemmShape {
    u64 units;           // blocks, or pairs of multicast blocks: one for each cluster's turn
    u32 slots;           // clusters that run at once
    u64 rounds;          // units of the busiest cluster
    u64 padding_rounds;  // blocks of padding that the busiest cluster passes, which are only written
    u32 rows_outside;    // of the last block, beyond the matrix, that one CTA loads
    u32 active_ctas;
    u32 stages_per_block;  // of the CTA with the largest share of K
    u64 total_rows;        // expected, over all groups
    u32 active_groups;     // matrices of B that are read
};

[[nodiscard]] GemmShape shape_of(const GemmProblem& problem, const GemmSpec& spec, const DeviceModel& device);

}  // namespace deep_gemm::plan
