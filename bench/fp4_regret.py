"""The points of the FP4 tables as contests of their plans: all models, both kinds of scales, NVFP4, bf16 tokens.

All plans add in the same order, so that each must give the bits of the chosen one, which is checked against float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import deep_gemm
from bench import data, fp4_bf16
from bench.contest import Contest, Table
from bench.fp4 import FLASH, OTHER_TOKENS, TOKENS, Layer, copies_of, routings
from bench.fp4_weights import random_weights
from bench.nvfp4 import FORMS
from bench.targets import FP4_SCALES, MODELS, NVFP4_TOKENS, MoeModel, fp4_point
from deep_gemm import _C

QUICK = (16, 256, 4096)


@dataclass(frozen=True)
class Kind:
    """What a table's rows have in common."""

    name: str  # ahead of a point's
    form: str
    models: tuple[MoeModel, ...]
    tokens: tuple[int, ...]
    bf16: bool = False


KINDS = (
    Kind("", "mx_e4m3", (FLASH,), TOKENS),
    Kind("", "mx_e4m3", MODELS[1:], OTHER_TOKENS),
    Kind("bf16 tokens ", "mx_e4m3", (FLASH,), fp4_bf16.TOKENS, bf16=True),
    *(Kind(f"{form} ", form, (FLASH,), NVFP4_TOKENS) for form in FORMS),
)


@dataclass
class Copies:
    """Weights of one layer, made when the first point asks: a run that is out of time makes none."""

    kind: Kind
    model: MoeModel
    n: int
    k: int
    made: list[Any] = field(default_factory=list)

    def get(self) -> list[Any]:
        if not self.made:
            self.made = copies_of(random_weights(self.model.experts, self.n, self.k, self.kind.form))
        return self.made

    def clear(self) -> None:
        self.made.clear()
        torch.cuda.empty_cache()


def contest_of(layer_copies: Copies, name: str, tokens: int, scales: str) -> Contest:
    kind, model, copies = layer_copies.kind, layer_copies.model, layer_copies.get()
    weights, gate_up = copies[0], name == "gate+up"
    rows = tokens if gate_up else tokens * model.top_k
    a: Any = (
        torch.randn(rows, weights.k, device="cuda").bfloat16()
        if kind.bf16
        else data.scaled_tokens(rows, weights.k)
    )
    if scales:
        a = (a[0], a[1][:, :1].expand(-1, a[1].shape[1]))
    d = torch.empty(tokens * model.top_k, weights.n, dtype=torch.bfloat16, device="cuda")
    layer = Layer(weights, a, d, routings(tokens, gate_up, model), copies)
    layer.check(f"{kind.name}{fp4_point(model, name, tokens, scales)}")
    expected = d.clone()
    plan = deep_gemm.last_fp4_plan()
    assert plan is not None
    specs = [one["spec"] for one in _C.fp4_candidates(plan["problem"]) if one["rejected"] is None]

    def check(what: str, spec: Any) -> None:
        data.poison(d)
        layer.launch(0, spec)
        torch.cuda.synchronize()
        if not torch.equal(d, expected):
            raise AssertionError(f"{what}: other bits than the chosen plan's")

    flops = 2 * tokens * model.top_k * weights.n * weights.k
    active = sum(len(one.experts) for one in layer.lists) / len(layer.lists) / model.experts
    expected_us = max(active * data.num_bytes(weights.blobs) / 4e6, flops / 7e8) + 5
    return Contest(plan["spec"], specs, layer.launch, check, layer.num_sets, expected_us)


def tables(quick: bool) -> Iterator[Table]:
    """One for each layer, whose weights its points share."""
    for kind in KINDS[:1] if quick else KINDS:
        for model in kind.models:
            for name, n, k in model.shapes:
                copies = Copies(kind, model, n, k)
                points = {
                    kind.name + fp4_point(model, name, tokens, scales): partial(
                        contest_of, copies, name, tokens, scales
                    )
                    for tokens in (QUICK if quick else kind.tokens)
                    for scales in (FP4_SCALES[:1] if kind.bf16 else FP4_SCALES[:2])
                }
                yield Table(points, copies.clear)
