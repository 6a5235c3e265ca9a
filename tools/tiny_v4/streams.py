"""Hyper-connections: what mixes the residual streams before and after a sublayer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tiny_v4.fuse import fused


class Sinkhorn(torch.autograd.Function):
    """softmax + eps, then columns and rows in turn divided by their sums + eps, columns first and last. The way back
    undoes the divisions, whose sums are kept, so that no step has to be."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, iterations: int, eps: float) -> torch.Tensor:
        start = torch.softmax(logits, -1)
        m, sums = start + eps, []
        for i in range(2 * iterations - 1):
            total = m.sum(-2 if i % 2 == 0 else -1, keepdim=True) + eps
            m = m / total
            sums.append(total)
        ctx.save_for_backward(start, m, *sums)
        return m

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        start, m, *sums = ctx.saved_tensors
        for i in reversed(range(len(sums))):
            along = -2 if i % 2 == 0 else -1
            gradient = (gradient - (gradient * m).sum(along, keepdim=True)) / sums[i]
            m = m * sums[i]
        return start * (gradient - (gradient * start).sum(-1, keepdim=True)), None, None


@fused
def rms(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide if weight is None else wide * weight.float()).to(x.dtype)


@fused
def mix(x: torch.Tensor, fn: torch.Tensor, eps: float) -> torch.Tensor:
    """x [.., streams, hidden] -> the site's logits, normalised."""
    flat = x.flatten(-2).float()
    return F.linear(flat, fn) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)


@fused
def coefficients(
    logits: torch.Tensor, base: torch.Tensor, scale: torch.Tensor, h: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(pre [.., h], post [.., h], logits of the stream mixing [.., h, h])."""
    pre = torch.sigmoid(logits[..., :h] * scale[0] + base[:h]) + eps
    post = 2 * torch.sigmoid(logits[..., h : 2 * h] * scale[1] + base[h : 2 * h])
    return pre, post, (logits[..., 2 * h :] * scale[2] + base[2 * h :]).unflatten(-1, (h, h))


@fused
def gather_streams(x: torch.Tensor, pre: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return rms((pre.unsqueeze(-1) * x.float()).sum(-2).to(x.dtype), weight, eps)


@fused
def put_back(x: torch.Tensor, y: torch.Tensor, post: torch.Tensor, comb: torch.Tensor) -> torch.Tensor:
    """Stream b becomes post[b] y + the sum over a of comb[a, b] x[a]."""
    wide, out = x.float(), post.unsqueeze(-1) * y.float().unsqueeze(-2)
    for a in range(x.shape[-2]):
        out = out + comb[..., a, :].unsqueeze(-1) * wide[..., a, None, :]
    return out.to(x.dtype)
