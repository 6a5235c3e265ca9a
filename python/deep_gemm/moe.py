"""A mixture of experts as one call."""

from __future__ import annotations

from typing import Any

from deep_gemm import _C
from deep_gemm.utils import arrays
from deep_gemm.utils.arrays import Array

ALIGNMENT = 128  # of a workspace, in bytes


Weights = tuple[Array, Array] | _C.Fp4Weights


def moe_workspace(
    like: Array,
    tokens: int,
    top_k: int,
    experts: int,
    hidden: int,
    intermediate: int,
    *,
    fp4: bool = False,
    bf16_activations: bool = False,
) -> Array:
    """Memory where `like` is for fused_moe on up to `tokens` tokens, with FP4 or FP8 weights; one for each stream."""
    size = _C.moe_workspace_bytes(tokens, top_k, experts, hidden, intermediate, fp4, bf16_activations)
    memory = arrays.empty_strided(like, (size + ALIGNMENT,), (1,), "int8")
    address = memory.data_ptr() if arrays.is_torch(memory) else memory.ctypes.data
    start = -address % ALIGNMENT
    return memory[start : start + size]


def _extents(w13: tuple[Array, Array]) -> tuple[int, int]:
    if not isinstance(w13, tuple) or len(w13) != 2 or len(w13[0].shape) != 3:
        raise TypeError(
            f"fused_moe: got w13 of {type(w13).__name__}, expected (fp8 tensor [E, 2 I, K], fp32 scales) or "
            "Fp4Weights; quantise the weights, or pack them by pack_fp4_weights()"
        )
    if str(w13[0].dtype).rpartition(".")[2] in ("int8", "uint8"):
        raise TypeError(
            f"fused_moe: got w13 of {w13[0].dtype}, expected (fp8 tensor, fp32 scales) or Fp4Weights; codes of FP4 are "
            "packed once: deep_gemm.pack_fp4_weights(codes, scales)"
        )
    return int(w13[0].shape[0]), int(w13[0].shape[1])


def fused_moe(
    x: Array,
    topk_ids: Array,
    topk_weights: Array,
    w13: Weights,
    w2: Weights,
    out: Array | None = None,
    *,
    swiglu_limit: float | None = None,
    shared: Array | None = None,
    first_expert: int = 0,
    weight_before_down: bool = True,
    invariant: bool = False,
    bf16_activations: bool = False,
    bf16_products: bool = False,
    per_token: bool = False,
    workspace: Array | None = None,
    device: Any = None,
    stream: int | None = None,
) -> Array:
    """out[t] = sum over j of weight * w2[e] silu(gate) * up, with (gate, up) = w13[e] x[t] and e = topk_ids[t, j].

    x: bf16 or fp32 [T, K]. topk_ids: int32 [T, k]; an id outside [first_expert, first_expert + E) is skipped.
    topk_weights: fp32 [T, k]. w13: (fp8 [E, 2 I, K], gate rows then up rows, fp32 scales [E, 2 I / 128, K / 128]);
    w2: (fp8 [E, K, I], scales [E, K / 128, I / 128]); or both Fp4Weights of these shapes, K and I multiples of 32 for
    MXFP4, 16 for NVFP4. out: bf16 or fp32 [T, K], made (bf16) if None.

    `swiglu_limit` clamps gate from above and up from both sides. The routing weight multiplies the activation, as in
    DeepSeek-V4, or with weight_before_down=False an expert's output. `shared` bf16 [T, K] is added last. Activations
    are quantised to FP8 with a scale for 128 channels, x and silu(gate) * up alike, or (`per_token`, FP4 weights) for
    a row; `bf16_activations` (x bf16, FP4 weights of any form but nv_single) quantises neither, and `bf16_products`
    beside it never takes two E4M3 terms in the place of a bf16 number (docs/fp4.md). Experts are added in the order of
    j. `invariant`: row t has the same bits in any batch. `workspace` from moe_workspace() makes a call allocate nothing
    but `out`; then the call may be captured in a CUDA graph. Nothing is synchronised. `out` may be `x` or `shared`.
    """
    for name, tensor in (("x", x), ("topk_ids", topk_ids)):
        if not hasattr(tensor, "shape"):
            raise TypeError(
                f"fused_moe: {name} is a {type(tensor).__name__}, expected a tensor; pass x as bf16 or fp32, which is "
                "quantised inside"
            )
    if len(x.shape) != 2 or len(topk_ids.shape) != 2:
        raise ValueError(
            f"fused_moe: got x {tuple(x.shape)} and topk_ids {tuple(topk_ids.shape)}, expected [T, K] and [T, k]; "
            "reshape them"
        )
    tokens, hidden = (int(extent) for extent in x.shape)
    with arrays.on_stream(x, stream):
        if out is None:
            out = arrays.empty_strided(x, (tokens, hidden), (hidden, 1), "bf16")
        if workspace is None:
            fp4 = isinstance(w13, _C.Fp4Weights)
            experts, rows = (w13.experts, w13.n) if isinstance(w13, _C.Fp4Weights) else _extents(w13)
            shape = (tokens, int(topk_ids.shape[1]), experts, hidden, rows // 2)
            workspace = moe_workspace(x, *shape, fp4=fp4, bf16_activations=bf16_activations)
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
        bf16_activations,
        bf16_products=bf16_products,
        per_token=per_token,
        device=device,
        stream=stream,
    )
    return out


__all__ = ["fused_moe", "moe_workspace"]
