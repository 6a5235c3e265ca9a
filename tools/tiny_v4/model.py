"""The model over whole sequences, in bf16 from fp32 weights: trunk, heads, and the MTP block as a chain of drafts."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tiny_v4.attention import Chain, attention
from tiny_v4.fuse import fused
from tiny_v4.rounding import rounded
from tiny_v4.shape import Shape, Tensor, tensors
from tiny_v4.streams import Sinkhorn, coefficients, gather_streams, mix, put_back, rms


@fused
def activation(up: torch.Tensor, limit: float) -> torch.Tensor:
    gate, value = up.float().chunk(2, -1)
    return F.silu(gate.clamp(max=limit)) * value.clamp(-limit, limit)


def start(c: Shape, tensor: Tensor) -> torch.Tensor:
    if isinstance(tensor.start, float):
        return torch.randn(tensor.size) * tensor.start
    if tensor.start in ("ones", "zeros"):
        return torch.full(tensor.size, float(tensor.start == "ones"))
    if tensor.start == "gain":
        return torch.full(tensor.size, 0.2)
    # Biases of the mixing: streams enter with weights around a quarter, go back around one, mostly keep to themselves.
    h = c.streams
    pre = torch.randn(h) * 0.5 - 1.1
    if tensor.size == (h,):
        return pre
    return torch.cat((pre, torch.randn(h) * 0.5, (3 * torch.eye(h) + 0.3 * torch.randn(h, h)).flatten()))


class Model(torch.nn.Module):
    """Master weights, and operations over the weights of a step: bf16, rounded as they will be stored or not yet."""

    def __init__(self, c: Shape) -> None:
        super().__init__()
        self.c = c
        self.stored = {t.name: t.stored for t in tensors(c)}
        self.master = {t.name: torch.nn.Parameter(start(c, t)) for t in tensors(c)}
        for name, value in self.master.items():
            self.register_parameter(name.replace(".", "/"), value)
        self.bias = {at: torch.zeros(c.experts) for at in c.blocks if not c.is_hashed(at)}
        self.table = {at: torch.zeros(c.vocab, c.top, dtype=torch.long) for at in c.blocks if c.is_hashed(at)}
        self.loads: dict[str, torch.Tensor] = {}  # of experts in the last trunk pass
        self.now: dict[str, torch.Tensor] = {}

    def to_device(self, device: str) -> Model:
        self.to(device)
        self.master = {name: self.get_parameter(name.replace(".", "/")) for name in self.master}
        for buffers in (self.bias, self.table):
            for at in buffers:
                buffers[at] = buffers[at].to(device)
        return self

    def prepare(self, rounds: bool) -> None:
        """The weights of the next passes. Small fp32 tensors and the router stay as they are."""
        for name, value in self.master.items():
            if self.stored[name] == "fp32" or name.endswith(".gate.weight"):
                self.now[name] = value
            else:
                self.now[name] = (rounded(value, self.stored[name]) if rounds else value).bfloat16()

    def experts(self, at: str, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """All experts for every row; those not chosen count nothing."""
        c, flat, limit = self.c, x.flatten(0, 1), self.c.config["swiglu_limit"]
        scores = F.softplus(F.linear(flat.float(), self.now[at + "ffn.gate.weight"])).sqrt()
        if at in self.table:
            chosen = self.table[at][ids.flatten()]
        else:
            chosen = (scores.detach() + self.bias[at]).topk(c.top, -1).indices
        weights = scores.gather(-1, chosen)
        weights = weights / weights.sum(-1, keepdim=True) * c.config["routed_scaling_factor"]
        spread = torch.zeros_like(scores).scatter(-1, chosen, weights)
        self.loads[at] = (spread.detach() > 0).float().mean(0)
        w13, w2 = self.now[at + "ffn.experts.w13"], self.now[at + "ffn.experts.w2"]
        up = F.linear(flat, w13.flatten(0, 1)).unflatten(-1, (c.experts, -1))
        mid = activation(up, limit) * spread.unsqueeze(-1)
        y = mid.to(x.dtype).flatten(-2) @ w2.mT.flatten(0, 1)
        shared = [self.now[f"{at}ffn.shared_experts.w{i}.weight"] for i in (1, 3, 2)]
        up = torch.cat((F.linear(flat, shared[0]), F.linear(flat, shared[1])), -1)
        return (y + F.linear(activation(up, limit).to(x.dtype), shared[2])).view_as(x)

    def block(
        self, at: str, x: torch.Tensor, ids: torch.Tensor, depth: int = 1, chain: Chain | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, Chain]:
        c, k = self.c, self.c.config

        def w(name: str) -> torch.Tensor:
            return self.now[at + name]

        def enter(site: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            logits = mix(x, w(f"hc_{site}_fn"), k["rms_norm_eps"])
            pre, post, comb = coefficients(
                logits, w(f"hc_{site}_base"), w(f"hc_{site}_scale"), c.streams, k["hc_eps"]
            )
            comb = Sinkhorn.apply(comb, k["hc_sinkhorn_iters"], k["hc_eps"])
            return gather_streams(x, pre, w(f"{site}_norm.weight"), k["rms_norm_eps"]), post, comb

        u, post, comb = enter("attn")
        y, loss, chain = attention(c, w, u, c.ratio(at), depth, chain)
        x = put_back(x, y, post, comb)
        u, post, comb = enter("ffn")
        return put_back(x, self.experts(at, u, ids), post, comb), loss, chain

    def logits(self, at: str, x: torch.Tensor) -> torch.Tensor:
        """Of the trunk (at "") or the MTP block."""
        k, now = self.c.config, self.now
        scale, base = now[at + "hc_head_scale"], now[at + "hc_head_base"]
        pre = torch.sigmoid(mix(x, now[at + "hc_head_fn"], k["rms_norm_eps"]) * scale + base) + k["hc_eps"]
        h = gather_streams(x, pre, now[at + "norm.weight"], k["rms_norm_eps"])
        return F.linear(h, now["head.weight"])

    def trunk(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(streams [b, t, h, d], index loss)"""
        x = F.embedding(ids, self.now["embed.weight"]).unsqueeze(2).expand(-1, -1, self.c.streams, -1)
        total = x.new_zeros((), dtype=torch.float32)
        for at in self.c.blocks[:-1]:
            x, loss, _ = self.block(at, x, ids)
            total = total + loss
        return x, total

    def drafts(self, x: torch.Tensor, following: list[torch.Tensor]) -> list[torch.Tensor]:
        """Logits of each draft: the first takes the trunk's streams and the next token, later ones their own streams
        and the token after."""
        at, eps, out = "mtp.0.", self.c.config["rms_norm_eps"], list[torch.Tensor]()
        chain: Chain | None = None
        for depth, ids in enumerate(following, 1):
            e = rms(F.embedding(ids, self.now["embed.weight"]), self.now[at + "enorm.weight"], eps)
            h = rms(x, self.now[at + "hnorm.weight"], eps)
            x = F.linear(e, self.now[at + "e_proj.weight"]).unsqueeze(2) + F.linear(
                h, self.now[at + "h_proj.weight"]
            )
            x, _, chain = self.block(at, x, ids, depth, chain)
            out.append(self.logits(at, x))
        return out
