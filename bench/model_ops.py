"""Operations of whole models that have a number of their own: the exact choice of the indexer, decode attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from bench import data, timing
from bench.context import Context
from bench.data import Rotation
from bench.dense import expected_us
from bench.records import Row, guarded_all, median
from bench.targets import ATTENTION_POINT, INDEXER_ROWS, indexer_point
from bench.timing import Variant
from deep_gemm import ops

SECTION = "model_ops"
HEADS, INDEX_CHANNELS, CHOSEN, RATIO = 64, 128, 512, 4
CHANNELS, WINDOW, PAGE_ROWS = 512, 128, 64
E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6)


def timed(
    context: Context, point: str, launch: Callable[[int], Any], sets: int, size: int, note: str = ""
) -> Row:
    samples = timing.interleave(
        timing.capture([Variant("ours", launch)], sets, expected_us(size, 0)), context.rounds
    )
    us = median(samples["ours"])
    return Row(SECTION, point, us, metrics={"us": us, "gbs": size / us / 1e3}, samples=samples, note=note)


def stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


def index_point(rows: int, fp4: bool) -> str:
    return indexer_point(rows) + ("" if fp4 else " of bf16")


def fp4_rows(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(pages of random FP4 rows, their values in fp32)."""
    pages = rows // PAGE_ROWS
    codes = torch.randint(0, 256, (pages, PAGE_ROWS, INDEX_CHANNELS // 2), device="cuda", dtype=torch.uint8)
    scales = torch.randint(
        124, 129, (pages, PAGE_ROWS, INDEX_CHANNELS // 32), device="cuda", dtype=torch.uint8
    )
    data = torch.cat([codes.view(pages, -1), scales.view(pages, -1)], 1).view(torch.int8)
    table = torch.tensor([*E2M1, *(-v for v in E2M1)], device="cuda")
    values = table[torch.stack([codes & 15, codes >> 4], -1).long()].view(rows, INDEX_CHANNELS)
    wide = torch.exp2(scales.view(rows, -1).float() - 127).repeat_interleave(32, 1)
    return data[None].contiguous(), values * wide


def index(context: Context, rows: int, fp4: bool) -> Row:
    """Scores of one token's query with all rows (as the released model keeps them: FP4), and the 512 largest."""
    point = index_point(rows, fp4)
    query = torch.randn(1, HEADS, INDEX_CHANNELS, dtype=torch.bfloat16, device="cuda")
    weights = torch.rand(1, HEADS, device="cuda")
    if fp4:
        cache, values = fp4_rows(rows)
    else:
        cache = torch.randn(1, rows, INDEX_CHANNELS, dtype=torch.bfloat16, device="cuda")
        values = cache[0].float()
    positions = torch.full((1,), rows * RATIO - 1, dtype=torch.int32, device="cuda")
    scores = torch.full((1, rows), float("nan"), device="cuda")
    picks = torch.full((1, CHOSEN), -7, dtype=torch.int32, device="cuda")
    peaks = torch.full((1, -(-rows // 16)), -7, dtype=torch.int32, device="cuda")
    sets = Rotation.of(
        (query, weights, cache, scores, peaks, picks), timing.num_sets_for(data.num_bytes(cache))
    )

    def launch(i: int) -> None:
        query_i, weights_i, cache_i, scores_i, peaks_i, picks_i = sets[i]
        ops.index_scores(query_i, weights_i, cache_i, positions, scores_i, ratio=RATIO,
                         page_rows=PAGE_ROWS if fp4 else 0, peaks=peaks_i, stream=stream())  # fmt: skip
        ops.top_k(scores_i, positions, picks_i, peaks=peaks_i, ratio=RATIO, stream=stream())

    launch(0)
    torch.cuda.synchronize()
    dots = torch.relu(query[0].float() @ values.T)
    data.require_close(scores[0], weights[0] @ dots, 1e-3, point)
    order = torch.sort(scores[0], descending=True, stable=True).indices[:CHOSEN].sort().values
    if not torch.equal(order.int(), picks[0]):
        raise AssertionError(f"{point}: the picks are not the {CHOSEN} largest scores")
    return timed(context, point, launch, len(sets), data.num_bytes(cache, scores))


def attention(context: Context) -> Row:
    """One query of 64 heads over the window and 512 chosen rows in FP8."""
    page_bytes = ops.latent_page_bytes(PAGE_ROWS)
    q = torch.randn(1, HEADS, CHANNELS, dtype=torch.bfloat16, device="cuda") / 8
    compressed_rows = 4096 // RATIO

    def pages(rows: int) -> torch.Tensor:
        """Values of 0, 1 and 2 with scales of 1."""
        out = torch.randint(0, 2, (1, rows // PAGE_ROWS, page_bytes), device="cuda").to(torch.int8) * 64
        out[:, :, PAGE_ROWS * 576 : PAGE_ROWS * 584] = 127
        return out

    ring, compressed = pages(WINDOW), pages(compressed_rows)
    positions = torch.full((1,), 4095, dtype=torch.int32, device="cuda")
    picks = torch.randperm(compressed_rows, device="cuda")[:CHOSEN].sort().values.int().view(1, CHOSEN)
    shape = (1, HEADS // 16, (WINDOW + CHOSEN) // 64, 16 * 516)
    out, records = torch.full_like(q, float("nan")), torch.empty(shape, device="cuda")
    sets = Rotation.of((q, ring, compressed, out, records), timing.MAX_SETS)

    def launch(i: int) -> None:
        q_i, ring_i, compressed_i, out_i, records_i = sets[i]
        ops.latent_attention(q_i, ring_i, positions, out_i, ring_page_rows=PAGE_ROWS, compressed=compressed_i,
                             compressed_page_rows=PAGE_ROWS, picks=picks, records=records_i, window=WINDOW, ratio=RATIO,
                             stream=stream())  # fmt: skip

    launch(0)
    torch.cuda.synchronize()
    if not torch.isfinite(out).all():
        raise AssertionError(f"{ATTENTION_POINT}: not all of the output is finite")
    return timed(context, ATTENTION_POINT, launch, len(sets), (WINDOW + CHOSEN) * 584)


def points(context: Context) -> Iterator[tuple[str, Callable[[], Row]]]:
    yield ATTENTION_POINT, partial(attention, context)
    for rows in INDEXER_ROWS:
        for fp4 in (True, False):
            yield index_point(rows, fp4), partial(index, context, rows, fp4)


def run(context: Context) -> list[Row]:
    return guarded_all(SECTION, points(context))
