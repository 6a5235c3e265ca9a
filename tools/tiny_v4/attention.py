"""Attention of all three kinds over whole sequences: window rows in blocks, compressed rows, the chain of drafts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from tiny_v4.fuse import fused
from tiny_v4.shape import Shape
from tiny_v4.streams import rms

Weight = Callable[[str], torch.Tensor]  # a block's tensor by its name


@dataclass
class Chain:
    """Drafts after the first: the rows that the first draft saw, and those of the drafts since."""

    ring: torch.Tensor  # [b, t, d]
    own: list[torch.Tensor]


def frequencies(c: Shape, compressed: bool) -> torch.Tensor:
    """fp64 [rotary / 2]: radians a position."""
    theta = c.config["compress_rope_theta" if compressed else "rope_theta"]
    pair = torch.arange(c.rotary // 2, dtype=torch.float64)
    f = theta ** (-2 * pair / c.rotary)
    if not compressed:
        return f
    yarn = c.config["rope_scaling"]

    def channel(turns: float) -> float:
        ratio = yarn["original_max_position_embeddings"] / (turns * 2 * math.pi)
        return c.rotary * math.log(ratio) / (2 * math.log(theta))

    low = max(math.floor(channel(yarn["beta_fast"])), 0)
    high = min(math.ceil(channel(yarn["beta_slow"])), c.rotary - 1)
    ramp = ((pair - low) / max(high - low, 0.001)).clamp(0, 1)
    return f / yarn["factor"] * ramp + f * (1 - ramp)


def angles(f: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 cosines and sines [t, rotary / 2]."""
    turned = positions.double()[:, None] * f.to(positions.device)
    return turned.cos().float(), turned.sin().float()


@fused
def rotate(x: torch.Tensor, at: tuple[torch.Tensor, torch.Tensor], inverse: bool = False) -> torch.Tensor:
    """The last channels of x [b, t, d] or [b, t, heads, d], neighbours in pairs."""
    cos, sin = (a.unsqueeze(1) if x.dim() == 4 else a for a in at)
    sin = -sin if inverse else sin
    plain, turned = x.split((x.shape[-1] - 2 * cos.shape[-1], 2 * cos.shape[-1]), -1)
    a, b = turned.float().unflatten(-1, (-1, 2)).unbind(-1)
    out = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    return torch.cat((plain, out.to(x.dtype)), -1)


@fused
def pooled(k: torch.Tensor, gate: torch.Tensor, ape: torch.Tensor, dim: int, ratio: int) -> torch.Tensor:
    """[b, windows, dim]: each channel's softmax over the window's tokens, with overlap over the window before too."""
    k, gate = (v[:, : v.shape[1] // ratio * ratio].float().unflatten(1, (-1, ratio)) for v in (k, gate))
    gate = gate + ape
    if ratio == 4:
        before = F.pad(k[:, :-1, :, :dim], (0, 0, 0, 0, 1, 0))
        before_gate = F.pad(gate[:, :-1, :, :dim], (0, 0, 0, 0, 1, 0), value=-1e30)
        k, gate = torch.cat((before, k[..., dim:]), 2), torch.cat((before_gate, gate[..., dim:]), 2)
    return (torch.softmax(gate, 2) * k).sum(2)


@fused
def weigh(scores: torch.Tensor, sink: torch.Tensor) -> torch.Tensor:
    """Softmax of fp32 scores [.., heads, n] with a sink for each head."""
    top = torch.maximum(scores.amax(-1, keepdim=True), sink[:, None]).detach()
    e = torch.exp(scores - top)
    return e / (e.sum(-1, keepdim=True) + torch.exp(sink[:, None] - top))


def pool_rows(
    c: Shape, w: Weight, x: torch.Tensor, at: str, dim: int, ratio: int, eps: float
) -> torch.Tensor:
    rows = pooled(
        F.linear(x, w(at + "wkv.weight")), F.linear(x, w(at + "wgate.weight")), w(at + "ape"), dim, ratio
    )
    rows = rms(rows.to(x.dtype), w(at + "norm.weight"), eps)
    positions = torch.arange(rows.shape[1], device=x.device) * ratio
    return rotate(rows, angles(frequencies(c, True), positions))


@fused
def index_loss(main: torch.Tensor, index: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """How far the indexer's softmax is from the heads' mean attention to the compressed rows (KL divergence)."""
    target = torch.softmax(main.float().masked_fill(~visible[:, None], -1e30), -1).mean(2)
    log_q = torch.log_softmax(index.masked_fill(~visible, -1e30), -1)
    terms = (target * ((target + 1e-9).log() - log_q)).masked_fill(~visible, 0.0)
    return terms.sum(-1).mean()


def choose_rows(
    c: Shape, w: Weight, x: torch.Tensor, low_rank: torch.Tensor, at: Any, visible: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(index scores fp32 [b, t, rows], the rows chosen). Learns from index_loss alone: its inputs are detached."""
    x, low_rank = x.detach(), low_rank.detach()
    rows = pool_rows(c, w, x, "attn.indexer.compressor.", c.index_dim, 4, eps)
    query = F.linear(low_rank, w("attn.indexer.wq_b.weight")).unflatten(-1, (c.index_heads, c.index_dim))
    dots = torch.einsum("bthd,brd->bthr", rotate(query, at), rows).float()
    head = F.linear(x, w("attn.indexer.weights_proj.weight")).float()
    scores = (F.relu(dots) * head.unsqueeze(-1)).sum(2) * (c.index_dim * c.index_heads) ** -0.5
    top = (
        scores.detach().masked_fill(~visible, float("-inf")).topk(min(c.index_top, rows.shape[1]), -1).indices
    )
    return scores, torch.zeros_like(scores, dtype=torch.bool).scatter(-1, top, True) & visible


def attention(
    c: Shape, w: Weight, x: torch.Tensor, ratio: int, depth: int = 1, chain: Chain | None = None
) -> tuple[torch.Tensor, torch.Tensor, Chain]:
    """(output, index loss, what later drafts need) of x [b, t, hidden], t a multiple of the window. `depth`: of a
    draft, whose position is depth - 1 later than its place in x."""
    eps, (b, t, _), n = c.config["rms_norm_eps"], x.shape, c.window
    at = angles(frequencies(c, ratio != 0), torch.arange(t, device=x.device) + depth - 1)
    low_rank = rms(F.linear(x, w("attn.wq_a.weight")), w("attn.q_norm.weight"), eps)
    q = F.linear(low_rank, w("attn.wq_b.weight")).unflatten(-1, (c.heads, c.head_dim))
    q = rotate(rms(q, None, eps), at)
    kv = rotate(rms(F.linear(x, w("attn.wkv.weight")), w("attn.kv_norm.weight"), eps), at)
    ring, own = (kv, []) if chain is None else (chain.ring, [*chain.own, kv])
    scale = c.head_dim**-0.5

    # Window rows: a block of queries meets its own block of rows and the one before.
    blocks = ring.unflatten(1, (-1, n))
    keys = torch.cat((F.pad(blocks[:, :-1], (0, 0, 0, 0, 1, 0)), blocks), 2)  # [b, blocks, 2 n, d]
    query_at = torch.arange(t, device=x.device).view(-1, n, 1)
    key_at = query_at[:, :1] - n + torch.arange(2 * n, device=x.device)
    seen = (key_at >= 0) & (key_at <= query_at) & (query_at + depth - 1 - key_at < n)
    scores = q.reshape(b, -1, n * c.heads, c.head_dim) @ keys.mT
    scores = scores.view(b, -1, n, c.heads, 2 * n).float() * scale
    parts = [scores.masked_fill(~seen.unsqueeze(-2), float("-inf")).view(b, t, c.heads, -1)]

    loss, rows = x.new_zeros((), dtype=torch.float32), None
    if ratio:
        rows = pool_rows(c, w, x, "attn.compressor.", c.head_dim, ratio, eps)
        count = (torch.arange(t, device=x.device) + 1) // ratio
        visible = torch.arange(rows.shape[1], device=x.device) < count[:, None]
        main = torch.einsum("bthd,brd->bthr", q, rows).float() * scale
        chosen = visible.expand(b, -1, -1)
        if ratio == 4:
            index, chosen = choose_rows(c, w, x, low_rank, at, visible, eps)
            loss = index_loss(main.detach(), index, visible)
        parts.append(main.masked_fill(~chosen.unsqueeze(2), float("-inf")))
    if own:
        drafts = torch.stack(own, 2)  # [b, t, depth - 1, d]
        parts.append((q @ drafts.mT).float() * scale)

    p = (
        weigh(torch.cat(parts, -1), w("attn.attn_sink"))
        .to(x.dtype)
        .split([part.shape[-1] for part in parts], -1)
    )
    o = (p[0].reshape(b, -1, n * c.heads, 2 * n) @ keys).view(b, t, c.heads, c.head_dim)
    if rows is not None:
        o = o + torch.einsum("bthr,brd->bthd", p[1], rows)
    if own:
        o = o + p[-1] @ drafts
    grouped = rotate(o, at, inverse=True).reshape(b, t, c.groups, -1)
    wo_a = w("attn.wo_a.weight").view(c.groups, c.o_rank, -1)
    low = torch.einsum("btgk,grk->btgr", grouped, wo_a).flatten(-2)
    return F.linear(low, w("attn.wo_b.weight")), loss, Chain(ring, own)
