"""The loop: AdamW with a cosine by the clock, losses of the trunk, the indexer and three drafts, balanced experts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tiny_v4.model import Model

DRAFTS = (0.3, 0.2, 0.12)  # weights of the losses of drafts 1 to 3
INDEX = 0.5
BALANCE = 0.004  # what a router's bias moves in a step
WARM_UP = 200


@dataclass(frozen=True)
class Plan:
    seconds: float
    steps: int
    batch: int = 32
    length: int = 1024
    rate: float = 3e-3
    rounds_from: float = 0.55  # share of the time after which weights are rounded as they will be stored
    decay: float = 0.05


def balance_table(model: Model, counts: torch.Tensor) -> None:
    """Experts of each token of hash-routed layers: the least loaded ones, frequent tokens first."""
    c, generator = model.c, torch.Generator().manual_seed(42)
    for table in model.table.values():
        load, rows = torch.zeros(c.experts), torch.zeros(c.vocab, c.top, dtype=torch.long)
        for token in counts.argsort(descending=True).tolist():
            noise = torch.rand(c.experts, generator=generator) * 1e-3 * (1 + load.max())
            chosen = (load + noise).argsort()[: c.top]
            rows[token] = chosen[torch.randperm(c.top, generator=generator)]
            load[chosen] += float(counts[token]) + 1
        table.copy_(rows)


def loss_of(model: Model, ids: torch.Tensor, length: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(what is minimised, losses of the trunk, of the drafts and of the indexer); ids [b, length + 4]."""
    x, index = model.trunk(ids[:, :length])
    logits = model.logits("", x).float()
    total = trunk = F.cross_entropy(logits.flatten(0, 1), ids[:, 1 : length + 1].flatten())
    shown, target = [trunk], logits.detach()
    following = [ids[:, k : k + length] for k in (1, 2, 3)]
    for k, draft in enumerate(model.drafts(x, following), 1):
        draft = draft.float()
        text = F.cross_entropy(draft.flatten(0, 1), ids[:, k + 1 : k + 1 + length].flatten())
        # Place p of draft k speaks of the token that the trunk speaks of at p + k.
        p = torch.softmax(target[:, k:], -1)
        agreement = -(p * torch.log_softmax(draft[:, : length - k], -1)).sum(-1).mean()
        total = total + DRAFTS[k - 1] * 0.5 * (text + agreement)
        shown.append(text)
    return total + INDEX * index, [*shown, index]


def optimizer_of(model: Model, plan: Plan) -> torch.optim.AdamW:
    matrices = [
        v for n, v in model.master.items() if model.stored[n] != "fp32" and v.dim() > 1 and "embed" not in n
    ]
    chosen = {id(v) for v in matrices}
    others = [v for v in model.master.values() if id(v) not in chosen]
    groups = [{"params": matrices, "weight_decay": plan.decay}, {"params": others, "weight_decay": 0.0}]
    fused = matrices[0].is_cuda
    return torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.95), eps=1e-9, fused=fused)


def train(
    model: Model, tokens: torch.Tensor, plan: Plan, show: Callable[[int, float, list[float]], None]
) -> int:
    """Returns the number of steps. show(step, progress, losses) every few steps."""
    optimizer, began, step = optimizer_of(model, plan), time.monotonic(), 0
    window = torch.arange(plan.length + 4, device=tokens.device)
    while step < plan.steps:
        progress = max((time.monotonic() - began) / plan.seconds, step / plan.steps)
        if progress >= 1:
            break
        rate = plan.rate * min(1.0, (step + 1) / WARM_UP)
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        starts = torch.randint(0, len(tokens) - len(window), (plan.batch, 1), device=tokens.device)
        model.prepare(rounds=progress > plan.rounds_from)
        total, losses = loss_of(model, tokens[starts + window].long(), plan.length)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for at, bias in model.bias.items():
                load = model.loads[at]
                bias += BALANCE * (1 - progress) * torch.sign(load.mean() - load)
        step += 1
        if step <= 5 or step % 20 == 0:
            seen = [float(loss.detach()) for loss in losses]
            if not math.isfinite(seen[0]):
                raise ArithmeticError(
                    f"the loss is {seen[0]} at step {step}; try a lower --rate than {plan.rate}"
                )
            show(step, progress, seen)
    return step
