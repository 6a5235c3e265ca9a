"""MXFP4 weights x FP8 activations of one MoE layer of DeepSeek-V4-Flash, V3 and Qwen3, tokens routed at random.

Each launch of a burst has its own routing, so that experts found in L2 by the next one are few, and small layers have
several copies of their weights that take turns. Beside every time stands that of its ruler: the same kernel with the
same copies and no product; and where it is known, what other libraries reached (bench/fp4_peer.py). "per_token" are the
same points with one scale for each token, and "fast_accumulation" those with sums left to the tensor core, as
FlashInfer has both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import deep_gemm
from bench import data, fp4_peer, timing
from bench.context import Context
from bench.fp4_weights import dequantised, random_weights
from bench.records import Row, guarded, guarded_all, median, paired_ratio
from bench.targets import FP4_OTHERS, FP4_SCALES, MODELS, MOE_SHAPES, MoeModel, fp4_point, fp4_scales_of
from bench.timing import Variant

SECTION = "fp4"
FLASH = MODELS[0]
EXPERTS, TOP_K = FLASH.experts, FLASH.top_k
SHAPES = {name: (n, k) for name, n, k in MOE_SHAPES}
TOKENS = (1, 16, 64, 256, 512, 768, 1024, 2048, 4096, 8192, 16384)
OTHER_TOKENS = (1, 16, 64, 256, 1024, 4096)  # of models other than Flash
ROUTINGS = {
    16: 10,
    64: 5,
}  # launches in a burst that meet other experts; 4 for more tokens, disjoint sets for one
COPY_BYTES = 4  # times the L2 cache: what weights that take turns amount to
ARRANGEMENTS = ((1, 3, 2), (2, 2, 1), (4, 1, 1), (4, 1, 2))  # warpgroups, CTAs of an SM, blobs of a stage
WIDE_ARRANGEMENTS = (
    (2, 1, 2),
    (2, 2, 2),
    (3, 1, 2),
    (4, 1, 2),
    (2, 1, 1),
    (4, 1, 1),
)  # warpgroups, sets, CTAs of a cluster
BOTH_KERNELS = (256, 4096)  # tokens between which either kernel may be the faster

Tensor = Any


@dataclass
class Routing:
    """A list as a router leaves it on the device; `counts` and `starts` by entry, on the host."""

    entries: Tensor
    head: Tensor
    a_rows: Tensor
    d_rows: Tensor
    experts: list[int]
    starts: list[int]
    counts: list[int]

    @staticmethod
    def of(experts_of_token: Tensor, gate_up: bool, num_experts: int = EXPERTS) -> Routing:
        flat = experts_of_token.reshape(-1)
        order = torch.argsort(flat, stable=True)
        experts, counts = torch.unique_consecutive(flat[order], return_counts=True)
        starts = torch.cumsum(counts, 0) - counts
        entries = torch.zeros(num_experts, 4, dtype=torch.int32)
        entries[: len(experts), :3] = torch.stack([experts, starts, counts], 1).int()
        slots = torch.arange(len(flat))
        # Gate and up read a token for each of its experts; down reads slots and writes by token.
        a_rows, d_rows = (order // experts_of_token.shape[1], slots) if gate_up else (slots, order)
        head = torch.tensor([len(experts), 0, 0, 0], dtype=torch.int32)
        entries, head, a_rows, d_rows = (x.int().cuda() for x in (entries, head, a_rows, d_rows))
        host = (experts.tolist(), starts.tolist(), counts.tolist())
        return Routing(entries, head, a_rows, d_rows, *host)


def routings(tokens: int, gate_up: bool, model: MoeModel = FLASH) -> list[Routing]:
    generator = torch.Generator().manual_seed(tokens)
    if tokens == 1:
        count = model.experts // model.top_k
        order = torch.randperm(model.experts, generator=generator)[: count * model.top_k]
        experts = order.reshape(count, 1, model.top_k)
        return [Routing.of(one, gate_up, model.experts) for one in experts]
    return [
        Routing.of(
            torch.rand(tokens, model.experts, generator=generator).topk(model.top_k, 1).indices,
            gate_up,
            model.experts,
        )
        for _ in range(ROUTINGS.get(tokens, 4))
    ]


def copies_of(weights: deep_gemm.Fp4Weights) -> list[deep_gemm.Fp4Weights]:
    """The weights, and as many copies as make them several times the L2 cache."""
    l2: int = torch.cuda.get_device_properties(0).L2_cache_size
    count = 1 + COPY_BYTES * l2 // data.num_bytes(weights.blobs)
    return [weights] + [
        weights.with_tensors(weights.blobs.clone(), weights.row_scales, None) for _ in range(count - 1)
    ]


@dataclass
class Layer:
    weights: deep_gemm.Fp4Weights
    a: Any  # (fp8, scales), or bf16
    d: Tensor
    lists: list[Routing]
    copies: list[deep_gemm.Fp4Weights] | None = None  # that take turns, once for all lists
    fast_accumulation: bool = False
    bf16_products: bool = False

    @property
    def num_sets(self) -> int:
        return len(self.lists) * len(self.copies or [self.weights])

    def launch(self, i: int, spec: deep_gemm.Fp4GemmSpec | None = None) -> None:
        one = self.lists[i % len(self.lists)]
        weights = self.copies[i // len(self.lists)] if self.copies else self.weights
        deep_gemm.m_grouped_fp8_fp4_gemm_nt_gathered(
            self.a,
            weights,
            self.d,
            one.entries,
            one.head,
            one.a_rows,
            one.d_rows,
            spec=spec,
            fast_accumulation=self.fast_accumulation,
            bf16_products=self.bf16_products,
        )

    def check(self, what: str) -> float:
        """Compares the busiest and the first expert of the first routing; returns the larger error."""
        data.poison(self.d)
        self.launch(0)
        torch.cuda.synchronize()
        one, worst = self.lists[0], 0.0
        for entry in {0, one.counts.index(max(one.counts))}:
            slots = slice(one.starts[entry], one.starts[entry] + one.counts[entry])
            rows = one.a_rows[slots].long()
            fp8 = isinstance(self.a, tuple)
            left = data.dequantised((self.a[0][rows], self.a[1][rows])) if fp8 else self.a[rows].float()
            reference = data.product(left, dequantised(self.weights, one.experts[entry]))
            worst = max(worst, data.require_close(self.d[one.d_rows[slots].long()], reference, 4e-3, what))
        return worst


def with_most_stages(spec: deep_gemm.Fp4GemmSpec) -> list[deep_gemm.Fp4GemmSpec]:
    """The spec with as many stages as fit, or nothing where none does."""
    for stages in range(24, 2, -1):
        if (one := spec.replace(stages=stages)).why_illegal is None:
            return [one]
    return []


def few_specs(spec: deep_gemm.Fp4GemmSpec, block_m: int) -> list[deep_gemm.Fp4GemmSpec]:
    narrow = spec.replace(
        wide=False,
        cluster=1,
        fragment_sets=1,
        queue=True,
        block_m=block_m,
        load_warps=1 if block_m <= 48 else 2,
    )
    return [
        one
        for warpgroups, ctas, k_blocks in ARRANGEMENTS
        for one in with_most_stages(
            narrow.replace(warpgroups=warpgroups, ctas_per_sm=ctas, k_blocks=k_blocks)
        )
    ]


def wide_specs(spec: deep_gemm.Fp4GemmSpec, block_m: int) -> list[deep_gemm.Fp4GemmSpec]:
    wide = spec.replace(wide=True, queue=False, ctas_per_sm=1, k_blocks=1, load_warps=1, block_m=block_m)
    return [
        one
        for warpgroups, sets, cluster in WIDE_ARRANGEMENTS
        for one in with_most_stages(wide.replace(warpgroups=warpgroups, fragment_sets=sets, cluster=cluster))
    ]


def alternatives(spec: deep_gemm.Fp4GemmSpec, tokens: int) -> list[deep_gemm.Fp4GemmSpec]:
    """Other arrangements of the chosen kernel, and the other kernel where it may be faster."""
    fields = spec.to_dict()
    block_m, found = int(fields["block_m"]), []
    near = BOTH_KERNELS[0] <= tokens <= BOTH_KERNELS[1]
    if not fields["wide"] or near:
        found += few_specs(spec, min(block_m, 48) if fields["wide"] else block_m)
    if fields["wide"] or near:
        found += wide_specs(spec, max(block_m, 48))
        if fields["wide"]:
            found += [
                one for m in (block_m - 16, block_m + 16) for one in with_most_stages(spec.replace(block_m=m))
            ]
    return [one for one in found if one != spec]


def speed_metrics(
    context: Context, samples: dict[str, list[float]], weight_bytes: float, flops: float
) -> dict[str, float]:
    """What a row says of the samples of "ours" and "copies only": rates, and the share of what the copies allow."""
    us = median(samples["ours"])
    metrics = {
        "gbs": weight_bytes / us / 1e3,
        "tflops": flops / us / 1e6,
        "of_copies": paired_ratio(samples["copies only"], samples["ours"]),
    }
    if context.read_gbs:
        metrics["percent_of_read"] = 100 * metrics["gbs"] / context.read_gbs
    return metrics


def measure(
    context: Context,
    model: MoeModel,
    name: str,
    tokens: int,
    copies: list[deep_gemm.Fp4Weights],
    kind: str = "",
) -> Row:
    weights = copies[0]
    point = fp4_point(model, name, tokens, kind)
    gate_up = name == "gate+up"
    values, scales = data.scaled_tokens(tokens if gate_up else tokens * model.top_k, weights.k)
    if kind:
        scales = scales[:, :1].expand(-1, scales.shape[1])
    d = torch.empty(tokens * model.top_k, weights.n, dtype=torch.bfloat16, device="cuda")
    layer = Layer(
        weights, (values, scales), d, routings(tokens, gate_up, model), copies, kind == "fast_accumulation"
    )
    error = layer.check(point)
    plan = deep_gemm.last_fp4_plan()
    assert plan is not None
    spec = plan["spec"]
    variants = [
        Variant("ours", layer.launch),
        Variant("copies only", lambda i: layer.launch(i, spec.replace(copies_only=True))),
    ]
    if spec.to_dict()["queue"]:
        variants.append(Variant("fixed turns", lambda i: layer.launch(i, spec.replace(queue=False))))
    if not context.quick and model is FLASH and not kind:
        variants += [Variant(str(s), partial(layer.launch, spec=s)) for s in alternatives(spec, tokens)]
    active = sum(len(one.experts) for one in layer.lists) / len(layer.lists)
    weight_bytes = (
        active * (data.num_bytes(weights.blobs) + data.num_bytes(weights.row_scales)) / model.experts
    )
    flops = 2 * tokens * model.top_k * weights.n * weights.k
    expected = max(weight_bytes / 4e6, flops / 7e8) + 5
    samples = timing.interleave(timing.capture(variants, layer.num_sets, expected), context.rounds)
    us = {variant: median(values) for variant, values in samples.items()}
    metrics = {
        **speed_metrics(context, samples, weight_bytes, flops),
        "error": error,
        **fp4_peer.metrics(model.name, name, tokens, us["ours"], context.read_gbs),
    }
    others = "; ".join(
        f"{variant} {value:.1f} us" for variant, value in us.items() if variant not in ("ours", "copies only")
    )
    note = f"{spec}, grid {plan['grid_blocks']}; {active:.0f} experts; {others}"
    return Row(SECTION, point, us["ours"], us["copies only"], "copies only", metrics, samples, note)


def points(context: Context) -> Iterator[tuple[str, Callable[[], Row]]]:
    for model in MODELS[:1] if context.quick else MODELS:
        tokens_of_model = TOKENS if model is FLASH else OTHER_TOKENS
        for name, n, k in model.shapes:
            copies = copies_of(random_weights(model.experts, n, k, "mx_e4m3"))
            for tokens in tokens_of_model[:5:2] if context.quick else tokens_of_model:
                for kind in fp4_scales_of(tokens):
                    if kind and tokens not in fp4_peer.TOKENS:
                        continue
                    yield (
                        fp4_point(model, name, tokens, kind),
                        partial(measure, context, model, name, tokens, copies, kind),
                    )
            del copies
            torch.cuda.empty_cache()


def summary(rows: list[Row]) -> Row:
    """Of the points of V3 and Qwen3 up to 1024 tokens: the better of two kinds of scales, as the peer has one."""
    best: dict[str, float] = {}
    for model in MODELS[1:]:
        for name, _, _ in model.shapes:
            for tokens in OTHER_TOKENS[:-1]:
                wanted = {fp4_point(model, name, tokens, scales) for scales in FP4_SCALES[:2]}
                ratios = [
                    row.metrics["of_flashinfer_by_read"]
                    for row in rows
                    if row.point in wanted and "of_flashinfer_by_read" in row.metrics
                ]
                if ratios:
                    best[fp4_point(model, name, tokens)] = max(ratios)
    if not best:
        raise RuntimeError("no point was measured")
    worst = min(best, key=lambda point: best[point])
    metrics = {
        "mean_of_flashinfer": statistics.geometric_mean(best.values()),
        "worst_of_flashinfer": best[worst],
    }
    return Row(
        SECTION, FP4_OTHERS, metrics=metrics, note=f"{len(best)} points that FlashInfer has; worst {worst}"
    )


def run(context: Context) -> list[Row]:
    rows = guarded_all(SECTION, points(context))
    return rows if context.quick else [*rows, guarded(SECTION, FP4_OTHERS, lambda: summary(rows))]
