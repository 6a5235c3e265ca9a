"""A mixture of experts as one call."""

from __future__ import annotations

from typing import Any

from deep_gemm import _C
from deep_gemm.utils import arrays
from deep_gemm.utils.arrays import Array

ALIGNMENT = 128  # of a workspace, in bytes


def moe_workspace(
    like: Array, tokens: int, top_k: int, experts: int, hidden: int, intermediate: int
) -> Array:
    """Memory where `like` is for fused_moe on up to `tokens` tokens; one for each stream."""
    size = _C.moe_workspace_bytes(tokens, top_k, experts, hidden, intermediate)
    memory = arrays.empty_strided(like, (size + ALIGNMENT,), (1,), "int8")
    address = memory.data_ptr() if arrays.is_torch(memory) else memory.ctypes.data
    start = -address % ALIGNMENT
    return memory[start : start + size]


def fused_moe(
    x: Array,
    topk_ids: Array,
    topk_weights: Array,
    w13: tuple[Array, Array],
    w2: tuple[Array, Array],
    out: Array | None = None,
    *,
    swiglu_limit: float | None = None,
    shared: Array | None = None,
    first_expert: int = 0,
    weight_before_down: bool = True,
    invariant: bool = False,
    workspace: Array | None = None,
    device: Any = None,
    stream: int | None = None,
) -> Array:
    """out[t] = sum over j of weight * w2[e] silu(gate) * up, with (gate, up) = w13[e] x[t] and e = topk_ids[t, j].

    x: bf16 or fp32 [T, K]. topk_ids: int32 [T, k]; an id outside [first_expert, first_expert + E) is skipped.
    topk_weights: fp32 [T, k]. w13: (fp8 [E, 2 I, K], gate rows then up rows, fp32 scales [E, 2 I / 128, K / 128]);
    w2: (fp8 [E, K, I], scales [E, K / 128, I / 128]). out: bf16 or fp32 [T, K], made (bf16) if None.

    `swiglu_limit` clamps gate from above and up from both sides. The routing weight multiplies the activation, as in
    DeepSeek-V4, or with weight_before_down=False an expert's output. `shared` bf16 [T, K] is added last. Activations
    are quantised to FP8 with a scale for 128 channels, x and silu(gate) * up alike; experts are added in the order of
    j. `invariant`: row t has the same bits in any batch. `workspace` from moe_workspace() makes a call allocate nothing
    but `out`; then the call may be captured in a CUDA graph. Nothing is synchronised.
    """
    if len(x.shape) != 2 or len(topk_ids.shape) != 2:
        raise ValueError(
            f"fused_moe: got x {tuple(x.shape)} and topk_ids {tuple(topk_ids.shape)}, expected [T, K] and [T, k]"
        )
    for name, pair in (("w13", w13), ("w2", w2)):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(
                f"fused_moe: got {name} of {type(pair).__name__}, expected (fp8 tensor, fp32 scales)"
            )
    tokens, hidden = (int(extent) for extent in x.shape)
    if out is None:
        out = arrays.empty_strided(x, (tokens, hidden), (hidden, 1), "bf16")
    if workspace is None:
        experts, rows = int(w13[0].shape[0]), int(w13[0].shape[1])
        workspace = moe_workspace(x, tokens, int(topk_ids.shape[1]), experts, hidden, rows // 2)
    _C.fused_moe_into(
        x,
        topk_ids,
        topk_weights,
        w13,
        w2,
        out,
        workspace,
        shared,
        swiglu_limit,
        first_expert,
        weight_before_down,
        invariant,
        device=device,
        stream=stream,
    )
    return out


__all__ = ["fused_moe", "moe_workspace"]
