"""Why an asked number is missed, where it is: one text for the points that miss it for the same reason."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.records import Row


@dataclass(frozen=True)
class Reason:
    section: str
    points: str  # a regular expression that matches the whole name of a point
    text: str


REASONS = (
    Reason(
        "dense",
        r"m=64 n=4096 k=7168",
        "29 MB of weights would take 7 us at the read ceiling. 64 blocks of 64 x 64 do not fill 132 SMs, so K is "
        "split over two CTAs whose sums meet at the end; the plan is the fastest of 60 that were timed "
        "(gemm-plans-*.json in bench/results). DeepGEMM, with 128 blocks of 64 x 32, is as far (Beside DeepGEMM). "
        "Next: such narrow blocks here too.",
    ),
    Reason(
        "dense",
        r"m=8192 n=8192 k=8192",
        "Both kernels run at the card's power limit with the clock down to 1.4-1.7 GHz: cycles saved come back as a "
        "lower clock (blocks of 192 x 128 and 256 x 128, multicast of either operand, unrolled once to four times: "
        "all within 2 %, or slower). DeepGEMM's kernel takes 1.05 times as long on this card, 0.97x of cuBLASLt: the "
        "1.12x asked for was measured in another run. Next: fewer shared-memory reads for each product, operands of A "
        "in registers.",
    ),
    Reason(
        "grouped",
        r"contiguous 8x4096 .*",
        "The peer reads one matrix of weights, this call eight: 100 to 200 MB more of memory traffic, 3 % of the "
        "time, at the same power limit. Blocks of 192 rows, the fastest, that hold the end of one group and the start "
        "of the next are loaded twice: 4 % of the blocks. DeepGEMM's kernel takes as long as ours (Beside DeepGEMM). "
        "Next: rows of A that the other half of such a block needs are not loaded.",
    ),
    Reason(
        "fp4",
        r"(gate\+up|down) .* T=(16|64|256)( per_token)?",
        "Weights stream at 96 to 101 % of the read ceiling of this run: what the ratio still lacks is the peer's "
        "own bandwidth in the other run.",
    ),
    Reason(
        "fp4",
        r"(gate\+up|down) .* T=(1024|4096|8192|16384)( per_token)?",
        "A quarter of an SM takes as many cycles for a block of weights as its tensor core for the products and its "
        "warps for their instructions, one after the other (ncu, 4096 and 8192 tokens: within 12 % of that sum, 19 % "
        "above it with scales along K, which are half of all shared-memory wavefronts): decoding, and promotion every "
        "128 of K, which the peer does not have, hide little behind products, and the power limit takes the clock to "
        "1.7 GHz even in a launch alone. Tried without gain: two chunks of columns in flight (4 to 6 % at 8192 tokens "
        "of gate+up, a loss elsewhere), output through shared memory in whole lines, bf16 scales, 16-byte scale reads, "
        "codes read a stage ahead. Next: fewer instructions for each stage (two blobs to a barrier).",
    ),
    Reason(
        "fp4",
        r"(gate\+up|down) .* T=(1024|4096|8192|16384) fast_accumulation",
        "At the power limit: 1310 useful TFLOPS in a launch alone on a cool card (8192 tokens, 1.58 GHz), 1100 in a "
        "burst; 3 % of the time is the pass that puts tokens in order. Up to 1024 tokens the stream of weights bounds "
        "it. Next: tokens quantised into that order.",
    ),
    Reason(
        "nvfp4",
        r"nv_single .*",
        "5.9 % more bytes, and the scale of 16 weights is an E4M3 number that multiplies the codes, where MXFP4 "
        "adds an exponent: at T=64 and few experts that decoding is not hidden. Next: scales decoded once for two "
        "row blocks.",
    ),
    Reason(
        "fused_moe",
        r"Flash T=64",
        "609 us in the run at fc76586. Here samples lie between 602 and 652 us, and those of its two GEMMs alone "
        "between 591 and 640: the clock of a card at its power limit.",
    ),
    Reason(
        "gemv",
        r"bf16, mean of all layers and tokens",
        "Weights of 100 MB and more stream at 84 to 100 % of the read ceiling in both libraries, 0.97 to 1.05x; only "
        "small layers have room (1.23x at 4096x4096).",
    ),
    Reason(
        "gemv",
        r"bf16 .*",
        "Within 3 % of cuBLAS: both stream 117 MB in 31 us, and both pay for the first loads and the last sums. "
        "Without the products the kernel takes 29.6 us. Tried without gain: rings of 2 to 6 stages, one group of "
        "warps, two blocks on an SM, more or less of the rows asked for ahead.",
    ),
    Reason(
        "gemv",
        r"w8a8 by 32 .*",
        "A scale of 4 bytes for 32 weights is 12.5 % more bytes than asked of.",
    ),
    Reason(
        "gemv",
        r"q8_0 m=1 29568x8192",
        "Rows of 31416 bytes start at multiples of 8: bulk copies bring the 16-byte vectors around a visit, of every "
        "other row 1104 bytes for 1088, and in three rows of four each visit shares a sector with the next: 69.8 us, "
        "by dp4a 74.7 before (77ef0b2), and 65.0 at 8192x29568, where visits are whole sectors.",
    ),
    Reason(
        "gemv",
        r"q8_0.*",
        "Blocks of 34 bytes are 6 % more bytes than one a weight, and never aligned to more than 2: words are put "
        "together from halves (the split layout spares that and pays for two streams). Two warps of bulk copies for "
        "each group take 18.3 us at 4096x14336 with 2 to 4 tokens where one took 20.4; 1.65x would be 18.15. Copies "
        "alone take 18.1 there. Slower: visits of two blocks of rows, rows in turns for warps that stay, L2 asked by "
        "single lines.",
    ),
    Reason(
        "gemv",
        r"(w8a16|w8a8|int8|w4a16 \w+|w4a8 \w+|int4 \w+) .*",
        "3 to 4 us of a launch do not shrink with the bytes: the wait for the launch before (0.8 us from its last "
        "exit), x (1.8) and the first weights (2.9); half of the blocks end half a microsecond before the last. Codes "
        "of 4 bits are bound by instructions as well, shifts and masks above all, of which an SM takes 64 lanes a "
        "cycle: a visit of a warp (16 rows of 256 weights) takes 196 of INT4, 232 before nibbles were read as bf16 "
        "subnormals (4096x14336: 10.7 us for 11.2), and a token more costs its products and its copy of x (0.1 us). "
        "Slower: rotations by 64-bit multiplications (12.3 us for 11.2), rows dealt evenly to groups in short tiles "
        "(12.9), tokens in turns while x is copied, other rings. Next: E2M1 pairs from fewer masks, x of several "
        "tokens copied by a warp of its own.",
    ),
    Reason(
        "weight_only_gemm",
        r".*",
        "The ceiling is cuBLAS in bf16 (the peer), at the card's power limit; weights are decoded to bf16 in "
        "registers beside the products (22 to 31 instructions for eight weights of a lane, wgmma and all), and scales "
        "of 128 x 128 or of 128 along K are applied to sums, 16 instructions more: tokens are in two parts, one of "
        "which is multiplied meanwhile. Without gain: one part, four parts, the second warpgroup behind the first, one "
        "stage a turn of the loop, clusters of four CTAs (docs/weight-only.md).",
    ),
    Reason(
        "model_ops",
        r"latent_attention .*",
        "One query leaves few rows to each CTA, so latency counts, not bandwidth: position, pick, page and row are "
        "loads that depend on each other, scores, their maximum and sums follow, and a second launch merges the "
        "CTAs' parts (12.9 us before all rows of a warp were asked for at once). In the same launch the CTA that comes "
        "last would merge 16 heads instead of one. Next: what finds a row's place read before the query is there.",
    ),
    Reason(
        "model_ops",
        r"index_scores .*",
        "Scores and the choice are launches of their own; the second one is a chain of short steps in one CTA: a bound "
        "from the largest of each 16 scores, the scores that reach it, a digit at a time of those (39.6 and 16.9 us "
        "when it read all scores). Next: FP4 products of the scores, of which there are 64 heads, from fewer reads of "
        "shared memory.",
    ),
    Reason(
        "host_time",
        r"Python, torch tensors",
        "The host decides: 3.34 us on the machine of another run, where the driver's launch took 2.9.",
    ),
    Reason(
        "host_time",
        r"C\+\+",
        "The driver's own launch of the same kernel takes longer than what is asked, see the peer's time; the call "
        "adds what lies between.",
    ),
    Reason(
        "cold_start",
        r"first call of an uncached kernel",
        "All but 2 ms are NVRTC's: about a tenth reading C++, more than half optimising, a third assembling. "
        "NVRTC's faster optimisation levels spill registers. Bundles and `warmup` take it out of the first call.",
    ),
    Reason(
        "regret",
        r".*",
        "The cost model's largest miss of the points timed; each is in the table. At one token of Qwen3 (1.38, 1.18 "
        "and 1.16) the plan now takes a kernel with room for one CTA on an SM, which was within 3 % of the best in "
        "this run; not measured again. Without those three points: 1.009 in the mean, 1.031 at worst.",
    ),
)


def reason_of(row: Row) -> str | None:
    for reason in REASONS:
        if reason.section == row.section and re.fullmatch(reason.points, row.point):
            return reason.text
    return None
