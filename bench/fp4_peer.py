"""What another library reached at the points of bench/fp4.py: its times, not measured in our runs.

FlashInfer's CUTLASS path of MXFP4 weights x FP8 activations for Hopper: at each point the best of 14 tile
configurations, which were built beforehand with nvcc. One scale for each token, no promotion over K, weights exact
only inside of a window of exponents for each expert. And DeepGEMM 2.6.1 with FP8 weights, twice the bytes, the better
of masked and contiguous. One H200 (driver 580.159, CUDA 13.0), CUDA graphs, random routing, weights larger than L2,
2026-11-20; that machine read memory at READ_GBS. Absolute times differ by 2 to 4 % between machines.
"""

from __future__ import annotations

READ_GBS = 4380.0

TOKENS = (1, 16, 64, 256, 1024, 4096, 8192, 16384)


def _by_tokens(*us: float, tokens: tuple[int, ...] = TOKENS) -> dict[int, float]:
    return dict(zip(tokens, us, strict=True))


FOUR = (1, 16, 64, 4096)
# (model, GEMM) -> tokens -> us
FLASHINFER: dict[tuple[str, str], dict[int, float]] = {
    ("Flash", "gate+up"): _by_tokens(23.5, 174.1, 427.6, 542.2, 581.1, 988.4, 1631.9, 3312.3),
    ("Flash", "down"): _by_tokens(16.3, 98.0, 233.9, 286.6, 306.1, 524.4, 877.1, 1733.3),
    ("V3", "gate+up"): _by_tokens(40.7, 371.8, 796.7, 2446.7, tokens=FOUR),
    ("V3", "down"): _by_tokens(27.5, 203.4, 419.7, 1412.0, tokens=FOUR),
    ("Qwen3", "gate+up"): _by_tokens(12.6, 47.3, 66.6, 232.7, tokens=FOUR),
    ("Qwen3", "down"): _by_tokens(10.0, 29.7, tokens=(1, 16)),
}
DEEPGEMM_FP8: dict[tuple[str, str], dict[int, float]] = {
    ("Flash", "gate+up"): _by_tokens(353.1, 872.6, 1091.0, 1092.8, 1166.1, 1752.6, 3191.4, tokens=TOKENS[1:]),
    ("Flash", "down"): _by_tokens(180.5, 442.7, 553.7, 553.8, 609.5, 906.1, 1574.7, tokens=TOKENS[1:]),
}
# vLLM's and SGLang's kernel for bf16 activations, which keeps weights of 4 bits.
MARLIN: dict[tuple[str, str], dict[int, float]] = {
    ("Flash", "gate+up"): _by_tokens(28.1, 269.1, 681.4, 961.2, 1294.2, 3845.5, tokens=TOKENS[:6]),
    ("Flash", "down"): _by_tokens(17.6, 138.1, 331.9, 461.9, 699.3, 2056.5, tokens=TOKENS[:6]),
}
# The two GEMMs alone, Flash, 64 tokens: what fused_moe with everything in it is asked to beat.
FLASH_64_US = FLASHINFER["Flash", "gate+up"][64] + FLASHINFER["Flash", "down"][64]


def metrics(model: str, name: str, tokens: int, us: float, read_gbs: float) -> dict[str, float]:
    """How many times as long the others take; `by_read`: as if their machine had read as fast as this one."""
    found = {}
    if peer := FLASHINFER.get((model, name), {}).get(tokens):
        found["of_flashinfer"] = peer / us
        if read_gbs:
            found["of_flashinfer_by_read"] = peer / us * READ_GBS / read_gbs
    if peer := DEEPGEMM_FP8.get((model, name), {}).get(tokens):
        found["of_deepgemm_fp8"] = peer / us
    return found
