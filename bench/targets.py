"""The numbers asked for on one H200, and the only place where they stand.

A target names a row by section and point. It is reached if any one of its bounds holds on the row's metrics, or, of
those that say `every`, if all do.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.records import Row

SHAPES = ((4096, 7168), (7168, 2048), (24576, 1536))  # (n, k)
SMALL_M = (1, 16, 64, 128)
MASKED_M = (1, 8, 16, 32, 64)

NVFP4_TOKENS = (1, 16, 64, 256, 1024, 4096, 8192, 16384)


@dataclass(frozen=True)
class MoeModel:
    """The routed experts of a model's layer; shapes are (name, n, k)."""

    name: str
    experts: int
    top_k: int
    hidden: int
    intermediate: int

    @property
    def shapes(self) -> tuple[tuple[str, int, int], tuple[str, int, int]]:
        return ("gate+up", 2 * self.intermediate, self.hidden), ("down", self.hidden, self.intermediate)


MODELS = (
    MoeModel("Flash", 256, 6, 4096, 2048),
    MoeModel("V3", 256, 8, 7168, 2048),
    MoeModel("Qwen3", 128, 8, 2048, 768),
)
MOE_SHAPES = MODELS[0].shapes


# (k, n) of small-batch products
GEMV_LAYERS = (
    (4096, 4096),
    (4096, 14336),
    (14336, 4096),
    (8192, 8192),
    (8192, 29568),
    (29568, 8192),
    (3584, 18944),
    (4096, 129280),
)

LARGE_BATCH_LAYER = (4096, 14336)  # of weight-only products with many tokens
LARGE_BATCH_TOKENS = (32, 64, 128, 512, 2048, 8192)


INDEXER_ROWS = {32768: 12, 262144: 25}  # microseconds asked for
ATTENTION_POINT = "latent_attention 1 query, 64 heads, 640 rows"


def indexer_point(rows: int) -> str:
    return f"index_scores and top-512 of {rows} rows"


def gemv_point(variant: str, m: int, k: int, n: int) -> str:
    return f"{variant} m={m} {k}x{n}"


def gemm_point(m: int, n: int, k: int) -> str:
    return f"m={m} n={n} k={k}"


def contiguous_point(form: str, groups: int, rows: int, n: int, k: int) -> str:
    return f"{form} {groups}x{rows} n={n} k={k}"


def masked_point(m: int, n: int, k: int) -> str:
    return f"masked groups=8 m={m} n={n} k={k}"


# What tokens are scaled by: "" for one scale of each 128 along K; one of each token; and that, with sums that stay in
# the tensor core over all of K where many tokens make it worth while.
FP4_OTHERS = "V3 and Qwen3, 1 to 1024 tokens"
FP4_SCALES = ("", "per_token", "fast_accumulation")
FP4_FAST_TOKENS = 1024  # from here on


def fp4_scales_of(tokens: int) -> tuple[str, ...]:
    return FP4_SCALES if tokens >= FP4_FAST_TOKENS else FP4_SCALES[:2]


def fp4_point(model: MoeModel, name: str, tokens: int, scales: str = "") -> str:
    n, k = {shape[0]: shape[1:] for shape in model.shapes}[name]
    prefix = "" if model is MODELS[0] else f"{model.name} "
    return f"{prefix}{name} n={n} k={k} T={tokens}" + (f" {scales}" if scales else "")


def fused_moe_point(tokens: int, kind: str = "") -> str:
    return f"Flash T={tokens}" + (f" {kind}" if kind else "")


def nvfp4_point(form: str, name: str, n: int, k: int, tokens: int) -> str:
    return f"{form} {name} n={n} k={k} T={tokens}"


@dataclass(frozen=True)
class Bound:
    metric: str
    limit: float
    at_most: bool = False

    def holds(self, row: Row) -> bool:
        value = row.metrics.get(self.metric)
        if value is None:
            return False
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        return f"{sign} {self.limit:g}{UNITS[self.metric]}"


UNITS = {
    "ratio": "x",
    "ratio_to_bf16": "x our bf16",
    "of_one_token": "x 1 token",
    "mean_ratio": "x in the mean",
    "tflops": " TFLOPS",
    "of_dense": "x dense",
    "percent_of_read": " % of read",
    "ms": " ms",
    "us": " us",
    "regret": "x best",
    "worst_regret": "x worst",
    "of_flashinfer": "x FlashInfer",
    "of_flashinfer_by_read": "x FlashInfer by read ceilings",
    "of_copies": "x copies only",
    "of_marlin": "x Marlin",
    "of_deepgemm_fp8": "x DeepGEMM FP8",
    "mean_of_flashinfer": "x FlashInfer",
    "worst_of_flashinfer": "x FlashInfer at worst",
}


@dataclass(frozen=True)
class Target:
    section: str
    point: str
    bounds: tuple[Bound, ...]
    every: bool = False

    def reached(self, row: Row) -> bool:
        held = [bound.holds(row) for bound in self.bounds]
        return not row.error and (all(held) if self.every else any(held))

    def __str__(self) -> str:
        return (" and " if self.every else " or ").join(map(str, self.bounds))


def _at_least(metric: str, limit: float) -> tuple[Bound, ...]:
    return (Bound(metric, limit),)


def _at_most(metric: str, limit: float) -> tuple[Bound, ...]:
    return (Bound(metric, limit, at_most=True),)


def _contiguous(n: int, k: int, tflops: float) -> Target:
    bounds = (Bound("tflops", tflops), Bound("of_dense", 0.96))
    return Target("grouped", contiguous_point("contiguous", 8, 4096, n, k), bounds)


# Tokens -> how many times as long FlashInfer takes, at least: gate+up, down.
FP4_ASKED = {
    1: (1.40, 1.60),
    16: (1.12, 1.22),
    64: (1.10, 1.18),
    256: (1.06, 1.06),
    1024: (1.06, 1.06),
    4096: (1.10, 1.10),
    8192: (1.10, 1.10),
    16384: (1.10, 1.10),
}


def _fp4_on_top(tokens: int) -> tuple[Bound, ...]:
    """Bound by memory it is within 2 % of its own copies; beyond, never slower than FP8 weights."""
    if tokens in (256, 1024):
        return _at_least("of_copies", 0.98)
    if tokens < 4096:
        return ()
    faster = _at_least("of_deepgemm_fp8", 1.0)
    return (*faster, *_at_least("tflops", 1100)) if tokens == 8192 else faster


def _of_flashinfer(tokens: int) -> str:
    """Its times are another run's: where memory bounds both, the ratio counts at equal read ceilings."""
    return "of_flashinfer_by_read" if tokens <= 1024 else "of_flashinfer"


def _fp4_targets() -> list[Target]:
    """Asked of all kinds of scales. The peer has one for each token and adds up in the tensor core."""
    return [
        Target(
            "fp4",
            fp4_point(MODELS[0], name, tokens, scales),
            _at_least(_of_flashinfer(tokens), limit) + _fp4_on_top(tokens),
            every=True,
        )
        for tokens, limits in FP4_ASKED.items()
        for name, limit in zip(("gate+up", "down"), limits, strict=True)
        for scales in fp4_scales_of(tokens)
    ] + [
        Target(
            "fp4",
            FP4_OTHERS,
            _at_least("mean_of_flashinfer", 1.08) + _at_least("worst_of_flashinfer", 1.0),
            every=True,
        )
    ]


# Variant -> bits of a weight, and how many times as long torch.mm in BF16 takes, at least, from 4096 x 14336 on.
GEMV_ASKED: dict[str, tuple[float, float]] = {
    "bf16": (16, 1.0),
    "w8a16": (8, 1.75),
    "w8a8": (8, 1.75),
    "w8a8 by 32": (9, 1.75),
    "int8": (8, 1.75),
    "q8_0": (8.5, 1.65),
    "q8_0 split": (8.5, 1.65),
    "w4a16 mxfp4": (4.25, 2.7),
    "w4a16 nvfp4": (4.5, 2.7),
    "w4a8 nvfp4": (4.5, 2.7),
    "int4 g128": (4.125, 2.7),
    "int4 g32": (4.5, 2.7),
}
GEMV_FOUR_BITS_LARGE = 3.2  # of 4 bits at 8192 x 29568
GEMV_EIGHT_BITS_SMALL = 1.4  # of FP8 and INT8 at 4096 x 4096
GEMV_READ_BYTES, GEMV_READ_PERCENT = 250e6, 95  # weights so large stream at the read ceiling
GEMV_OF_ONE_TOKEN = {3: 1.03, 8: 1.10}
GEMV_TOKENS_LAYER = (4096, 14336)  # the layer whose time is shown for every number of tokens
GEMV_TOKENS = (1, 2, 3, 4, 8, 16)
GEMV_ONE_TOKEN_ONLY = ("int8", "q8_0 split")  # not measured with more
GEMV_MEAN = "bf16, mean of all layers and tokens"


def _gemv_bounds(name: str, m: int, layer: tuple[int, int]) -> list[Bound]:
    bits, ratio = GEMV_ASKED[name]
    k, n = layer
    bounds = []
    if name == "bf16":
        bounds.append(Bound("ratio", ratio))
    elif m <= 4:
        if layer == (4096, 4096):
            ratio = GEMV_EIGHT_BITS_SMALL if bits in (8, 9) else 0
        elif layer == (8192, 29568) and bits < 8:
            ratio = GEMV_FOUR_BITS_LARGE
        bounds += [Bound("ratio", ratio)] if ratio else []
    if name != "bf16":
        bounds.append(Bound("ratio_to_bf16", 1.0))
    if m == 1 and k * n * bits / 8 >= GEMV_READ_BYTES:
        bounds.append(Bound("percent_of_read", GEMV_READ_PERCENT))
    if m in GEMV_OF_ONE_TOKEN:
        bounds.append(Bound("of_one_token", GEMV_OF_ONE_TOKEN[m], at_most=True))
    return bounds


def _gemv_targets() -> list[Target]:
    """Up to 8 tokens; 16 are shown and nothing is asked of them."""
    points = [(1, layer) for layer in GEMV_LAYERS]
    points += [(m, GEMV_TOKENS_LAYER) for m in GEMV_TOKENS if 1 < m <= 8]
    return [
        Target("gemv", gemv_point(name, m, *layer), tuple(_gemv_bounds(name, m, layer)), every=True)
        for name in GEMV_ASKED
        for m, layer in points
        if m == 1 or name not in GEMV_ONE_TOKEN_ONLY
    ] + [Target("gemv", GEMV_MEAN, _at_least("mean_ratio", 1.05))]


TARGETS: tuple[Target, ...] = (
    *(Target("dense", gemm_point(4096, n, k), _at_least("ratio", 0.97)) for n, k in SHAPES),
    Target("dense", gemm_point(8192, 8192, 8192), _at_least("ratio", 1.12)),
    *(Target("dense", gemm_point(m, n, k), _at_least("ratio", 1.0)) for n, k in SHAPES for m in SMALL_M),
    _contiguous(4096, 7168, 1300),
    _contiguous(7168, 2048, 1320),
    *(Target("masked", masked_point(m, 4096, 7168), _at_least("percent_of_read", 87)) for m in MASKED_M),
    *(
        Target("nvfp4", nvfp4_point("nv_single", *shape, tokens), _at_least("ratio", 0.926))  # 8 % longer
        for shape in MOE_SHAPES
        for tokens in NVFP4_TOKENS
    ),
    *_fp4_targets(),
    *(
        Target("fp4_bf16", fp4_point(MODELS[0], name, tokens), _at_least("of_marlin", 1.5))
        for name, _, _ in MOE_SHAPES
        for tokens in (1, 16, 64, 256, 1024, 4096)
    ),
    Target("fused_moe", fused_moe_point(64), _at_most("us", 641)),  # 0.97 of the peer's two GEMMs alone
    *_gemv_targets(),
    *(
        Target("weight_only_gemm", gemv_point(name, 8192, *LARGE_BATCH_LAYER), _at_least("tflops", tflops))
        for name, tflops in (("w8a16", 700), ("w4a16 mxfp4", 680), ("w4a16 nvfp4", 680), ("int4 g128", 680))
    ),
    Target("model_ops", ATTENTION_POINT, _at_most("us", 12)),
    *(Target("model_ops", indexer_point(rows), _at_most("us", us)) for rows, us in INDEXER_ROWS.items()),
    Target("cold_start", "first call of an uncached kernel", _at_most("ms", 200)),
    Target("cold_start", "first call of a kernel in the disk cache", _at_most("ms", 5)),
    Target("host_time", "Python, torch tensors", _at_most("us", 4)),
    Target("host_time", "C++", _at_most("us", 1.5)),
    Target(
        "regret", "all FP4 points", (*_at_most("regret", 1.03), *_at_most("worst_regret", 1.08)), every=True
    ),
)


def target_of(row: Row) -> Target | None:
    for target in TARGETS:
        if (target.section, target.point) == (row.section, row.point):
            return target
    return None
