"""What is trained: the architecture's numbers, read from a config.json, and its tensors under their released names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    config: dict[str, Any]
    vocab: int
    hidden: int
    heads: int
    head_dim: int
    rotary: int
    q_rank: int
    groups: int
    o_rank: int
    window: int
    ratios: tuple[int, ...]  # of layers
    index_heads: int
    index_dim: int
    index_top: int
    experts: int
    top: int
    width: int
    hashed: int  # layers whose experts follow from the token
    streams: int

    @property
    def layers(self) -> int:
        return len(self.ratios)

    def ratio(self, at: str) -> int:
        """Of block "layers.2." or "mtp.0."."""
        return 0 if at.startswith("mtp") else self.ratios[int(at.split(".")[1])]

    def is_hashed(self, at: str) -> bool:
        return at.startswith("layers") and int(at.split(".")[1]) < self.hashed

    @property
    def blocks(self) -> list[str]:
        return [f"layers.{i}." for i in range(self.layers)] + ["mtp.0."]


def read_shape(path: Path) -> Shape:
    c = json.loads(path.read_text())
    return Shape(
        config=c,
        vocab=c["vocab_size"],
        hidden=c["hidden_size"],
        heads=c["num_attention_heads"],
        head_dim=c["head_dim"],
        rotary=c["qk_rope_head_dim"],
        q_rank=c["q_lora_rank"],
        groups=c["o_groups"],
        o_rank=c["o_lora_rank"],
        window=c["sliding_window"],
        ratios=tuple(c["compress_ratios"][: c["num_hidden_layers"]]),
        index_heads=c["index_n_heads"],
        index_dim=c["index_head_dim"],
        index_top=c["index_topk"],
        experts=c["n_routed_experts"],
        top=c["num_experts_per_tok"],
        width=c["moe_intermediate_size"],
        hashed=c["num_hash_layers"],
        streams=c["hc_mult"],
    )


@dataclass(frozen=True)
class Tensor:
    """stored: fp4, fp8, bf16 or fp32. start: standard deviation of random values, or "ones", "zeros", "bias"."""

    name: str
    size: tuple[int, ...]
    stored: str
    start: float | str


def tensors(c: Shape) -> Iterator[Tensor]:
    """Everything trained; the experts of a block as two stacks, `experts.w13` and `experts.w2`."""
    yield Tensor("embed.weight", (c.vocab, c.hidden), "bf16", 0.5)
    yield Tensor("head.weight", (c.vocab, c.hidden), "bf16", 0.5 * c.hidden**-0.5)
    yield from _head(c, "")
    for at in c.blocks:
        yield from _block(c, at)
    yield from _head(c, "mtp.0.")
    for name in ("e_proj", "h_proj"):
        yield _matrix(f"mtp.0.{name}", c.hidden, c.hidden)
    for name in ("enorm", "hnorm"):
        yield _norm(f"mtp.0.{name}", c.hidden)


def _matrix(name: str, n: int, k: int, stored: str = "fp8", gain: float = 1) -> Tensor:
    return Tensor(name + ".weight", (n, k), stored, gain * k**-0.5)


def _norm(name: str, n: int) -> Tensor:
    return Tensor(name + ".weight", (n,), "bf16", "ones")


def _head(c: Shape, at: str) -> Iterator[Tensor]:
    yield _norm(at + "norm", c.hidden)
    yield Tensor(at + "hc_head_fn", (c.streams, c.streams * c.hidden), "fp32", 0.02)
    yield Tensor(at + "hc_head_base", (c.streams,), "fp32", "bias")
    yield Tensor(at + "hc_head_scale", (1,), "fp32", "gain")


def _compressor(c: Shape, at: str, ratio: int, dim: int) -> Iterator[Tensor]:
    width = dim * (2 if ratio == 4 else 1)
    yield _matrix(at + "wkv", width, c.hidden, "bf16")
    yield _matrix(at + "wgate", width, c.hidden, "bf16", 0.5)
    yield Tensor(at + "ape", (ratio, width), "fp32", 0.02)
    yield _norm(at + "norm", dim)


def _block(c: Shape, at: str) -> Iterator[Tensor]:
    attn, ffn, ratio = at + "attn.", at + "ffn.", c.ratio(at)
    last = (2 * (c.layers + 1)) ** -0.5  # what goes back into the streams starts small
    for site in ("attn", "ffn"):
        mixes = (2 + c.streams) * c.streams
        yield _norm(f"{at}{site}_norm", c.hidden)
        yield Tensor(f"{at}hc_{site}_fn", (mixes, c.streams * c.hidden), "fp32", 0.02)
        yield Tensor(f"{at}hc_{site}_base", (mixes,), "fp32", "bias")
        yield Tensor(f"{at}hc_{site}_scale", (3,), "fp32", "gain")
    yield _matrix(attn + "wq_a", c.q_rank, c.hidden)
    yield _norm(attn + "q_norm", c.q_rank)
    yield _matrix(attn + "wq_b", c.heads * c.head_dim, c.q_rank)
    yield _matrix(attn + "wkv", c.head_dim, c.hidden)
    yield _norm(attn + "kv_norm", c.head_dim)
    yield _matrix(attn + "wo_a", c.groups * c.o_rank, c.heads * c.head_dim // c.groups)
    yield _matrix(attn + "wo_b", c.hidden, c.groups * c.o_rank, gain=last)
    yield Tensor(attn + "attn_sink", (c.heads,), "fp32", "zeros")
    if ratio:
        yield from _compressor(c, attn + "compressor.", ratio, c.head_dim)
    if ratio == 4:
        yield from _compressor(c, attn + "indexer.compressor.", ratio, c.index_dim)
        yield _matrix(attn + "indexer.wq_b", c.index_heads * c.index_dim, c.q_rank)
        yield _matrix(attn + "indexer.weights_proj", c.index_heads, c.hidden, "bf16")
    yield _matrix(ffn + "gate", c.experts, c.hidden, "bf16")
    yield Tensor(ffn + "experts.w13", (c.experts, 2 * c.width, c.hidden), "fp4", c.hidden**-0.5)
    yield Tensor(ffn + "experts.w2", (c.experts, c.hidden, c.width), "fp4", last * c.width**-0.5)
    for name, n, k in (("w1", c.width, c.hidden), ("w3", c.width, c.hidden), ("w2", c.hidden, c.width)):
        yield _matrix(f"{ffn}shared_experts.{name}", n, k, gain=last if name == "w2" else 1)
